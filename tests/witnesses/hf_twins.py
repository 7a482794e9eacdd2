#!/usr/bin/env python3
"""Does a Hugging Face directory become the same model as its twin in the public layout? Run by hand; needs PyPI torch, numpy,
safetensors, gguf, sentencepiece, and ORACLE_DIR: the folder of the PyTorch reference (llm_ref.py and the tiny tokenizers).

    ORACLE_DIR=... python tests/witnesses/hf_twins.py target/release/sphinx [CASE_DIR]

Writes random LLaMA, Mixtral and InternLM2 checkpoints in both layouts: one safetensors file, safetensors in two parts, torch files in
two parts. Converts each to F32 and compares all tensors bit by bit, all settings but the names, and the logits with the reference's.
CASE_DIR, an internlm2_ens* case of make_case.py, is also taken apart: its decoder as an InternLM2 directory, the rest for --vision.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from safetensors.numpy import load_file
from safetensors.torch import save_file

ORACLE = Path(os.environ["ORACLE_DIR"])
sys.path.insert(0, str(ORACLE))
import llm_ref as L  # noqa: E402

sphinx = sys.argv[1]
# What may differ between twins: where they came from.
NAMES = ("general.name", ".pair_id", ".llama_type", ".checksum.header")
bad = 0


def run(*command):
    done = subprocess.run([sphinx, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)


def settings(cfg, model_type):
    classes = {"llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM", "internlm2": "InternLM2ForCausalLM"}
    out = {"model_type": model_type, "architectures": [classes[model_type]], "hidden_size": cfg.dim, "intermediate_size": cfg.hidden_dim,
           "num_hidden_layers": cfg.n_layers, "num_attention_heads": cfg.n_heads, "num_key_value_heads": cfg.n_kv_heads,
           "rms_norm_eps": cfg.norm_eps, "rope_theta": cfg.rope_theta, "vocab_size": cfg.vocab_size,
           "max_position_embeddings": cfg.max_seq_len, "hidden_act": "silu", "tie_word_embeddings": False}
    if cfg.rope_scaling:
        out["rope_scaling"] = {"type": "linear", "factor": 1 / cfg.rope_scaling}
    if cfg.n_experts:
        out |= {"num_local_experts": cfg.n_experts, "num_experts_per_tok": cfg.n_experts_used, "sliding_window": None}
    return out


def write_hf(folder, layout, tensors, config, tokenizer):
    folder.mkdir()
    tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    if layout == "one":
        return save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    stem, end, save = ("model", "safetensors", lambda t, p: save_file(t, str(p))) if layout == "parts" else ("pytorch_model", "bin", torch.save)
    names, index = list(tensors), {}
    for part, taken in enumerate((names[: len(names) // 2], names[len(names) // 2:]), 1):
        file = f"{stem}-{part:05}-of-00002.{end}"
        save({k: tensors[k] for k in taken}, folder / file)
        index |= dict.fromkeys(taken, file)
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def compare(ours, twin):
    """How many tensors are equal bit by bit; complains about everything else."""
    global bad
    a, b = GGUFReader(ours), GGUFReader(twin)
    tensors = [{t.name: t for t in r.tensors} for r in (a, b)]
    assert tensors[0].keys() == tensors[1].keys(), tensors[0].keys() ^ tensors[1].keys()
    same = [n for n, t in tensors[0].items() if t.tensor_type == tensors[1][n].tensor_type and np.array_equal(t.data.view(np.uint8), tensors[1][n].data.view(np.uint8))]
    values = [{k: f.contents() for k, f in r.fields.items() if not k.endswith(NAMES) and not k.startswith("GGUF.")} for r in (a, b)]
    odd = [k for k in values[0].keys() | values[1].keys() if values[0].get(k) != values[1].get(k)]
    bad += len(tensors[0]) - len(same) + len(odd)
    return f"{len(same)} of {len(tensors[0])} tensors equal, {len(values[0]) - len(odd)} of {len(values[0])} settings" + (f" (not {odd})" if odd else "")


def logits(model, tokens, folder):
    run("logits", model, "--tokens", ",".join(map(str, tokens)), "--kv", "f32", "--force", "-o", folder / "logits.safetensors")
    return load_file(folder / "logits.safetensors")["logits"]


for family, kind, tokenizer, dtype, more in [
    ("llama", "llama", "tokenizer-tiny.model", "bf16", {}),
    ("llama", "llama", "tokenizer-tiny.model", "f32", {"n_kv_heads": 1, "rope_scaling": 0.25}),
    ("mixtral", "mixtral_sparse", "tokenizer-tiny.model", "f16", {"hidden_dim": 256}),
    ("internlm2", "llama", "tokenizer-tiny-noprefix.model", "bf16", {"rope_theta": 1e6, "n_heads": 8, "n_kv_heads": 2}),
]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cfg, tensors = L.make_checkpoint(folder / "twin", kind, dtype, 2, 5, ORACLE / tokenizer, **more)
        tokens = L.Tokenizer(ORACLE / tokenizer).encode(L.chat_prompt([("What's in the image?", None)]))
        want = L.Llm(cfg, {k: v.float() for k, v in tensors.items()}).logits(tokens).numpy()
        run("convert", folder / "twin", "-o", folder / "twin.gguf", "--quant", "F32")
        hf = L.to_internlm2_hf(cfg, tensors) if family == "internlm2" else L.to_llama_hf(cfg, tensors)
        for layout in ("one", "parts", "torch parts"):
            write_hf(folder / layout, layout, hf, settings(cfg, family), ORACLE / tokenizer)
            run("convert", folder / layout, "-o", folder / f"{layout}.gguf", "--quant", "F32")
            far = np.abs(logits(folder / f"{layout}.gguf", tokens, folder) - want).max()
            bad += far > (1e-3 if cfg.n_experts else 2e-4)
            same = compare(folder / f"{layout}.gguf", folder / "twin.gguf")
            print(f"{family} {dtype} {layout}: {same}; logits max abs {far:.1e} over {len(tokens)} ids", flush=True)

for case in map(Path, sys.argv[2:]):
    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), case / "checkpoint"
        kind = json.loads((source / "meta.json").read_text())["llama_type"]
        state = torch.load(source / "consolidated.00-of-01.model.pth", weights_only=True)["model"]
        decoder = {k: v for k, v in state.items() if k.startswith(("llma.layers.", "llma.tok_embeddings", "llma.norm.", "llma.output."))}
        hf = {k.removeprefix("llma.") if k == "llma.output.weight" else "model." + k.removeprefix("llma."): v for k, v in decoder.items()}
        cfg = L.LlmConfig(**json.loads((case / "case.json").read_text())["llm"])
        write_hf(folder / "hf", "parts", hf, settings(cfg, "internlm2"), source / "tokenizer.model")
        visual = {k: v.clone() for k, v in state.items() if k not in decoder}
        torch.save({"model": visual}, folder / "visual.pth")
        save_file(visual, str(folder / "visual.safetensors"))
        run("convert", source, "-o", folder / "whole.gguf", "--quant", "F32", "--vision-quant", "F32")
        for file in ("visual.pth", "visual.safetensors"):
            out = folder / f"{file}.gguf"
            run("convert", folder / "hf", "--vision", folder / file, "--llama-type", kind, "-o", out, "--quant", "F32", "--vision-quant", "F32")
            for half in ("", "mmproj-"):
                same = compare(folder / f"{half}{file}.gguf", folder / f"{half}whole.gguf")
                print(f"{case.name} from InternLM2 and {file}, {half or 'language '}: {same}", flush=True)
sys.exit(bool(bad))
