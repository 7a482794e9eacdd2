#!/usr/bin/env python3
"""Does stock llama.cpp agree with us on a language file? Run by hand; needs PyPI llama-cpp-python, numpy, safetensors.

    python tests/witnesses/against_llama_cpp.py target/release/sphinx MODEL.gguf [TEXT]

Loads MODEL.gguf in llama.cpp and in sphinx; compares the token ids of TEXT and the logits of every position.
"""
import ctypes
import json
import subprocess
import sys
import tempfile

import llama_cpp as C
import numpy as np
from safetensors.numpy import load_file

sphinx, path = sys.argv[1:3]
text = sys.argv[3] if len(sys.argv) > 3 else "A chat between a curious human and an assistant.\n### Human: What's in the image? 图片里有什么？ naïve\n### Assistant:"

C.llama_backend_init()
silent = C.llama_log_callback(lambda *_: None)  # kept alive: llama.cpp calls it later
C.llama_log_set(silent, ctypes.c_void_p(0))
params = C.llama_model_default_params()
params.n_gpu_layers = 0
if hasattr(params, "use_extra_bufts"):
    params.use_extra_bufts = False
model = C.llama_model_load_from_file(path.encode(), params)
assert model, "llama.cpp does not load the file"
vocab = C.llama_model_get_vocab(model)
raw = text.encode()
buffer = (C.llama_token * (len(raw) + 8))()
n = C.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), True, False)
theirs = list(buffer[:n])
ours = json.loads(subprocess.run([sphinx, "tokenize", path, text, "--bos"], capture_output=True, check=True, text=True).stdout)
print("tokens", len(theirs), "equal" if ours == theirs else f"DIFFER\n  theirs {theirs}\n  ours   {ours}")

context = C.llama_context_default_params()
context.n_ctx, context.n_batch, context.n_ubatch, context.n_threads = 2048, 2048, 2048, 2
context.type_k = context.type_v = 0  # f32 cache, so that only weights and arithmetic differ
if hasattr(context, "flash_attn_type"):
    context.flash_attn_type = 0
ctx = C.llama_init_from_model(model, context)
batch = C.llama_batch_init(len(theirs), 0, 1)
batch.n_tokens = len(theirs)
for i, t in enumerate(theirs):
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = t, i, 1, 1
    batch.seq_id[i][0] = 0
assert C.llama_decode(ctx, batch) == 0
n_vocab = C.llama_vocab_n_tokens(vocab)
want = np.stack([np.ctypeslib.as_array(C.llama_get_logits_ith(ctx, i), shape=(n_vocab,)).copy() for i in range(len(theirs))])
with tempfile.TemporaryDirectory() as folder:
    out = folder + "/logits.safetensors"
    subprocess.run([sphinx, "logits", path, "--tokens", ",".join(map(str, theirs)), "--kv", "f32", "-o", out], check=True)
    got = load_file(out)["logits"]
cos = (want * got).sum(-1) / np.linalg.norm(want, axis=-1) / np.linalg.norm(got, axis=-1)
print(f"logits {got.shape}: max abs {np.abs(want - got).max():.3e}, cosine min {cos.min():.6f} mean {cos.mean():.6f}, std {want.std():.3f}")
sys.exit(0 if ours == theirs else 1)
