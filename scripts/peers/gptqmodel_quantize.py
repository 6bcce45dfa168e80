"""Quantizes a model with GPTQModel from given token windows; runs in its own environment.

python gptqmodel_quantize.py MODEL WINDOWS.json OUT BITS GROUP
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    """Quantize and save."""
    source, windows, out, bits, group = sys.argv[1:]
    rows = [
        {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        for ids in json.loads(Path(windows).read_text())
    ]
    config = QuantizeConfig(bits=int(bits), group_size=int(group), sym=True)
    model = GPTQModel.load(source, config)
    model.quantize(rows, batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main()
