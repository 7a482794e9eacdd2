#!/usr/bin/env python3
"""What the mixture's routers do, from `evaluate.py --routing FILE`: load per expert, and how soon an expert comes again.

    python routing.py FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    answers = json.loads(Path(sys.argv[1]).read_text())
    layers = len(answers[0][0])
    experts = 1 + max(e for a in answers for step in a for layer in step for row in layer for e in row)
    print("| layer | rows | share of the choices, by expert, % | largest / even |", "|---|---|---|---|", sep="\n")
    for layer in range(layers):
        for name, pick in (("prompt", lambda a: a[0][layer]), ("reply", lambda a: [step[layer][0] for step in a[1:]])):
            chosen = np.concatenate([np.array(pick(a)).reshape(-1) for a in answers if pick(a)]).astype(int)
            share = np.bincount(chosen, minlength=experts) / len(chosen)
            print(f"| {layer} | {name} | {' '.join(f'{100 * s:.0f}' for s in share)} | {share.max() * experts:.2f} |")
    print()
    print("| layer | a token's experts that the token before used, % | by chance, given the load, % | distinct experts in 8 tokens of a reply |",
          "|---|---|---|---|", sep="\n")
    for layer in range(layers):
        again, pairs, distinct = 0, 0, []
        load = np.zeros(experts)
        for a in answers:
            row = [set(step[layer][-1]) for step in a]
            for before, now in zip(row, row[1:]):
                again += len(before & now)
                pairs += len(now)
            for now in row:
                for e in now:
                    load[e] += 1
            if len(row) > 8:
                distinct += [len(set().union(*row[i: i + 8])) for i in range(1, len(row) - 7)]
        used = len(row[0])
        chance = used * ((load / load.sum()) ** 2).sum()
        print(f"| {layer} | {100 * again / pairs:.0f} | {100 * chance:.0f} | {np.mean(distinct):.1f} |")


if __name__ == "__main__":
    main()
