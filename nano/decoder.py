#!/usr/bin/env python3
"""Trains projection, tags and decoder on the features of trained encoders. Resumes from WORK/NAME.pt.

    python decoder.py WORK --minutes 60                      the dense member
    python decoder.py WORK --minutes 60 --experts 8 --start dense
                                     the mixture, its experts from noise and all else from the trained dense member

Features of the training pictures are computed once and kept in WORK/features.npy (f16, 0.26 MB a picture). A sequence is one
picture and a dozen questions: each question sees the picture and the system text, none of the others, and has the positions it
would have alone, so that the picture's part is computed once.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np
import sentencepiece as spm
import torch
import torch.nn.functional as F
from torch import nn

import data
import schedule
import scenes as S
from model import Config, Decoder, Towers
from tokenizer import SYSTEM, prompt

IMAGE_ROWS = 259
BALANCE = 0.01  # weight of the load-balancing loss
HEED = 0.3  # weight of the attention loss, which fades over the run
HEED_LAYERS, HEED_HEADS = (2, 3), (0, 2)  # where it is taken; a second head for the second shape of a comparison


def features(work: Path, towers: Towers, split: str, n: int) -> np.ndarray:
    """`[n, 257, F]` half precision, mapped; made by the first call and continued by later ones."""
    width = 512
    file, done = work / f"features-{split}.npy", work / f"features-{split}.done"
    if not file.exists():
        np.lib.format.open_memmap(file, "w+", np.float16, (n, 257, width)).flush()
        done.write_text("0")
    store = np.lib.format.open_memmap(file, "r+")
    have, step = int(done.read_text()), 20
    n = min(n, len(store))
    if have < n:
        stream = data.stream(split, have, step)
        while have < n:
            _, (squares, _, _) = next(stream)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                y = torch.cat(towers(torch.from_numpy(squares)), -1)
            m = min(step, n - have)
            store[have: have + m] = y[:m].half().numpy()
            have += m
            done.write_text(str(have))
            if have % 2000 == 0:
                print(f"features {split}: {have}", flush=True)
    return store


class Asker:
    """Questions to token sequences."""

    def __init__(self, model: Path):
        self.sp = spm.SentencePieceProcessor(model_file=str(model))
        self.prefix = [self.sp.bos_id()] + self.sp.encode(f"{SYSTEM}\n\n### Human:")

    def branch(self, q: S.Question) -> tuple[list[int], int]:
        """What follows the common prefix, up to the end of the reply, and where the answer begins."""
        asked = [self.sp.bos_id()] + self.sp.encode(prompt(q.question))
        whole = [self.sp.bos_id()] + self.sp.encode(f"{prompt(q.question)} {q.answer}\n###")
        assert asked[: len(self.prefix)] == self.prefix and whole[: len(asked)] == asked, q
        return whole[len(self.prefix):], len(asked) - len(self.prefix)

    def about(self, q: S.Question, answer: list[int]) -> list[tuple[int, ...]]:
        """For each token of the reply the shapes it is about: one for each head of `HEED_HEADS`, or none."""
        out = []
        for k in range(len(answer)):
            # A list is about its parts in turn, and a token belongs to the part that it begins or goes on with.
            part = len(re.findall(r", |; | and ", self.sp.decode(answer[: k + 1]) + " "))
            ends = k >= len(answer) - 2
            if not q.about or ends or (q.type in ("list", "caption") and part >= len(q.about)):
                out.append(())
            else:
                out.append((q.about[part],) if q.type in ("list", "caption") else q.about)
        return out

    def pack(self, many: list[list[S.Question]]) -> dict[str, torch.Tensor]:
        """Sequences `[B, T]` over prefix and branches; the picture's rows stand between the first id and the second."""
        head = len(self.prefix) - 1 + IMAGE_ROWS  # position of the prefix's last row
        rows, about = [], []
        for b, qs in enumerate(many):
            ids, position, branch, target, weight = [], [], [], [], []
            for k, q in enumerate(qs):
                text, begins = self.branch(q)
                n = len(text) - begins
                for j, shapes in enumerate(self.about(q, text[begins:])):
                    about += [(b, len(ids) + begins - 1 + j, head, shape) for head, shape in zip(HEED_HEADS, shapes)]
                ids += text[:-1]
                position += range(head + 1, head + len(text))
                branch += [k + 1] * (len(text) - 1)
                target += [-100] * (begins - 1) + text[begins:]
                weight += [0.0] * (begins - 1) + [n ** -0.5] * n
            rows.append((ids, position, branch, target, weight))
        longest = max(len(r[0]) for r in rows)
        pad = (0, 0, -1, -100, 0.0)
        ids, position, branch, target, weight = (torch.tensor([r[i] + [pad[i]] * (longest - len(r[0])) for r in rows]) for i in range(5))
        whole = torch.cat([torch.zeros(len(rows), head + 1, dtype=torch.long), branch], 1)
        order = torch.arange(whole.shape[1])
        mask = (order[:, None] >= order) & ((whole[:, None, :] == 0) | (whole[:, None, :] == whole[:, :, None]))
        positions = torch.cat([torch.arange(head + 1).expand(len(rows), -1), position], 1)
        return {"ids": ids, "positions": positions, "mask": mask[:, None], "target": target, "weight": weight, "branch": branch,
                "about": about}


