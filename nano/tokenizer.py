#!/usr/bin/env python3
"""Trains the SentencePiece model of the nano members, LLaMA style, on the training questions themselves.

    python tokenizer.py OUT.model
"""

from __future__ import annotations

import argparse
import io
import random
import string
from pathlib import Path

import sentencepiece as spm

import data
import scenes as S
from model import Config

SYSTEM = ("A chat between a curious human and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the human's questions.")
OTHER = ["the cat sat on the table and looked at the window", "A photograph of a street with two people and a bicycle.",
         "please tell me about this picture", "who, why, when, how far, which one", "gracias, por favor, buenos días", "vielen Dank und guten Tag",
         "谢谢你，请问这是什么？", string.ascii_letters + string.digits + string.punctuation]


def prompt(question: str) -> str:
    """The conversation template, up to where the answer begins."""
    return f"{SYSTEM}\n\n### Human: {question}\n### Assistant:"


def corpus(pictures: int = 3000) -> list[str]:
    rows = []
    for i in range(pictures):
        for q in data.picked(i, 8, seed=99):
            rows += [f"### Human: {q.question}", f"### Assistant: {q.answer}"]
    rng = random.Random(1)
    foreign = [w for table in (S.ES, S.DE, S.ZH) for v in table.values() for w in (v if isinstance(v, tuple) else (v,))]
    rows += [f"### Assistant: {w}" for w in foreign] * 120
    rows += [SYSTEM] * 300 + OTHER * 20 + [rng.choice(S.WORDS) for _ in range(600)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    out, buffer = parser.parse_args().out, io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=buffer, model_type="bpe", vocab_size=Config().vocab, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, max_sentencepiece_length=16, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        unk_surface=" \u2047 ", num_threads=1, minloglevel=2)
    out.write_bytes(buffer.getvalue())
    sp = spm.SentencePieceProcessor(model_file=str(out))
    print(out, sp.vocab_size(), "pieces; the prompt", sp.encode(prompt("What's in the image?"), out_type=str))


if __name__ == "__main__":
    main()
