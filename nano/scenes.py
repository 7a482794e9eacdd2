#!/usr/bin/env python3
"""Synthetic scenes and questions about them, from a seed.

    python scenes.py OUT                writes the test set: OUT/test.jsonl, OUT/test/NNN.png
    python scenes.py OUT --split val    the same of another split
    python scenes.py --sheet FILE.png   a contact sheet of training scenes, to look at

A scene has one to four shapes in different places of a 3×3 grid, and sometimes a digit, a word, or a numbered mark on each
shape. Splits differ by seed, and by pairs of colour and shape: the pairs of `HELD_OUT` appear in no training scene, and every
scene of the split that owns them has at least one.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = {"red": (220, 30, 35), "orange": (245, 140, 20), "yellow": (245, 220, 40), "green": (40, 160, 60),
           "blue": (40, 80, 220), "purple": (135, 50, 175), "black": (20, 20, 20), "white": (245, 245, 245)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = {"small": 0.48, "medium": 0.7, "large": 0.95}
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
WORDS = ("CAT", "DOG", "SUN", "STOP", "EXIT", "OPEN", "HELLO", "TAXI", "MILK", "FISH", "BOOK", "TREE", "ZOO", "HOTEL", "BUS", "GO")
DIGITS = tuple("0123456789")
TEXTS = DIGITS + WORDS

# Pairs of colour and shape that one split has to itself.
HELD_OUT = {
    "test": {("red", "star"), ("blue", "triangle"), ("green", "ring"), ("yellow", "cross"), ("purple", "square"), ("orange", "circle")},
    "val": {("white", "star"), ("black", "ring"), ("red", "square"), ("green", "circle")},
}


@dataclass
class Item:
    """A shape, or a text, in a place of the grid. `box`: left, top, right, bottom in the picture."""

    kind: str
    colour: str
    size: str
    place: int
    box: tuple[float, float, float, float] = (0, 0, 0, 0)
    mark: int = 0
    turn: float = 0.0
    rgb: tuple[int, int, int] = (0, 0, 0)
    edges: tuple[float, ...] = ()  # of a text: where its letters begin, and the last ends, as drawn


@dataclass
class Scene:
    width: int
    height: int
    shapes: list[Item]
    text: Item | None = None
    ground: dict = field(default_factory=dict)
    smooth: bool = True
    seed: int = 0

    @property
    def marked(self) -> bool:
        return any(s.mark for s in self.shapes)


def distance(a, b) -> float:
    return math.dist(a, b)


def jitter(rng: random.Random, rgb, by: int):
    return tuple(max(0, min(255, c + rng.randint(-by, by))) for c in rgb)


def ground_colour(rng: random.Random) -> tuple[int, int, int]:
    """White, pale, grey or dark; seldom strong."""
    pick = rng.random()
    if pick < 0.25:
        return (255, 255, 255)
    grey = rng.randint(175, 245) if pick < 0.6 else rng.randint(90, 175) if pick < 0.8 else rng.randint(15, 90)
    return jitter(rng, (grey, grey, grey), 35)


def scene(split: str, index: int) -> Scene:
    """The scene of a split and a number: always the same."""
    rng = random.Random(f"sphinx-nano {split} {index}")
    # The encoders meet small print more often than it is asked about.
    shares = (0.08, 0.2, 0.3, 0.42) if split == "towers" else (0.42, 0.14, 0.17, 0.27)
    extra = rng.choices(("nothing", "digit", "word", "marks"), shares)[0]
    aspect = 1.0 if rng.random() < 0.6 else rng.choice((4 / 3, 3 / 2) if extra == "marks" else (4 / 3, 3 / 2, 16 / 9, 2.0))
    long = rng.choice((192, 224, 256, 256, 288, 320) if split in HELD_OUT else (192, 224, 256, 256, 320, 384, 448, 512))
    if extra == "marks" or aspect > 1.5:
        long = max(long, 256)
    short = round(long / aspect)
    width, height = (long, short) if rng.random() < 0.5 else (short, long)
    while True:
        kind = rng.choices(("plain", "gradient", "noisy"), (0.45, 0.3, 0.25))[0]
        ground = {"kind": kind, "a": ground_colour(rng), "seed": rng.randint(0, 1 << 30)}
        ground["b"] = jitter(rng, ground["a"], 50) if kind == "gradient" else ground["a"]
        ground["angle"], ground["strength"] = rng.uniform(0, 2 * math.pi), rng.randint(8, 28)
        usable = [c for c, v in COLOURS.items() if min(distance(v, ground["a"]), distance(v, ground["b"])) > 115]
        mine = [p for p in HELD_OUT.get(split, ()) if p[0] in usable]
        if len(usable) >= 5 and (mine or split not in HELD_OUT):
            break
    n = rng.randint(1, 4)
    places = list(range(9))
    text = None
    if extra == "word":
        row = rng.randrange(3)
        places = [p for p in places if p // 3 != row]
        text = Item(rng.choice(WORDS), "", "", 3 * row + 1)
    rng.shuffle(places)
    if extra == "digit":
        text = Item(rng.choice(DIGITS), "", "", places.pop())
    if text:
        text.colour = rng.choice([c for c in usable if c in ("black", "white", "red", "blue")] or usable)
        text.rgb = jitter(rng, COLOURS[text.colour], 15)
    banned = set().union(*(v for k, v in HELD_OUT.items() if k != split))
    pairs = [(c, s) for c in usable for s in SHAPES if (c, s) not in banned]
    chosen = rng.sample(pairs, n)
    if mine and not any(p in HELD_OUT[split] for p in chosen):
        chosen[0] = rng.choice(sorted(mine))
    rng.shuffle(chosen)
    sizes = ("medium", "large") if extra == "marks" else tuple(SIZES)
    shapes = [Item(s, c, rng.choice(sizes), places[i], turn=rng.uniform(-18, 18), rgb=jitter(rng, COLOURS[c], 16))
              for i, (c, s) in enumerate(chosen)]
    if split == "towers":
        # Half of the shapes have any colour at all and no name for it, so that a shape is not told by which colours it comes in.
        # None is near a colour that the shape never has in training.
        for item in shapes:
            rgb = tuple(rng.randrange(256) for _ in range(3))
            apart = min(distance(rgb, g) for g in (ground["a"], ground["b"])) > 90
            named = any(distance(rgb, COLOURS[c]) < 75 for c, kind in banned if kind == item.kind)
            if apart and not named and rng.random() < 0.7:
                item.colour, item.rgb = "", rgb
    if extra == "marks":
        for item, mark in zip(shapes, rng.sample(range(1, n + 1), n)):
            item.mark = mark
    shapes.sort(key=lambda s: s.place)
    cell = min(width, height) / 3
    for item in shapes + ([text] if text else []):
        cx, cy = (item.place % 3 + 0.5) * width / 3, (item.place // 3 + 0.5) * height / 3
        if item is text:
            side = cell * rng.uniform(0.62, 0.9)
            item.box = (cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2)
            continue
        side = cell * SIZES[item.size] * rng.uniform(0.93, 1.05)
        free_x, free_y = max(0.0, (width / 3 - side) / 2), max(0.0, (height / 3 - side) / 2)
        cx += rng.uniform(-1, 1) * min(free_x, 0.25 * cell)
        cy += rng.uniform(-1, 1) * min(free_y, 0.25 * cell)
        item.box = (cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2)
    return Scene(width, height, shapes, text, ground, smooth=rng.random() < 0.75, seed=index)


# ---- drawing -------------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)
def font_files() -> list[str | None]:
    """Pillow's own face, and the DejaVu faces that matplotlib carries."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [None, *(str(folder / f"{n}.ttf") for n in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold"))]


