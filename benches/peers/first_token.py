"""Time to first token of a question about a picture, in a fresh process over files that are in memory, beside the sum of limits.

    python first_token.py model.gguf photo.jpg [--rounds 3] [--prompt TEXT]

The files are read just before every run. The limits: the matrices of the encoders and of the decoder over all positions, and
attention, at the highest rate of the processor's 8-bit instructions, measured in the same round; nothing for norms,
convolutions, the picture's file or the process. The peak of the process's own memory (RssAnon) is read while it runs.
"""

import argparse
import json
import subprocess
import threading
import time
from pathlib import Path

import common

# Multiplications and additions per view: 40 blocks of DINOv2 ViT-g over 257 tokens and of ConvNeXt-XXL at 512 pixels.
DINOV2 = 40 * 2.0 * 257 * 28_311_552 + 40 * 4.0 * 257 * 257 * 1536
CONVNEXT = 40 * 2.0 * 8 * 16384 * 384 * 384


def run(args):
    """Seconds of the whole process, its answer, and the most memory of its own."""
    command = [args.sphinx, "run", args.model, "--image", args.image, "--raw", "-p", args.prompt, "--temperature", "0", "--max-tokens", "1",
               "--threads", args.threads, "--json"]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    # The pipe is emptied beside, so that its end is seen at once.
    text = []
    reader = threading.Thread(target=lambda: text.append(process.stdout.read()))
    reader.start()
    while reader.is_alive():
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max([peak, *(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))])
        except OSError:
            pass
        reader.join(0.02)
    process.wait()
    return time.perf_counter() - start, json.loads(text[0]), peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--prompt", default="What is in the image, and how many are there? Answer briefly")
    common.options(parser)
    args = parser.parse_args()
    limits = args.limits or common.bench_binary("limits")
    vision = Path(args.model).with_name("mmproj-" + Path(args.model).name)
    card = json.loads(common.sphinx(args.sphinx, "inspect", args.model, "--json"))["card"]
    parts, decoder = {p["part"]: p for p in card["parts"]}, card["decoder"]
    rounds = common.Rounds(args.keep)
    for _ in range(args.rounds):
        limit = common.int8(limits, args.threads)
        common.touch(args.model, vision)
        wall, answer, peak = run(args)
        t = answer["timings"]
        image, n = t["image"], t["prefill_positions"]
        views = card["picture"]["views"]
        operations = views * (DINOV2 + CONVNEXT) + n * 2.0 * parts["decoder"]["parameters"] + 2.0 * parts["output"]["parameters"]
        operations += 4.0 * decoder["heads"] * decoder["head_dim"] * decoder["layers"] * n * n / 2
        rounds.add({"process": wall, "load": t["load_s"], **{k.removesuffix("_s"): v for k, v in image.items() if isinstance(v, float) and v > 0},
                    "prefill": t["prefill_s"], "first token, as the program counts": t["first_token_s"], "sum of limits": operations / limit,
                    "memory": peak, "positions": n})
    print(f"{args.model}, {args.threads} threads, {rounds.median('positions'):.0f} positions, medians of {len(rounds.all)} rounds\n| | seconds |\n|---|---:|")
    for name in rounds.all[0]:
        if name not in ("memory", "positions"):
            print(f"| {name} | {rounds.median(name):.3f} |")
    print(f"the process takes {rounds.ratio('process', 'sum of limits'):.2f} times the sum of limits; own memory at most {rounds.median('memory') / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
