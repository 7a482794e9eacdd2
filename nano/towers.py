#!/usr/bin/env python3
"""Trains the two encoders on what lies in each cell of the picture. Resumes from WORK/towers.pt.

    python towers.py WORK --minutes 60

ConvNeXt sees windows of 192 pixels, a seventh of the work, and whole pictures towards the end; DINOv2 sees whole pictures at 224.
Linear heads on the encoders' outputs name shape, colour, size, mark, place and text of every cell; they are thrown away.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import data
import schedule
from model import Config, Towers

KIND, PLACE, MARK, LETTER = (list(data.HEADS).index(name) for name in ("kind", "place", "mark", "letter"))
SMALL_PRINT = ("mark", "text", "letter")
WINDOWS = 32  # of a batch
WINDOW = 6  # cells of ConvNeXt's windows, each way


class Heads(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.cells = nn.Linear(width, sum(data.HEADS.values()))
        self.facts = nn.Linear(width, 5 + data.FACTS)

    def losses(self, cells, truth, print_weight, skip=()):
        """`cells`: `[B, N, width]`; `truth`: `[B, 7, N]`. Everything has a class everywhere; things weigh more than ground."""
        total = 0.0
        for head, logits in enumerate(self.cells(cells).split(list(data.HEADS.values()), -1)):
            if head in skip:
                continue
            target = truth[:, head]
            thing = (truth[:, KIND] > 0).float()
            weight, scale = thing + 0.15, 1.0
            if list(data.HEADS)[head] in SMALL_PRINT:
                weight, scale = (target > 0).float() + 0.05, print_weight
            elif head == KIND:
                scale = 2.0
            weight = torch.where(target == data.NAMELESS, 0.0, weight)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none", ignore_index=data.NAMELESS).view_as(weight)
            total = total + scale * (loss * weight).sum() / weight.sum()
        return total

    def whole(self, token, facts):
        count, yes = self.facts(token).float().split([5, data.FACTS], -1)
        return F.cross_entropy(count, facts[:, 0]) + 3 * F.binary_cross_entropy_with_logits(yes, facts[:, 1:].float())


def accuracy(towers, heads, truth, squares, facts):
    """Per tower and head, the share of right cells among those where there is something; `ground`: of those where there is not."""
    out = {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = dict(zip(("convnext", "dinov2"), towers(squares)))
        for name, y in tokens.items():
            for head, logits in enumerate(heads[name].cells(y[:, 1:]).split(list(data.HEADS.values()), -1)):
                target = truth[:, head].flatten(1)
                good = logits.argmax(-1) == target
                out[f"{name[:3]}.{list(data.HEADS)[head]}"] = round(good[target > 0].float().mean().item(), 4)
                if head == KIND:
                    out[f"{name[:3]}.ground"] = round(good[target == 0].float().mean().item(), 4)
        out["din.count"] = round((heads["dinov2"].facts(tokens["dinov2"][:, 0])[:, :5].argmax(-1) == facts[:, 0]).float().mean().item(), 4)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="of this schedule; a resumed run goes on where it stopped")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--whole", type=float, default=0.2, help="share of the time, at the end, with whole pictures for ConvNeXt")
    parser.add_argument("--again", action="store_true", help="start the schedule anew from the weights that are there")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    args = parser.parse_args()
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)
    file = args.work / "towers.pt"
    cfg = Config()
    towers = Towers(cfg)
    heads = nn.ModuleDict({"convnext": Heads(cfg.cnx_dims[-1]), "dinov2": Heads(cfg.dino_dim)})
    parameters = [p for p in [*towers.parameters(), *heads.parameters()] if p.requires_grad]
    decay = [p for p in parameters if p.dim() > 1]
    optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": 0.02}, {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}],
                                  lr=args.rate, betas=(0.9, 0.98))
    spent, step = 0.0, 0
    if file.exists():
        state = torch.load(file)
        if args.again:  # a new schedule from trained weights
            state["spent"], state["step"] = 0.0, 0
        towers.load_state_dict(state["towers"])
        heads.load_state_dict(state["heads"])
        if not args.again:
            optimiser.load_state_dict(state["optimiser"])
        spent, step = state["spent"], state["step"]
    squares, truth, facts = (torch.from_numpy(p) for p in data.batch("val", 0, 64))
    stream = data.stream("towers", args.first + step * args.batch, args.batch)
    rng = np.random.default_rng(step)
    saved = last = time.time()
    mean = 0.0
    while spent < 60 * args.minutes:
        part = spent / (60 * args.minutes)
        rate = schedule.rate(args.rate, step, part)
        for group in optimiser.param_groups:
            group["lr"] = rate
        _, (pixels, cells, whole) = next(stream)
        pixels, cells, whole = torch.from_numpy(pixels), torch.from_numpy(cells), torch.from_numpy(whole)
        x = towers.pixels(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            y = towers.dinov2_vitg14(towers.vit_input(x))
            loss = heads["dinov2"].losses(y[:, 1:], cells.flatten(2), 0.3) + heads["dinov2"].whole(y[:, 0], whole)
            if part < 1 - args.whole:
                # Windows on cell borders, where things are, small print before others.
                cut, some = [], []
                for b in range(WINDOWS):
                    small = (cells[b, MARK] > 0) | (cells[b, LETTER] > 0)
                    ys, xs = np.nonzero((small if small.any() and rng.random() < 0.7 else cells[b, KIND] > 0).numpy())
                    at = rng.integers(len(ys))
                    r, c = (int(np.clip(v[at] - rng.integers(WINDOW), 0, data.GRID - WINDOW)) for v in (ys, xs))
                    cut.append(x[b, 32 * r: 32 * (r + WINDOW), 32 * c: 32 * (c + WINDOW)])
                    some.append(cells[b, :, r: r + WINDOW, c: c + WINDOW])
                z, target = torch.stack(cut), torch.stack(some).flatten(2)
                loss = loss + heads["convnext"].losses(towers.openclip_convnext_xxl(z).flatten(1, 2), target, 1.5, skip=(PLACE,))
            else:
                n = WINDOWS // 3
                z = towers.convnext(x[:n])
                loss = loss + heads["convnext"].losses(z[:, 1:], cells[:n].flatten(2), 1.5) + 0.3 * heads["convnext"].whole(z[:, 0], whole[:n])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        now = time.time()
        spent, last = spent + min(now - last, 10.0), now  # a pause is not work
        mean = loss.item() if mean == 0.0 else 0.98 * mean + 0.02 * loss.item()
        done = spent >= 60 * args.minutes
        if step % 100 == 0 or done:
            print(f"{spent / 60:.1f} min, step {step}, loss {mean:.3f}, rate {rate:.2e}, {accuracy(towers, heads, truth, squares, facts) if step % 300 == 0 or done else ''}", flush=True)
        if now - saved > 300 or done:
            schedule.save(file, {"towers": towers.state_dict(), "heads": heads.state_dict(), "optimiser": optimiser.state_dict(), "spent": spent, "step": step})
            saved = now


if __name__ == "__main__":
    main()
