"""What both trainers share: the learning rate over a run, and state that is written whole."""

from __future__ import annotations

import math
from pathlib import Path

import torch

WARM_UP = 200  # steps


def rate(highest: float, step: int, part: float) -> float:
    """The rate at `part` (0 to 1) of a run: a warm-up, then half a cosine down to a fiftieth."""
    return highest * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))


def save(file: Path, state: dict) -> None:
    """Writes `state` beside `file` and renames it, so that an interruption leaves the older one."""
    new = file.with_suffix(".new")
    torch.save(state, new)
    new.rename(file)
