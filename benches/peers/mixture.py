"""A mixture larger than memory: stock llama.cpp beside ours on the same GGUF within a control group's limit, interleaved.

    python mixture.py moe.gguf --limits 8,12,16 [--decode 32] [--peer-decode 16] [--prompt 1967] [--image photo.png]

llama.cpp is the library that comes with llama-cpp-python: mapped file, repacking off (it would copy the weights), flash attention
on, cache in f16, n_ubatch 512; the file is dropped from the page cache before each run. Its prompt is random ids; ours may be a
picture of as many rows and the rest random ids, encoding left out. Needs the right to make control groups (version 1 or 2).
Decoding rates are medians over tokens, the first two left out for both.
"""

import argparse
import ctypes
import json
import os
import random
import statistics
import subprocess
import sys
import time


def group(gib):
    """A new control group with a limit of `gib` GiB: its directory."""
    own = {line.split(":")[1]: line.strip().split(":", 2)[2] for line in open("/proc/self/cgroup")}
    v1 = "memory" in own
    root = f"/sys/fs/cgroup/memory{own['memory']}" if v1 else f"/sys/fs/cgroup{own['']}"
    path = os.path.join(root, f"peer-{os.getpid()}")
    os.makedirs(path, exist_ok=True)
    limit = str(int(gib * (1 << 30)))
    with open(os.path.join(path, "memory.limit_in_bytes" if v1 else "memory.max"), "w") as f:
        f.write(limit)
    return path


def drop(path):
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def io_bytes():
    return next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("read_bytes"))


def child(args):
    with open(os.path.join(args.group, "cgroup.procs"), "w") as f:
        f.write(str(os.getpid()))
    import llama_cpp

    lib = llama_cpp.llama_cpp
    quiet = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    model = lib.llama_model_load_from_file(os.fsencode(args.model), params)
    context = lib.llama_context_default_params()
    context.n_ctx, context.n_batch, context.n_ubatch = 2560, 2560, 512
    context.n_threads = context.n_threads_batch = args.threads
    context.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    run = lib.llama_init_from_model(model, context)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    draw = random.Random(1)

    def feed(n):
        ids = (lib.llama_token * n)(*(draw.randrange(vocabulary) for _ in range(n)))
        start = time.perf_counter()
        if lib.llama_decode(run, lib.llama_batch_get_one(ids, n)) != 0:
            raise SystemExit("llama_decode failed")
        lib.llama_synchronize(run)
        return time.perf_counter() - start

    prompt_s = feed(args.prompt)
    before = io_bytes()
    tokens = [feed(1) for _ in range(args.decode)]
    print(json.dumps({"prompt_s": prompt_s, "tokens_s": tokens, "gb_per_token": (io_bytes() - before) / 1e9 / max(1, args.decode)}))


def peer(args, gib, prompt, decode):
    path = group(gib)
    drop(args.model)
    command = [sys.executable, __file__, args.model, "--group", path, "--prompt", str(prompt), "--decode", str(decode), "--threads", str(args.threads)]
    found = subprocess.run(command, capture_output=True, text=True)
    os.rmdir(path)
    if found.returncode:
        return {"failed": found.returncode, "said": found.stderr[-200:]}
    return json.loads(found.stdout.splitlines()[-1])


def ours(args, gib, prompt, decode, image=None):
    drop(args.model)
    command = [args.sphinx, "bench", args.model, "--memory", f"{int(gib * (1 << 30))}", "--prompt-tokens", str(prompt), "--gen-tokens", str(decode),
               "--repeat", "1", "--cold", "--output", "json", "--threads", str(args.threads), "--context", "2560"]
    if image:
        command += ["--image", image]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        return {"failed": found.returncode, "said": found.stderr[-300:]}
    return json.loads(found.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    parser.add_argument("--limits", default="8,12,16", help="GiB")
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--peer-decode", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=8)
    parser.add_argument("--image", help="ours sees it; then --prompt is what it and the text come to, for the peer")
    parser.add_argument("--text", type=int, default=512, help="ids of ours beside the picture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sphinx", default="target/release/sphinx")
    parser.add_argument("--only", choices=("ours", "peer"))
    parser.add_argument("--group")
    args = parser.parse_args()
    if args.group:
        return child(args)
    print("| limit, GiB | whose | prompt, t/s | decoding, t/s | GB per token | bound, t/s | disk, GB/s | hit rate | passes | peak, GiB |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for gib in (float(x) for x in args.limits.split(",")):
        if args.only != "peer":
            o = ours(args, gib, args.text if args.image else args.prompt, args.decode, args.image)
            if "failed" in o:
                print(f"| {gib:g} | ours | failed: {o} |", flush=True)
            else:
                e = o["experts"]
                print(f"| {gib:g} | ours | {o['prefill']['tokens_per_s']:.1f} | {o['decode']['tokens_per_s']:.3f} | {e['bytes_per_token'] / 1e9:.2f} | "
                      f"{e['bound_tokens_per_s']:.3f} | {o['disk_gb_per_s']:.2f} | {e['hit_rate']:.2f} | {o['prefill']['expert_passes']:.2f} | "
                      f"{o['peak_rss_bytes'] / 2**30:.2f} |", flush=True)
        if args.only != "ours":
            p = peer(args, gib, args.prompt, args.peer_decode)
            if "failed" in p:
                print(f"| {gib:g} | llama.cpp | failed: {p} |", flush=True)
            else:
                later = p["tokens_s"][2:] or p["tokens_s"]
                rate = 1 / statistics.median(later) if later else 0
                print(f"| {gib:g} | llama.cpp | {args.prompt / p['prompt_s']:.1f} | {rate:.3f} | {p['gb_per_token']:.2f} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
