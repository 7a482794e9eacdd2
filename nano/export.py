#!/usr/bin/env python3
"""Writes trained weights as a checkpoint in the public layout, half precision.

    python export.py WORK dense            dense/ from WORK/towers.pt and WORK/dense.pt
    python export.py WORK moe --name moe   moe/
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from model import Config, Decoder, Towers, to_checkpoint

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("folder", help="dense or moe, beside this file")
    parser.add_argument("--name", default=None, help="WORK/NAME.pt; default: the folder's name")
    args = parser.parse_args()
    state = torch.load(args.work / f"{args.name or args.folder}.pt")
    moe = any(".gate." in k for k in state["smooth"])
    cfg = Config(experts=8 if moe else 0)
    towers, decoder = Towers(cfg), Decoder(cfg)
    towers.load_state_dict(torch.load(args.work / "towers.pt")["towers"])
    decoder.load_state_dict(state["smooth"])
    out = HERE / args.folder
    out.mkdir(exist_ok=True)
    file = out / "consolidated.00-of-01.model.pth"
    torch.save({"model": to_checkpoint(towers, decoder)}, file)
    (out / "config.json").write_text(json.dumps(cfg.public(), indent=2) + "\n")
    (out / "meta.json").write_text(json.dumps({"llama_type": "mixtral_sparse_ens_light" if moe else "llama_ens_light"}) + "\n")
    shutil.copyfile(args.work / "tokenizer.model", out / "tokenizer.model")
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB, trained {state['spent'] / 60:.0f} minutes, {state['step']} steps")


if __name__ == "__main__":
    main()