@functools.lru_cache(maxsize=512)
def font(which: int, size: int):
    name = font_files()[which]
    return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)


def outline(kind: str, cx: float, cy: float, r: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape that fills a circle or square of half side `r`."""
    a = math.radians(turn)

    def at(angle: float, radius: float):
        return cx + radius * math.cos(angle), cy + radius * math.sin(angle)

    def square(points):
        return [(cx + x * math.cos(a) - y * math.sin(a), cy + x * math.sin(a) + y * math.cos(a)) for x, y in points]

    if kind == "square":
        s = 0.86 * r
        return square([(-s, -s), (s, -s), (s, s), (-s, s)])
    if kind == "triangle":
        return [at(a - math.pi / 2 + k * 2 * math.pi / 3, 1.08 * r) for k in range(3)]
    if kind == "star":
        return [at(a - math.pi / 2 + k * math.pi / 5, 1.05 * r if k % 2 == 0 else 0.43 * r) for k in range(10)]
    w, s = 0.32 * r, r
    return square([(-w, -s), (w, -s), (w, -w), (s, -w), (s, w), (w, w), (w, s), (-w, s), (-w, w), (-s, w), (-s, -w), (-w, -w)])


def ground(scene: Scene) -> Image.Image:
    g, (w, h) = scene.ground, (scene.width, scene.height)
    if g["kind"] == "plain":
        return Image.new("RGB", (w, h), g["a"])
    a, b = np.array(g["a"], np.float32), np.array(g["b"], np.float32)
    if g["kind"] == "gradient":
        y, x = np.mgrid[0:h, 0:w].astype(np.float32)
        t = (x / w - 0.5) * math.cos(g["angle"]) + (y / h - 0.5) * math.sin(g["angle"])
        return Image.fromarray((a + (b - a) * (t[..., None] / 1.42 + 0.5)).clip(0, 255).astype(np.uint8))
    rng = np.random.default_rng(g["seed"])
    grain = max(2, min(w, h) // 64)
    noise = rng.integers(-g["strength"], g["strength"] + 1, (h // grain + 1, w // grain + 1, 1)) // 4 * 4
    noise = noise.repeat(grain, 0).repeat(grain, 1)[:h, :w]
    return Image.fromarray((a + noise).clip(0, 255).astype(np.uint8))


def glyphs(text: str, height: float, limit: float, which: int, fill) -> Image.Image:
    """The text's pixels, cut to their box, at most `limit` wide."""
    face = font(which, max(8, round(height * 1.35)))
    box = face.getbbox(text)
    mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
    ImageDraw.Draw(mask).text((-box[0], -box[1]), text, fill=255, font=face)
    scale = min(1.0, limit / mask.width, height / mask.height)
    if scale < 1:
        mask = mask.resize((max(1, round(mask.width * scale)), max(1, round(mask.height * scale))), Image.Resampling.BILINEAR)
    return mask


def draw(scene: Scene) -> Image.Image:
    """The picture, 8-bit RGB. Sets the text's box to what is drawn."""
    rng = random.Random(f"draw {scene.seed} {scene.width}")
    image = ground(scene)
    k = 2 if scene.smooth else 1
    layer = Image.new("RGBA", (scene.width * k, scene.height * k))
    pen = ImageDraw.Draw(layer)
    for s in scene.shapes:
        x0, y0, x1, y1 = (v * k for v in s.box)
        cx, cy, r = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2
        fill = (*s.rgb, 255)
        if s.kind == "circle":
            pen.ellipse((x0, y0, x1, y1), fill=fill)
        elif s.kind == "ring":
            pen.ellipse((x0, y0, x1, y1), fill=fill)
            hole = 0.58 * r
            pen.ellipse((cx - hole, cy - hole, cx + hole, cy + hole), fill=(0, 0, 0, 0))
        else:
            pen.polygon(outline(s.kind, cx, cy, r, s.turn), fill=fill)
    if k > 1:
        layer = layer.reduce(k)
    image.paste(layer, (0, 0), layer)
    which = rng.randrange(len(font_files()))
    if scene.text:
        t = scene.text
        x0, y0, x1, y1 = t.box
        word = len(t.kind) > 1
        height = (y1 - y0) * (0.7 if word else 1.0)
        mask = glyphs(t.kind, height, (scene.width * 0.92) if word else (x1 - x0), which, t.rgb)
        at = (round((x0 + x1 - mask.width) / 2), round((y0 + y1 - mask.height) / 2))
        image.paste(t.rgb, at, mask)
        t.box = (at[0], at[1], at[0] + mask.width, at[1] + mask.height)
        face = font(which, 40)
        t.edges = tuple(at[0] + mask.width * face.getlength(t.kind[:i]) / face.getlength(t.kind) for i in range(len(t.kind) + 1))
    if scene.marked:
        dark = rng.random() < 0.5
        paper, ink = ((0, 0, 0), (255, 255, 255)) if dark else ((255, 255, 255), (0, 0, 0))
        pen = ImageDraw.Draw(image)
        for s in scene.shapes:
            side = 0.33 * min(scene.width, scene.height) / 3
            cx, cy = (s.box[0] + s.box[2]) / 2, (s.box[1] + s.box[3]) / 2
            pen.rectangle((cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2), fill=paper, outline=ink)
            mask = glyphs(str(s.mark), side * 0.8, side * 0.86, which, ink)
            image.paste(ink, (round(cx - mask.width / 2), round(cy - mask.height / 2)), mask)
    return image


# ---- questions -----------------------------------------------------------------------------------------------------------
ZH = {"red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色", "black": "黑色", "white": "白色",
      "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星形", "ring": "圆环", "cross": "十字",
      "places": ("左上", "上", "右上", "左", "中间", "右", "左下", "下", "右下")}
ES = {"red": ("rojo", "roja"), "orange": ("naranja", "naranja"), "yellow": ("amarillo", "amarilla"), "green": ("verde", "verde"),
      "blue": ("azul", "azul"), "purple": ("morado", "morada"), "black": ("negro", "negra"), "white": ("blanco", "blanca"),
      "circle": "el círculo", "square": "el cuadrado", "triangle": "el triángulo", "star": "la estrella", "ring": "el anillo",
      "cross": "la cruz", "places": ("arriba a la izquierda", "arriba", "arriba a la derecha", "a la izquierda", "en el centro",
                                     "a la derecha", "abajo a la izquierda", "abajo", "abajo a la derecha")}
DE = {"red": "rot", "orange": "orange", "yellow": "gelb", "green": "grün", "blue": "blau", "purple": "lila", "black": "schwarz",
      "white": "weiß", "circle": "der Kreis", "square": "das Quadrat", "triangle": "das Dreieck", "star": "der Stern",
      "ring": "der Ring", "cross": "das Kreuz", "places": ("oben links", "oben", "oben rechts", "links", "in der Mitte", "rechts",
                                                          "unten links", "unten", "unten rechts")}
CORE = ("colour", "shape", "where", "mark")
TYPES = ("caption", "colour", "shape", "size", "count", "where", "relation", "text", "mark", "exists")


@dataclass(frozen=True)
class Question:
    type: str
    language: str
    question: str
    answer: str
    about: tuple[int, ...] = ()  # shapes the answer is read from: all for each word, or one for each part of a list


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def unique(values) -> set:
    values = list(values)
    return {v for v in values if values.count(v) == 1}


def questions(scene: Scene) -> list[Question]:
    """Every question there is about a scene, in a fixed order; the answers are what the scene says."""
    out: list[Question] = []

    about: tuple[int, ...] = ()

    def ask(type: str, answer: str, *texts: str, language: str = "en"):
        out.extend(Question(type, language, t, answer, about) for t in texts)

    items = scene.shapes
    by_kind, by_colour = unique(s.kind for s in items), unique(s.colour for s in items)
    listing = [a(f"{s.colour} {s.kind}") for s in items]
    if scene.text:
        t = scene.text.kind
        before = sum(s.place < scene.text.place for s in items)
        listing.insert(before, ("the number " if t in DIGITS else "the word ") + t)
    caption = listed(listing)
    if not scene.text:
        about = tuple(range(len(items)))
    ask("caption", caption[0].upper() + caption[1:] + ".", "What's in the image?", "What is in the picture?", "Describe the image.")
    about = ()
    n = str(len(items))
    ask("count", n, "How many shapes are there?", "How many shapes can you see?")
    ask("count", n, "¿Cuántas formas hay?", language="es")
    ask("count", n, "Wie viele Formen gibt es?", language="de")
    ask("count", n, "有几个图形？", language="zh")
    for colour in COLOURS:
        here = sum(s.colour == colour for s in items)
        if here:
            ask("count", str(here), f"How many {colour} shapes are there?")
        ask("exists", "yes" if here else "no", f"Is there a {colour} shape?" if colour != "orange" else "Is there an orange shape?")
    for kind in SHAPES:
        here = sum(s.kind == kind for s in items)
        if here:
            ask("count", str(here), f"How many {kind}{'es' if kind == 'cross' else 's'} are there?")
        ask("exists", "yes" if here else "no", f"Is there a {kind}?")
    for i, s in enumerate(items):
        place, about = PLACES[s.place], (i,)
        the = f"the {s.colour} {s.kind}"
        ask("where", place, f"Where is {the}?")
        ask("size", s.size, f"How big is {the}?")
        at = f"in the {place}" if place in ("centre", "top left", "top right", "bottom left", "bottom right") else f"at the {place}" \
            if place in ("top", "bottom") else f"on the {place}"
        ask("colour", s.colour, f"What colour is the shape {at}?")
        ask("shape", s.kind, f"What shape is {at}?")
        if s.kind in by_kind:
            ask("colour", s.colour, f"What colour is the {s.kind}?", f"Which colour does the {s.kind} have?")
            ask("where", place, f"Where is the {s.kind}?")
            ask("size", s.size, f"How big is the {s.kind}?")
            ask("colour", ES[s.colour][0], f"¿De qué color es {ES[s.kind]}?", language="es")
            ask("where", ES["places"][s.place], f"¿Dónde está {ES[s.kind]}?", language="es")
            ask("colour", DE[s.colour], f"Welche Farbe hat {DE[s.kind]}?", language="de")
            ask("where", DE["places"][s.place], f"Wo ist {DE[s.kind]}?", language="de")
            ask("colour", ZH[s.colour], f"{ZH[s.kind]}是什么颜色？", language="zh")
            ask("where", ZH["places"][s.place], f"{ZH[s.kind]}在哪里？", language="zh")
        if s.colour in by_colour:
            ask("shape", s.kind, f"What shape is {s.colour}?", f"Which shape is the {s.colour} one?")
            ask("where", place, f"Where is the {s.colour} shape?")
            ask("shape", ES[s.kind].split()[1], f"¿Qué forma es {ES[s.colour][1]}?", language="es")
            ask("shape", DE[s.kind].split()[1], f"Welche Form ist {DE[s.colour]}?", language="de")
            ask("shape", ZH[s.kind], f"{ZH[s.colour]}的是什么形状？", language="zh")
        if s.mark:
            ask("mark", a(f"{s.colour} {s.kind}"), f"What is mark {s.mark}?")
            ask("mark", str(s.mark), f"Which mark is on {the}?")
            if s.colour in by_colour:
                ask("mark", str(s.mark), f"Which mark is the {s.colour} one?")
            if s.kind in by_kind:
                ask("mark", str(s.mark), f"Which mark is the {s.kind}?")
        for j, o in enumerate(items):
            about = (i, j)
            other = f"the {o.colour} {o.kind}"
            if s.place % 3 != o.place % 3:
                ask("relation", "left" if s.place % 3 < o.place % 3 else "right", f"Is {the} left or right of {other}?")
            if s.place // 3 != o.place // 3:
                ask("relation", "above" if s.place // 3 < o.place // 3 else "below", f"Is {the} above or below {other}?")
    about = ()
    if scene.text:
        ask("text", scene.text.kind, "What does it say?", "What is written in the image?", "Read the text.")
    return out


def lists(scene: Scene) -> list[Question]:
    """Long answers for training alone: each item of one is a question of its own, so that what belongs together is learnt sooner."""
    out: list[Question] = []

    items = scene.shapes
    order = tuple(range(len(items)))

    def ask(question: str, pairs) -> None:
        out.append(Question("list", "en", question, "; ".join(f"{a}: {b}" for a, b in pairs) + ".", order))

    name = [f"{s.colour} {s.kind}" for s in items]
    place = [PLACES[s.place] for s in items]
    ask("List the shapes and where they are.", zip(name, place))
    ask("List the places and what is there.", zip(place, name))
    ask("List the shapes and their sizes.", zip(name, (s.size for s in items)))
    by_kind, by_colour = unique(s.kind for s in items), unique(s.colour for s in items)
    if len(by_kind) == len(items):
        ask("List the colours by shape.", ((s.kind, s.colour) for s in items))
        ask("List the places by shape.", zip((s.kind for s in items), place))
    if len(by_colour) == len(items):
        ask("List the shapes by colour.", ((s.colour, s.kind) for s in items))
        ask("List the places by colour.", zip((s.colour for s in items), place))
    if scene.marked:
        marks = sorted(zip((s.mark for s in items), name))
        ask("List the shapes and their marks.", zip(name, (s.mark for s in items)))
        if len(by_colour) == len(items):
            ask("List the marks by colour.", ((s.colour, s.mark) for s in items))
        if len(by_kind) == len(items):
            ask("List the marks by shape.", ((s.kind, s.mark) for s in items))
        order = tuple(sorted(order, key=lambda i: items[i].mark))
        ask("List the marks and what they are on.", marks)
        ask("List the marks and where they are.", sorted(zip((s.mark for s in items), place)))
    if len(items) > 1:
        shuffled = list(range(len(items)))
        random.Random(scene.seed).shuffle(shuffled)
        order = tuple(shuffled)
        out.append(Question("list", "en", f"Where are {listed(['the ' + name[i] for i in order])}?", listed([place[i] for i in order]) + ".", order))
        out.append(Question("list", "en", f"What shapes are {listed(['the ' + scene.shapes[i].colour for i in order])}?",
                            listed([items[i].kind for i in order]) + ".", order) if len(by_colour) == len(items) else
                   Question("list", "en", f"How big are {listed(['the ' + name[i] for i in order])}?", listed([items[i].size for i in order]) + ".", order))
    return out


WEIGHTS = {"caption": 1.2, "colour": 1.4, "shape": 1.4, "size": 0.6, "count": 1.2, "where": 1.4, "relation": 1.2, "text": 1.5,
           "mark": 2.0, "exists": 0.7}


def choose(pool: list[Question], rng: random.Random, n: int, foreign: float, weights: dict[str, float] = WEIGHTS) -> list[Question]:
    """`n` different questions, types by their weights, a share of them in another language."""
    groups: dict[tuple[str, bool], list[Question]] = {}
    for q in pool:
        groups.setdefault((q.type, q.language != "en"), []).append(q)
    out: list[Question] = []
    while len(out) < n and groups:
        keys = list(groups)
        weight = [weights[t] * (foreign / 0.35 if f else 1 - foreign) for t, f in keys]
        key = rng.choices(keys, weight)[0]
        out.append(groups[key].pop(rng.randrange(len(groups[key]))))
        if not groups[key]:
            del groups[key]
    return out


# How many of 500 questions are of each type, and how many of 100 in another language.
QUOTA = {"colour": 75, "shape": 75, "where": 75, "mark": 50, "caption": 50, "count": 45, "relation": 45, "text": 35, "size": 25, "exists": 25}


def dataset(split: str, pictures: int) -> list[tuple[int, Question]]:
    """Five questions a picture, types by quota, every fourth of a kind that has them in another language."""
    rng = random.Random(f"questions {split}")
    scenes = [scene(split, i) for i in range(pictures)]
    left = {t: round(q * pictures / 100) for t, q in QUOTA.items()}
    rows: list[tuple[int, Question]] = []
    asked: list[set[str]] = [set() for _ in scenes]
    # Rare types first, so that the pictures that can be asked them have room.
    for type in sorted(left, key=lambda t: (t not in ("mark", "text", "relation"), t)):
        order = [i for i, s in enumerate(scenes) if any(q.type == type for q in questions(s))]
        rng.shuffle(order)
        while left[type]:
            before = left[type]
            for i in order:
                if not left[type] or len(asked[i]) == 5:
                    continue
                foreign = rng.random() < 0.16
                pool = [q for q in questions(scenes[i]) if q.type == type and q.question not in asked[i]]
                pool = [q for q in pool if (q.language != "en") == foreign] or [q for q in pool if q.language == "en"]
                if pool:
                    q = rng.choice(pool)
                    asked[i].add(q.question)
                    rows.append((i, q))
                    left[type] -= 1
            if left[type] == before:
                break
    for i, s in enumerate(scenes):
        spare = [q for q in questions(s) if q.question not in asked[i]]
        while len(asked[i]) < 5:
            q = choose(spare, rng, 1, 0.1)[0]
            spare.remove(q)
            asked[i].add(q.question)
            rows.append((i, q))
    rows.sort(key=lambda r: (r[0], TYPES.index(r[1].type)))
    return rows


def write(folder: Path, split: str, pictures: int) -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    for i in range(pictures):
        draw(scene(split, i)).save(folder / split / f"{i:03}.png", optimize=True)
    with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as out:
        for n, (i, q) in enumerate(dataset(split, pictures)):
            row = {"id": f"{split}-{n:03}", "image": f"{split}/{i:03}.png", "question": q.question, "answer": q.answer,
                   "split": split, "category": q.type, "language": q.language, "core": q.type in CORE}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def sheet(file: Path, split: str, n: int = 48) -> None:
    page = Image.new("RGB", (8 * 200, n // 8 * 200), "gray")
    for i in range(n):
        image = draw(scene(split, i))
        image.thumbnail((196, 196))
        page.paste(image, (i % 8 * 200, i // 8 * 200))
    page.save(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--split", default="test")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    if arguments.sheet:
        sheet(arguments.sheet, arguments.split if arguments.split != "test" else "train")
    else:
        write(arguments.out, arguments.split, arguments.pictures)
