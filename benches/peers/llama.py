"""Stock llama.cpp beside ours on the same GGUF, interleaved: prefill of 512 and 1300, decoding at contexts 64 and 1400.

    python llama.py model.gguf [--rounds 3] [--kv q8_0] [--isa avx2] [--only prefill-512,decode-64]

llama.cpp is the library that comes with llama-cpp-python, driven as its own llama-bench does: random ids, n_batch 2048,
n_ubatch 512, flash attention on, cache in f16, mapped file, one warm-up. Shares are of limits that are measured in each round:
prefill of the int8 instructions, decoding of a read of memory.
"""

import argparse
import ctypes
import json
import os
import random
import time

import common

PARTS = ["prefill-512", "prefill-1300", "decode-64", "decode-1400"]
GENERATED = 64


class Llama:
    def __init__(self, path, threads, kv):
        import llama_cpp

        self.lib = lib = llama_cpp.llama_cpp
        self.quiet = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self.quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        start = time.perf_counter()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        context = lib.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = 2048, 2048, 512
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        context.type_k = context.type_v = {"f16": 1, "q8_0": 8}[kv]
        self.context = lib.llama_init_from_model(self.model, context)
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.load_s = time.perf_counter() - start
        self.random = random.Random(1)
        self.prefill(32)
        self.decode(2)

    def feed(self, n):
        ids = (self.lib.llama_token * n)(*(self.random.randrange(self.vocabulary) for _ in range(n)))
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(ids, n)) != 0:
            raise SystemExit("llama_decode failed")

    def prefill(self, n):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        start = time.perf_counter()
        self.feed(n)
        self.lib.llama_synchronize(self.context)
        return n / (time.perf_counter() - start)

    def decode(self, n):
        start = time.perf_counter()
        for _ in range(n):
            self.feed(1)
            self.lib.llama_synchronize(self.context)
        return n / (time.perf_counter() - start)

    def run(self, part):
        what, n = part.split("-")
        rate = self.prefill(int(n))
        return rate if what == "prefill" else self.decode(GENERATED)


def ours(args, part):
    what, n = part.split("-")
    env = {"SPHINX_ISA": args.isa} if args.isa else {}
    generate = 1 if what == "prefill" else GENERATED
    found = common.bench(args.sphinx, args.model, "--prompt-tokens", n, "--gen-tokens", generate, "--kv", args.kv,
                         threads=args.threads, env=env)
    return found[what]["tokens_per_s"]


def work(args):
    """Bytes of weights and operations per token, and operations of attention per position before it."""
    card = json.loads(common.sphinx(args.sphinx, "inspect", args.model, "--json"))["card"]
    parts, decoder = {p["part"]: p for p in card["parts"]}, card["decoder"]
    return {"bytes": parts["decoder"]["bytes"] + parts["output"]["bytes"], "layers": 2 * parts["decoder"]["parameters"],
            "attention": 4 * decoder["heads"] * decoder["head_dim"] * decoder["layers"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    common.options(parser)
    parser.add_argument("--kv", default="f16", choices=["f16", "q8_0"])
    parser.add_argument("--isa", help="SPHINX_ISA for ours; llama.cpp has to be built for the same (README.md)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--no-peer", action="store_true", help="ours and the limits alone")
    args = parser.parse_args()
    parts = args.only.split(",")
    limits = args.limits or common.bench_binary("limits")
    rounds, cost = common.Rounds(args.keep), work(args)
    common.touch(args.model)
    peer = None if args.no_peer else Llama(args.model, args.threads, args.kv)
    for _ in range(args.rounds):
        one = {}
        for part in parts:
            common.touch(args.model)
            limit = lambda: common.read(limits, args.threads) if part.startswith("decode") else common.int8(limits, args.threads, args.isa)
            before = limit()
            one[f"{part}-ours"] = ours(args, part)
            # Memory drifts, so what comes before and after both count.
            between = limit()
            one[f"{part}-limit"] = (before + between) / 2
            if peer:
                one[f"{part}-peer"] = peer.run(part)
                common.pause()
                one[f"{part}-peer-limit"] = (between + limit()) / 2
        rounds.add(one)
    print(f"{args.model}, {args.threads} threads, kv {args.kv}, medians of {len(rounds.all)} rounds; ratios and shares of each round")
    if peer:
        print(f"llama.cpp loads in {peer.load_s:.2f} s")
    print("| | ours | llama.cpp | ratio | limit | our share | its share |\n|---|---:|---:|---:|---:|---:|---:|")
    for part in [p for p in PARTS if rounds.of(f"{p}-ours")]:
        what, n = part.split("-")
        # As the limits in the record are counted: 512 without attention, which makes 2 %, longer ones with it.
        each = cost["bytes"] if what == "decode" else cost["layers"] + (cost["attention"] * int(n) / 2 if int(n) > 512 else 0)
        share = lambda who, limit: 100 * each * rounds.ratio(f"{part}-{who}", f"{part}-{limit}")
        limit = rounds.median(f"{part}-limit")
        shown = f"{limit / 1e9:.1f} GB/s" if what == "decode" else f"{limit / 1e12:.2f} TOPS"
        print(f"| {part} | {rounds.median(part + '-ours'):.1f} | {rounds.median(part + '-peer'):.1f} | "
              f"{rounds.ratio(part + '-ours', part + '-peer'):.2f} | {shown} | {share('ours', 'limit'):.1f} % | {share('peer', 'peer-limit'):.1f} % |")
    if rounds.of("decode-64-ours") and rounds.of("decode-1400-ours"):
        print(f"decoding at 1400 is {100 * (rounds.ratio('decode-64-ours', 'decode-1400-ours') - 1):.1f} % slower than at 64")


if __name__ == "__main__":
    main()
