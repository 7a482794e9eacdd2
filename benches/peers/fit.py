"""What `sphinx fit` predicts beside what `sphinx bench --memory` takes, over models, contexts, caches, pictures and budgets.

    python fit.py tiny.gguf [intern2.gguf …] --image photo.png [--contexts 512,2048] [--budgets 1.5,2,3,4] [--out points.json]

Each point fills the context: a prompt of all its positions but four, which are decoded. A point counts as right when the peak that
was measured is within 3 % or 50 MB of the one predicted, and as an overrun when it is above the budget.
"""

import argparse
import itertools
import json
import subprocess


def run(binary, *arguments):
    found = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    return found.returncode, (json.loads(found.stdout) if found.stdout.strip() else None), found.stderr.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--image")
    parser.add_argument("--contexts", default="512,1536,2048,4096")
    parser.add_argument("--kv", default="f16,q8_0,f32")
    parser.add_argument("--pictures", default="0,1")
    parser.add_argument("--budgets", default="1,1.5,2,3,6", help="GiB")
    parser.add_argument("--sphinx", default="target/release/sphinx")
    parser.add_argument("--out")
    args = parser.parse_args()
    points, wrong, over, refused = [], 0, 0, 0
    print("| model | context | cache | pictures | budget, GiB | predicted, MiB | measured, MiB | off |\n|---|---:|---|---:|---:|---:|---:|---:|")
    grid = itertools.product(args.models, args.contexts.split(","), args.kv.split(","), args.pictures.split(","), args.budgets.split(","))
    for model, context, kv, pictures, budget in grid:
        memory = int(float(budget) * (1 << 30))
        common = ["--memory", memory, "--context", context, "--kv", kv]
        code, plan, said = run(args.sphinx, "fit", model, *common, "--images", pictures, "--json")
        if code == 2:
            continue  # the picture alone fills the context
        if code == 5:
            refused += 1
            points.append({"model": model, "context": context, "kv": kv, "pictures": pictures, "budget": memory, "refused": said})
            continue
        rows = plan["image_rows"] if pictures != "0" else 0
        prompt = int(context) - rows - 4
        if prompt < 1:
            continue
        picture = ["--image", args.image] if pictures != "0" else []
        code, found, said = run(args.sphinx, "bench", model, *common, *picture, "--prompt-tokens", prompt, "--gen-tokens", 4, "--repeat", 1, "--cold",
                                "--output", "json")
        if code:
            raise SystemExit(f"{model} {common}: {said}")
        predicted, peak = plan["peak_bytes"], found["peak_rss_bytes"]
        off = peak - predicted
        right = abs(off) <= max(0.03 * predicted, 50e6)
        wrong += not right
        over += peak > memory
        points.append({"model": model, "context": context, "kv": kv, "pictures": pictures, "budget": memory, "predicted": predicted, "peak": peak,
                       "group_peak": found["memory"]["peak_bytes"], "right": right})
        print(f"| {model.rsplit('/', 1)[-1]} | {context} | {kv} | {pictures} | {budget} | {predicted / 2**20:.0f} | {peak / 2**20:.0f} | "
              f"{off / 2**20:+.0f} MiB, {100 * off / predicted:+.1f} %{'' if right else ' wrong'} |", flush=True)
        if args.out:
            with open(args.out, "w") as f:
                json.dump(points, f)
    print(f"\n{len(points)} points, {refused} refused, {wrong} off by more than 3 % and 50 MB, {over} above their budget")


if __name__ == "__main__":
    main()
