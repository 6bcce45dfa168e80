"""HF folders whose weights are stored in an encoding that is only read: one row for each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from zenconvert.errors import Unsupported
from zenconvert.formats import packed_folder, quantization
from zenconvert.formats.fp4_packing import METHOD
from zenconvert.formats.hf import reader
from zenconvert.formats.hf.reader import Folder, name_tensors, open_folder, without_spare_biases
from zenconvert.formats.quantized import fp8, mxfp4
from zenconvert.formats.quantized.packed import Packed
from zenconvert.model.checkpoint import Checkpoint

Reader: TypeAlias = Callable[[Folder, Mapping[str, Any]], Packed]
"""``(folder, settings) → its quantized tensors``, from headers alone."""

METHODS: Final[dict[str, Reader]] = {
    "fp8": fp8.read,
    METHOD: mxfp4.read,
}
"""``quant_method`` → what reads the tensors of such folders."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open an HF folder, quantized or not: config and safetensors headers only.

    Raises the errors of the HF reader, Unsupported for a method that is not read.
    """
    found = quantization.of_folder(path)
    if found is None:
        return reader.open_checkpoint(path)
    if (read := METHODS.get(found.method)) is None:
        raise Unsupported(
            f"{path}: weights quantized with {found.method or 'an unnamed method'} cannot be read; "
            f"methods that are: gptq, awq, compressed-tensors, {', '.join(METHODS)}"
        )
    return opened(path, read, found.table, "hf")


def opened(path: Path, read: Reader, settings: Mapping[str, Any], name: str) -> Checkpoint:
    """A folder of the format ``name`` whose quantized tensors ``read`` gives.

    Raises the errors of the HF reader.
    """
    folder = open_folder(path)
    packed = read(folder, settings)
    kept = {name: entry for name, entry in folder.entries.items() if name not in packed.left}
    predicting = folder.predicting or packed.predicting
    folder = without_spare_biases(replace(folder, entries=kept, predicting=predicting))
    warnings = [f"{path}: {text}" for text in packed.warnings]
    parts = packed_folder.cut_apart(folder, packed.by_entry) | packed.stacks
    return folder.checkpoint(name, name_tensors(folder, parts), warnings)
