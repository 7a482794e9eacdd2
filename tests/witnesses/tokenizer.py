#!/usr/bin/env python3
"""Does `sphinx tokenize` give SentencePiece's ids? Run by hand; needs PyPI sentencepiece.

    python tests/witnesses/tokenizer.py target/release/sphinx MODEL.gguf tokenizer.model [LINES]

MODEL.gguf is any language file made with tokenizer.model. Lines mix Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari,
Thai, Han, Kana, Hangul and emoji, with runs of spaces, tabs and line breaks between; seeded.
"""
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import sentencepiece

sphinx, model, pieces = sys.argv[1:4]
count = int(sys.argv[4]) if len(sys.argv) > 4 else 10_000
SCRIPTS = [(0x20, 0x7E), (0xC0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939), (0xE01, 0xE3A),
           (0x4E00, 0x6FFF), (0x3041, 0x30FE), (0xAC00, 0xD7A3), (0x1F600, 0x1F64F)]
rng = random.Random(20261122)


def word() -> str:
    low, high = rng.choice(SCRIPTS)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))


def ours(line: str) -> list[int]:
    return json.loads(subprocess.run([sphinx, "tokenize", model, "--", line], capture_output=True, check=True).stdout)


lines = [rng.choice([" ", "  ", "\n", "\t", ""]).join(word() for _ in range(rng.randint(1, 8))) for _ in range(count)]
theirs = sentencepiece.SentencePieceProcessor(model_file=pieces)
with ThreadPoolExecutor(2) as pool:
    wrong = [line for line, ids in zip(lines, pool.map(ours, lines)) if ids != theirs.encode(line)]
print(f"{count} lines, {len(wrong)} mismatches", *map(repr, wrong[:5]), sep="\n  ")
sys.exit(bool(wrong))