def run(decoder: Decoder, asker: Asker, seen: torch.Tensor, packed: dict, balance=None, heed=None) -> torch.Tensor:
    """Logits `[B, T, vocab]` of the branches' rows."""
    prefix = decoder.tok_embeddings(torch.tensor(asker.prefix)).expand(len(seen), -1, -1)
    x = torch.cat([prefix[:, :1], decoder.rows(seen), prefix[:, 1:], decoder.tok_embeddings(packed["ids"])], 1)
    x = decoder(x, packed["positions"], packed["mask"], balance=balance, heed=heed)
    return decoder.output(x[:, -packed["ids"].shape[1]:])


def right(logits, packed) -> list[list[bool]]:
    """Per picture and question: would greedy decoding give the answer, and stop after it?"""
    good = (logits.argmax(-1) == packed["target"]) | (packed["target"] < 0)
    return [[bool(good[b][packed["branch"][b] == k].all()) for k in range(1, int(packed["branch"][b].max()) + 1)] for b in range(len(good))]


def balance_loss(routed) -> torch.Tensor:
    """Experts · Σ over experts of share of choices × mean probability: 1 when both are even."""
    total = 0.0
    for p, ids in routed:
        e = p.shape[-1]
        share = torch.bincount(ids.flatten(), minlength=e).float() / ids.numel()
        total = total + e * (share * p.mean(0)).sum()
    return total / len(routed)


