#!/usr/bin/env python3
"""Greedy answers of a checkpoint in PyTorch, in f32 from its half-precision weights: what sphinx at F32 must say too.

    python evaluate.py dense test.jsonl -o answers-dense.jsonl
    python evaluate.py moe test.jsonl --routing routing.json    also which experts the decoded tokens and the prompts met
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import sentencepiece as spm
import torch
from PIL import Image

import data
from model import Config, from_checkpoint
from tokenizer import prompt

STOP = "\n###"


def load(folder: Path):
    state = torch.load(folder / "consolidated.00-of-01.model.pth")["model"]
    moe = json.loads((folder / "meta.json").read_text())["llama_type"].startswith("mixtral")
    cfg = Config(experts=8 if moe else 0)
    return cfg, *from_checkpoint(state, cfg), spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def answer(cfg, decoder, sp, rows: torch.Tensor, question: str, most: int = 64, routed: list | None = None) -> tuple[str, list[int]]:
    """The reply's text and tokens; `routed` gets each step's experts `[layers][rows, used]`."""
    ids = [sp.bos_id()] + sp.encode(prompt(question))
    embedded = decoder.tok_embeddings(torch.tensor(ids))[None]
    x = torch.cat([embedded[:, :1], rows, embedded[:, 1:]], 1)
    caches = [[] for _ in range(cfg.n_layers)]
    n, out = x.shape[1], []
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    position = torch.arange(n)[None]
    while True:
        seen = [] if routed is not None else None
        h = decoder(x, position, mask, caches, seen)
        if routed is not None:
            routed.append([i.tolist() for _, i in seen])
        best = int(decoder.output(h[0, -1]).argmax())
        if best == sp.eos_id():
            break
        out.append(best)
        text = sp.decode(out)
        if STOP in text or len(out) == most:
            break
        x, position, mask = decoder.tok_embeddings(torch.tensor([[best]])), torch.tensor([[n]]), None
        n += 1
    text = sp.decode(out)
    return text.split(STOP)[0].strip(), out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--routing", type=Path)
    args = parser.parse_args()
    cfg, towers, decoder, sp = load(args.checkpoint)
    right, total, lines, routes = Counter(), Counter(), [], []
    shown = None
    with torch.no_grad():
        for line in args.questions.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["image"] != shown:
                shown = row["image"]
                picture = data.square(Image.open(args.questions.parent / shown).convert("RGB"))
                rows = decoder.rows(torch.cat(towers(torch.from_numpy(np.array(picture))[None]), -1))
            routed = [] if args.routing else None
            text, tokens = answer(cfg, decoder, sp, rows, row["question"], routed=routed)
            routes.append(routed)
            lines.append(json.dumps({"id": row["id"], "text": text, "tokens": tokens}, ensure_ascii=False))
            for key in ("all", row["category"], row["language"], *(("core",) if row["core"] else ())):
                total[key] += 1
                right[key] += text == row["answer"]
    for key in sorted(total):
        print(f"{key:10} {right[key]:4} of {total[key]:4}  {100 * right[key] / total[key]:.1f} %")
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if args.routing:
        args.routing.write_text(json.dumps(routes))


if __name__ == "__main__":
    main()
