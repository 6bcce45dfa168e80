"""Tensors that a device decodes, and tensors that the host does: the same numbers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from zenconvert import convert, open_checkpoint
from zenconvert.base.machine import auto_device
from zenconvert.errors import CorruptFile
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.loading import Loader, slabs

Model = Callable[[str], Path]
DEVICE = auto_device()
TARGETS = (
    "hf:bf16", "hf:f16", "gptq:w4g64-asym", "gptq:w3g64", "awq:w4g64", "onnx:int4-asym",
    "gguf:q8_0", "gguf:q4_k_m", "gguf:q3_k_s", "gguf:q5_1", "gguf:iq4_xs", "gguf:tq2_0",
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_both_ways_are_the_same(target: str, model: Model, folder: Model, tmp_path: Path) -> None:
    name = "out.gguf" if target.startswith("gguf") else "out"
    # norms of Gemma are changed on their way
    source = folder("gemma3") if target == "gguf:q8_0" else model("llama3")
    convert(source, tmp_path / name, target)
    checkpoint = open_checkpoint(tmp_path / name)
    host, device = Loader(logical_rows, "cpu"), Loader(logical_rows, DEVICE)
    device.on_host = False  # what a GPU does, where there is none
    for dtype in (torch.float32, torch.bfloat16):
        wanted = {name: (tensor, dtype) for name, tensor in checkpoint.tensors.items()}
        ours, theirs = (one.finish(one.stage(wanted)) for one in (host, device))
        theirs = {name: values.cpu() for name, values in theirs.items()}
        assert list(ours) == list(theirs) == list(checkpoint.tensors)
        for name, tensor in checkpoint.tensors.items():
            assert ours[name].shape == tensor.shape
            assert ours[name].dtype == theirs[name].dtype == dtype
            assert torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8)), name
            if dtype == torch.float32:
                whole = logical_rows(tensor, 0, tensor.rows).reshape(tensor.shape)
                np.testing.assert_array_equal(ours[name].numpy(), whole)


def test_slabs_cover_a_tensor_and_keep_to_its_bands(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zenconvert.reference.loading._SLAB_ELEMENTS", 3000)
    monkeypatch.setattr("zenconvert.model.pieces.BAND_BYTES", 5000)
    monkeypatch.setattr("zenconvert.model.pieces.RUN_BYTES", 64)
    convert(model("llama3"), tmp_path / "out.gguf", "gguf:f16")
    convert(model("llama3"), tmp_path / "gptq", "gptq:w4g64")
    for path in (tmp_path / "out.gguf", tmp_path / "gptq"):
        for tensor in open_checkpoint(path).tensors.values():
            found = list(slabs(tensor))
            assert [row for begin, end in found for row in range(begin, end)] == list(
                range(tensor.rows)
            )
            band = tensor.order.band if tensor.order is not None else 1
            assert all(begin % band == 0 for begin, _ in found)
            values = Loader(logical_rows, "cpu").load(tensor, torch.float32)
            whole = logical_rows(tensor, 0, tensor.rows).reshape(tensor.shape)
            np.testing.assert_array_equal(values.numpy(), whole)


@pytest.mark.parametrize("on_host", [True, False])
def test_a_file_that_ends_early_is_told(on_host: bool, model: Model, tmp_path: Path) -> None:
    convert(model("llama3"), tmp_path / "out", "gptq:w4g64")
    checkpoint = open_checkpoint(tmp_path / "out")
    last = max(tmp_path.glob("out/*.safetensors"), key=lambda path: path.stat().st_size)
    with last.open("r+b") as file:
        file.truncate(last.stat().st_size // 2)
    loader = Loader(logical_rows, "cpu" if on_host else DEVICE)
    loader.on_host = on_host
    wanted = {name: (tensor, torch.float32) for name, tensor in checkpoint.tensors.items()}
    with pytest.raises(CorruptFile, match="ends before byte"):
        loader.finish(loader.stage(wanted))
