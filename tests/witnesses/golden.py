#!/usr/bin/env python3
"""Runs cases of the PyTorch reference through the built binary and prints the figures. Run by hand.

    python tests/witnesses/golden.py target/release/sphinx CASE_DIR... [--types F32,F16,Q8_0,Q4_K_M,Q4_0,Q6_K,Q5_K_M]

F32 and F16 and Q8_0 are compared with the recorded activations; the other types with our own F32 run on the
de-quantised weights (`sphinx quantize --quant F32` of both files), once with the kernels of this CPU and once with
SPHINX_ISA=portable and SPHINX_ACTIVATIONS=f32.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

args = sys.argv[1:]
types = "F32,F16,Q8_0,Q4_K_M,Q4_0,Q6_K,Q5_K_M".split(",")
if "--types" in args:
    at = args.index("--types")
    types = args[at + 1].split(",")
    del args[at:at + 2]
sphinx, cases = args[0], [Path(a) for a in args[1:]]


def run(*command, **env):
    done = subprocess.run([sphinx, *map(str, command)], capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def outputs(model, case, folder, tag, **env):
    info = json.loads((case / "case.json").read_text())
    picture = case / info.get("image", "image.png")
    e, l, t = (folder / f"{tag}-{k}.safetensors" for k in ("embed", "logits", "text"))
    run("embed", model, "--image", picture, "-o", e, **env)
    run("logits", model, "--image", picture, "-p", info["prompt"], "-o", l, **env)
    run("logits", model, "-p", info["prompt"], "-o", t, **env)
    return load_file(e), load_file(l), load_file(t)


for case in cases:
    info = json.loads((case / "case.json").read_text())
    want = load_file(case / "expected.safetensors")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for ty in types:
            model = folder / f"{ty}.gguf"
            more = ["--clip-activation", "quick-gelu"] if info.get("clip_quick_gelu") else []
            more += ["--pad-anchor", "top_left"] if info.get("skip") else []
            more += ["--layout", case / "layout.toml"] if (case / "layout.toml").exists() else []
            run("convert", case / "checkpoint", "-o", model, "--quant", ty, "--vision-quant", ty, *more)
            embed, logits, text = outputs(model, case, folder, ty)
            if ty in ("F32", "F16", "Q8_0"):
                stride = 16 if want["rows"].shape[0] < embed["rows"].shape[0] else 1
                rows = embed["rows"][::stride]
                line = f"{case.name} {ty}: rows max abs {np.abs(rows - want['rows'].astype(np.float32)).max():.2e} min cos {cosines(rows, want['rows']).min():.6f}"
                for key in want:
                    if key.startswith("view."):
                        got = embed[key][::16]
                        line += f"; {key} {np.abs(got - want[key]).max():.1e} cos {cosines(got, want[key]).min():.6f}"
                for key, got in (("logits", logits["logits"]), ("text_logits", text["logits"])):
                    c = cosines(got, want[key])
                    line += f"; {key} max abs {np.abs(got - want[key]).max():.2e} mean cos {c.mean():.6f} min {c.min():.6f}"
                assert (logits["tokens"] == want["tokens"]).all()
                if ty == "F32" and (case / "square.png").exists():
                    square = np.asarray(Image.open(case / "square.png").convert("RGB")).astype(np.float32)
                    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
                    std = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
                    back = (square / np.float32(255) - mean) / std
                    line += f"; square {'equal' if (back.transpose(2, 0, 1) == embed['image']).all() else 'DIFFERS'}"
                if ty == "F32":
                    out = json.loads(run("run", model, "--image", case / info.get("image", "image.png"), "-p", info["prompt"], "--temperature", 0,
                                         "--max-tokens", 16, "--json"))
                    line += f"; greedy {'equal' if out['tokens'] == want['greedy'].tolist() else 'DIFFER ' + str(out['tokens']) + str(want['greedy'].tolist())}"
                print(line, flush=True)
            else:
                wide = folder / f"{ty}-wide.gguf"
                run("quantize", model, "-o", wide, "--quant", "F32")
                run("quantize", folder / f"mmproj-{ty}.gguf", "-o", folder / f"mmproj-{ty}-wide.gguf", "--quant", "F32")
                e0, l0, t0 = outputs(wide, case, folder, ty + "wide")
                c, cr = cosines(logits["logits"], l0["logits"]), cosines(embed["rows"], e0["rows"])
                ct = cosines(text["logits"], t0["logits"])
                exact = outputs(model, case, folder, ty + "exact", SPHINX_ISA="portable", SPHINX_ACTIVATIONS="f32")
                worst = [np.abs(a[k] - b[k]).max() for a, b, k in zip(exact, (e0, l0, t0), ("rows", "logits", "logits"))]
                print(f"{case.name} {ty}: rows min cos {cr.min():.6f}; logits mean cos {c.mean():.6f} min {c.min():.6f}; text mean {ct.mean():.6f} min {ct.min():.6f}; "
                      f"portable f32 max abs rows {worst[0]:.1e} logits {worst[1]:.1e} text {worst[2]:.1e}", flush=True)
