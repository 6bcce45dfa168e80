"""Copies of packed folders with their tensors or settings changed, as other tools write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.tiny import first_rows
from zenconvert import open_checkpoint
from zenconvert.model.encoding import Grouped
from zenconvert.planning.recoding import logical_rows

Tensors = dict[str, NDArray[Any]]
SETTINGS = "quantization_config"


def changed(
    source: Path,
    out: Path,
    *,
    tensors: Callable[[Tensors], Tensors | None] | None = None,
    settings: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
    weights: str = "model.safetensors",
) -> Path:
    """A copy of a folder; a change works in place or returns something new.

    ``weights`` is the name of the weight file of the copy.
    """
    shutil.copytree(source, out)
    arrays = load_file(out / "model.safetensors")
    if tensors is not None:
        arrays = tensors(arrays) or arrays
    (out / "model.safetensors").unlink()
    save_file(
        {n: np.ascontiguousarray(a) for n, a in arrays.items()},
        out / weights,
        metadata={"format": "pt"},
    )
    config = json.loads((out / "config.json").read_text())
    if settings is not None:
        own = config[SETTINGS]
        config[SETTINGS] = settings(own) or own
        (out / "config.json").write_text(json.dumps(config))
        (out / "quantize_config.json").unlink(missing_ok=True)
    return out


def settings_of(folder: Path) -> dict[str, Any]:
    """The quantization settings in ``config.json``."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())[SETTINGS]
    return found


def grids_of(folder: Path) -> set[str]:
    """Encodings of the quantized weights."""
    tensors = open_checkpoint(folder).tensors.values()
    return {str(t.encoding) for t in tensors if isinstance(t.encoding, Grouped)}


def decoded(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor decoded, by neutral name."""
    tensors = open_checkpoint(folder).tensors
    return {name: logical_rows(t, 0, t.rows) for name, t in tensors.items()}


def assert_same(folder: Path, other: Path) -> None:
    """Both hold the same numbers."""
    first, second = decoded(folder), decoded(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


def assert_decodes(folder: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Every tensor holds the numbers of a tool, rounded to the tool's dtype, in a few slabs that
    begin anywhere. ``expected`` has the names of floats."""
    checkpoint = open_checkpoint(folder)
    found = {tensor.stored.name for tensor in checkpoint.tensors.values()}
    assert found == {n if n in found else n.removesuffix(".weight") for n in expected}
    first = first_rows(checkpoint)
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    known = {name.name: name for name in names}
    for tensor in checkpoint.tensors.values():
        name, begins = tensor.stored.name, first[tensor.name]
        theirs = expected[name if name in expected else f"{name}.weight"]
        if known[tensor.name].module.hf_turned:  # columns in turn
            part, parts = known[tensor.name].module.hf_stack_part
            theirs, begins = theirs[known[tensor.name].expert][..., part::parts], 0
            theirs = theirs.mT if theirs.ndim == 2 else theirs
        for begin, end in ((0, tensor.rows), (tensor.rows // 3, tensor.rows // 2 + 1)):
            ours = torch.from_numpy(np.array(logical_rows(tensor, begin, end))).to(theirs.dtype)
            assert torch.equal(ours, theirs.reshape(-1, tensor.columns)[begins:][begin:end]), name
