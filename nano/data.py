"""Training pictures: the 512 square the model sees, and per cell of 32 pixels what is there."""

from __future__ import annotations

import multiprocessing
import random

import numpy as np
from PIL import Image

import scenes as S

PAD = (122, 116, 104)
SIDE, GRID = 512, 16
# Classes of a cell's heads; 0 is "nothing".
HEADS = {"kind": 2 + len(S.SHAPES), "colour": 1 + len(S.COLOURS), "size": 1 + len(S.SIZES), "mark": 5, "place": 10, "text": 1 + len(S.TEXTS),
         "letter": 37}
NAMELESS = -100  # the class of a colour that has no name: nothing is learnt from it
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Facts of a whole picture: number of shapes (5 classes), then yes or no for colours, shapes and places.
FACTS = len(S.COLOURS) + len(S.SHAPES) + 9


def square(image: Image.Image) -> np.ndarray:
    """Centred padding, then Pillow's bicubic to 512: `[512, 512, 3]` 8-bit."""
    w, h = image.size
    side = max(w, h)
    board = Image.new("RGB", (side, side), PAD)
    board.paste(image, ((side - w) // 2, (side - h) // 2))
    return np.asarray(board.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def labels(scene: S.Scene) -> tuple[np.ndarray, np.ndarray]:
    """Per head `[7, 16, 16]` the class of each cell, and the picture's facts `[1 + FACTS]`."""
    out = np.zeros((len(HEADS), GRID, GRID), np.int64)
    cover = np.full((GRID, GRID), 0.2)
    side = max(scene.width, scene.height)
    k, dx, dy = GRID / side, (side - scene.width) // 2, (side - scene.height) // 2
    edge = np.arange(GRID)
    for item in scene.shapes + ([scene.text] if scene.text else []):
        x0, y0, x1, y1 = (item.box[0] + dx) * k, (item.box[1] + dy) * k, (item.box[2] + dx) * k, (item.box[3] + dy) * k
        across = np.clip(np.minimum(x1, edge + 1) - np.maximum(x0, edge), 0, 1)
        down = np.clip(np.minimum(y1, edge + 1) - np.maximum(y0, edge), 0, 1)
        share = down[:, None] * across
        # A thing smaller than a cell or two still owns the cells that hold most of it.
        mine = share > np.minimum(cover, 0.45 * share.max())
        mine &= share >= cover * (share.max() > 0.5)
        cover = np.where(mine, np.maximum(share, cover), cover)
        if item is scene.text:
            values = (1 + len(S.SHAPES), 1 + list(S.COLOURS).index(item.colour), 0, 0, 1 + item.place, 1 + S.TEXTS.index(item.kind))
        else:
            colour = 1 + list(S.COLOURS).index(item.colour) if item.colour else NAMELESS
            values = (1 + S.SHAPES.index(item.kind), colour, 1 + list(S.SIZES).index(item.size),
                      item.mark, 1 + item.place, 0)
        for head, value in enumerate(values):
            out[head][mine] = value
        out[-1][mine] = 0
        for letter, left, right in zip(item.kind, item.edges, item.edges[1:]):
            # A letter has the columns whose middle it covers.
            columns = (edge + 0.5 >= (left + dx) * k) & (edge + 0.5 < (right + dx) * k)
            out[-1][mine & columns] = 1 + LETTERS.index(letter)
    facts = np.zeros(1 + FACTS, np.int64)
    facts[0] = len(scene.shapes)
    for item in scene.shapes:
        if item.colour:
            facts[1 + list(S.COLOURS).index(item.colour)] = 1
        for at in (len(S.COLOURS) + S.SHAPES.index(item.kind), len(S.COLOURS) + len(S.SHAPES) + item.place):
            facts[1 + at] = 1
    return out, facts


def cells(scene: S.Scene) -> np.ndarray:
    """Per shape of a scene the cells it owns: `[shapes, 256]`. No two shapes have the same place."""
    place = labels(scene)[0][list(HEADS).index("place")].ravel()
    return np.stack([place == 1 + item.place for item in scene.shapes])


def batch(split: str, start: int, n: int):
    """Scenes `start..start + n` of a split: squares, cells, facts."""
    made = []
    for i in range(start, start + n):
        scene = S.scene(split, i)
        image = S.draw(scene)
        made.append((square(image), *labels(scene)))
    return tuple(np.stack(part) for part in zip(*made))


def _work(split, start, n, step, queue):
    while True:
        queue.put((start, batch(split, start, n)))
        start += step


def stream(split: str, start: int, n: int, workers: int = 1):
    """Batches without end, drawn ahead by other processes."""
    queue = multiprocessing.get_context("fork").Queue(maxsize=4)
    for w in range(workers):
        multiprocessing.Process(target=_work, args=(split, start + w * n, n, workers * n, queue), daemon=True).start()
    while True:
        yield queue.get()


# What is hardest to learn is asked most.
TRAINING = S.WEIGHTS | {"where": 2.2, "mark": 2.8, "colour": 2.0, "relation": 1.8, "text": 0.8, "count": 0.8}


def picked(index: int, n: int, seed: int = 0, long: int = 0) -> list[S.Question]:
    """`n` training questions about training scene `index`, of which `long` have long answers, as far as there are so many."""
    rng = random.Random(f"ask {index} {seed}")
    scene = S.scene("train", index)
    lists = S.lists(scene) if long else []
    chosen = rng.sample(lists, min(long, len(lists)))
    return chosen + S.choose(S.questions(scene), rng, n - len(chosen), 0.13, TRAINING)