def heed_loss(heeded, packed, cells: list[np.ndarray]) -> torch.Tensor:
    """−log of the attention that the token of an answer pays to the cells of the shape it is about.

    What belongs together in a picture (a mark and a shape, a shape and its place) is learnt by attending to one shape and
    reading the rest there. Left alone the decoder finds this late or never; told where to look, it does so in minutes.
    """
    b, t, head, shape = torch.tensor(packed["about"]).T
    first = packed["mask"].shape[-1] - packed["ids"].shape[1]
    owned = torch.from_numpy(np.stack([cells[i][s] for i, s in zip(b.tolist(), shape.tolist())]))
    seen, total = packed["mask"][b, 0, first + t], 0.0
    for layer in HEED_LAYERS:
        q, k = (x.float() for x in heeded[layer])
        group = q.shape[2] // k.shape[2]
        scores = torch.full(seen.shape, -torch.inf)
        for h in HEED_HEADS:
            for i in range(len(q)):
                at = ((head == h) & (b == i)).nonzero()[:, 0]
                scores = scores.index_put((at,), q[i, first + t[at], h] @ k[i, :, h // group].T)
        scores = torch.where(seen, scores / q.shape[-1] ** 0.5, -torch.inf)
        # The picture's cells stand after the first id, its tag and the summary row.
        mine = torch.where(owned, scores[:, 3: 3 + owned.shape[1]], -torch.inf)
        total = total + (scores.logsumexp(-1) - mine.logsumexp(-1)).mean()
    return total / len(HEED_LAYERS)


def score(decoder, asker, seen, rows) -> dict[str, float]:
    """Accuracy on rows of `scenes.dataset`, by type."""
    by: dict[str, list[bool]] = {}
    pictures = sorted({i for i, _ in rows})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for at in range(0, len(pictures), 10):
            some = pictures[at: at + 10]
            many = [[q for i, q in rows if i == p] for p in some]
            packed = asker.pack(many)
            logits = run(decoder, asker, torch.from_numpy(seen[some].astype(np.float32)), packed)
            for qs, oks in zip(many, right(logits, packed)):
                for q, ok in zip(qs, oks):
                    for key in ("all", q.type, *(("core",) if q.type in S.CORE else ()), *(("foreign",) if q.language != "en" else ())):
                        by.setdefault(key, []).append(ok)
    return {k: round(100 * sum(v) / len(v), 1) for k, v in sorted(by.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--experts", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=12000)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--long", type=int, default=5, help="of the questions, so many ask for lists")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--name", default=None, help="of the file in WORK; default dense, or moe with experts")
    parser.add_argument("--again", action="store_true", help="start the schedule anew from the weights that are there")
    parser.add_argument("--start", default=None, help="take from WORK/START.pt what fits, when there is nothing to resume")
    args = parser.parse_args()
    torch.manual_seed(0)
    cfg = Config(experts=args.experts)
    name = args.name or ("moe" if args.experts else "dense")
    towers = Towers(cfg)
    towers.load_state_dict(torch.load(args.work / "towers.pt")["towers"])
    towers.eval()
    asker = Asker(args.work / "tokenizer.model")
    val = features(args.work, towers, "val", 100)
    rows = S.dataset("val", 100)
    seen = features(args.work, towers, "train", args.pictures)
    decoder = Decoder(cfg)
    if args.start:
        fits = {k: v for k, v in torch.load(args.work / f"{args.start}.pt")["smooth"].items() if k in decoder.state_dict()}
        fits = {k: v for k, v in fits.items() if v.shape == decoder.state_dict()[k].shape}
        decoder.load_state_dict(fits, strict=False)
    smooth = Decoder(cfg)  # mean of the last few hundred steps' weights
    smooth.load_state_dict(decoder.state_dict())
    parameters = list(decoder.parameters())
    # Muon for the layers' matrices, AdamW for embeddings, norms and stacks of experts; the same rate suits both.
    matrices = [p for n, p in decoder.named_parameters() if p.dim() == 2 and n.startswith("layers") and "gate" not in n]
    others = [p for p in parameters if not any(p is m for m in matrices)]
    optimisers = [torch.optim.Muon(matrices, lr=args.rate, weight_decay=0.03, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW([{"params": [p for p in others if p.dim() > 1], "weight_decay": 0.03},
                                     {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0}], lr=args.rate, betas=(0.9, 0.98))]
    file, spent, step = args.work / f"{name}.pt", 0.0, 0
    if file.exists():
        state = torch.load(file)
        decoder.load_state_dict(state["decoder"]); smooth.load_state_dict(state["smooth"])
        for o, kept in zip(optimisers, state.get("optimisers", [])):
            o.load_state_dict(kept)
        spent, step = (0.0, state["step"]) if args.again else (state["spent"], state["step"])
    last = saved = time.time()
    mean = mean_heed = 0.0
    while spent < 60 * args.minutes:
        part = spent / (60 * args.minutes)
        rate = schedule.rate(args.rate, step, part)
        for group in (g for o in optimisers for g in o.param_groups):
            group["lr"] = rate
        rng = np.random.default_rng(step)
        some = np.sort(rng.choice(len(seen), args.batch, replace=False))
        packed = asker.pack([data.picked(int(i), args.questions, seed=step, long=args.long) for i in some])
        routed = [] if args.experts else None
        heeded = []
        with torch.autocast("cpu", torch.bfloat16):
            logits = run(decoder, asker, torch.from_numpy(seen[some].astype(np.float32)), packed, routed, heeded).float()
        loss = F.cross_entropy(logits.flatten(0, 1), packed["target"].flatten(), ignore_index=-100, reduction="none")
        loss = (loss * packed["weight"].flatten()).sum() / packed["weight"].sum()
        heed = heed_loss(heeded, packed, [data.cells(S.scene("train", int(i))) for i in some])
        total = loss + HEED * (1 - part) * heed
        if routed:
            total = total + BALANCE * balance_loss(routed)
        decoder.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for o in optimisers:
            o.step()
        step += 1
        with torch.no_grad():
            keep = min(0.998, step / (step + 20))
            for s, p in zip(smooth.parameters(), parameters):
                s.lerp_(p, 1 - keep)
        now = time.time()
        spent, last = spent + min(now - last, 10.0), now  # a pause is not work
        fresh = mean == 0.0
        mean, mean_heed = (m + (1.0 if fresh else 0.02) * (v.item() - m) for m, v in ((mean, loss), (mean_heed, heed)))
        done = spent >= 60 * args.minutes
        if step % 50 == 0 or done:
            print(f"{spent / 60:.1f} min, step {step}, loss {mean:.4f}, attention {mean_heed:.3f}, rate {rate:.2e} {score(smooth, asker, val, rows) if step % 500 == 0 or done else ''}", flush=True)
        if now - saved > 300 or done:
            schedule.save(file, {"decoder": decoder.state_dict(), "smooth": smooth.state_dict(), "optimisers": [o.state_dict() for o in optimisers], "spent": spent, "step": step})
            saved = now


if __name__ == "__main__":
    main()
