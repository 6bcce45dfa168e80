"""The side of an oracle's own process: answers requests, one JSON object a line.

Tools print what they like, so replies go to a pipe of their own: its number is the argument.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

Handler = Callable[..., Any]


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer ``{"call": name, "arguments": {…}}`` until the input ends."""
    replies = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": handlers[request["call"]](**request["arguments"])}
        except Exception:  # noqa: BLE001  whatever it is, the test shall show it
            answer = {"error": traceback.format_exc()}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def save(out: str, arrays: dict[str, torch.Tensor]) -> None:
    """Write float32 arrays to an .npz file."""
    np.savez(out, allow_pickle=False, **{n: a.detach().float().numpy() for n, a in arrays.items()})


def multipliers(modules: Mapping[str, Any], columns: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """What quantized modules multiply with: module name → ``[out, in]``."""
    found = {}
    with torch.inference_mode():
        for name, module in modules.items():
            rows = module(torch.eye(columns[name]))
            bias = getattr(module, "bias", None)
            found[name] = (rows if bias is None else rows - bias).T
    return found


def copy_tokenizer(source: str, out: str) -> None:
    """The files of the tokenizer, as tools leave them beside the weights that they save."""
    for path in Path(source).glob("tokenizer*"):
        shutil.copyfile(path, Path(out) / path.name)


def rounded(
    weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, index: torch.Tensor, bits: int
) -> torch.Tensor:
    """``weight[out, in]`` on the grid of ``scale`` and ``zero`` ``[out, groups]``."""
    scale, zero = scale[:, index], zero[:, index]
    codes = torch.clamp(torch.round(weight / scale) + zero, 0, (1 << bits) - 1)
    return (codes - zero) * scale
