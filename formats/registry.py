"""The formats by name. Adding a format is adding a row to :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from zenconvert.checkpoint import Checkpoint
from zenconvert.errors import SourceNotFound, Unsupported, UsageError
from zenconvert.formats.awq import reader as awq_reader
from zenconvert.formats.awq import writer as awq_writer
from zenconvert.formats.gguf import mixtures
from zenconvert.formats.gguf import reader as gguf_reader
from zenconvert.formats.gguf import writer as gguf_writer
from zenconvert.formats.gptq import reader as gptq_reader
from zenconvert.formats.gptq import writer as gptq_writer
from zenconvert.formats.hf import reader as hf_reader
from zenconvert.formats.hf import writer as hf_writer
from zenconvert.formats.onnx import reader as onnx_reader
from zenconvert.formats.onnx import writer as onnx_writer
from zenconvert.layout import Choice, Layout
from zenconvert.target import Options, Target


class Chooser(Protocol):
    """Decides the name, shape and encoding of every output tensor, in file order."""

    def __call__(
        self, checkpoint: Checkpoint, target: Target, options: Options, *, importance: bool
    ) -> list[Choice]: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One on-disk format: how to recognise, read and write it."""

    name: str
    title: str
    detect: Callable[[Path], bool]
    open: Callable[[Path], Checkpoint]
    choose: Chooser
    lay_out: Callable[[Checkpoint, Target, list[Choice], Options, str], Layout]
    """``(checkpoint, target, choices, options, output name) -> layout``"""
    types: tuple[str, ...]
    """Target types; the first is the default."""
    is_weighed: bool = True
    """Some of its types are rounded with importance weights."""
    open_with: Callable[[Path, Path], Checkpoint] | None = None
    """Opens files that may lack a config, with one that is named."""


FORMATS: Final[dict[str, Format]] = {  # the more particular first: it is asked first
    "onnx": Format(
        "onnx",
        "ONNX",
        onnx_reader.detect,
        onnx_reader.open_checkpoint,
        onnx_writer.choose,
        onnx_writer.lay_out,
        onnx_writer.TYPES,
        open_with=onnx_reader.open_checkpoint,
    ),
    "gptq": Format(
        "gptq",
        "GPTQ",
        gptq_reader.detect,
        gptq_reader.open_checkpoint,
        gptq_writer.choose,
        gptq_writer.lay_out,
        gptq_writer.TYPES,
    ),
    "awq": Format(
        "awq",
        "AWQ",
        awq_reader.detect,
        awq_reader.open_checkpoint,
        awq_writer.choose,
        awq_writer.lay_out,
        awq_writer.TYPES,
    ),
    "hf": Format(
        "hf",
        "HF safetensors",
        hf_reader.detect,
        hf_reader.open_checkpoint,
        hf_writer.choose,
        hf_writer.lay_out,
        tuple(hf_writer.DTYPES),
        is_weighed=False,
    ),
    "gguf": Format(
        "gguf",
        "GGUF",
        gguf_reader.detect,
        gguf_reader.open_checkpoint,
        gguf_writer.choose,
        gguf_writer.lay_out,
        (gguf_writer.DEFAULT_TYPE, *(t for t in mixtures.FILE_TYPES if t != "bf16")),
    ),
}


def format_named(name: str) -> Format:
    """The format of a target. Raises UsageError."""
    if name not in FORMATS:
        raise UsageError(f"there is no format {name!r}; known are {', '.join(FORMATS)}")
    return FORMATS[name]


def detect(path: Path) -> Format:
    """The format of a checkpoint on disk. Raises SourceNotFound or Unsupported."""
    if not path.exists():
        raise SourceNotFound(f"{path}: there is no such file or folder")
    for candidate in FORMATS.values():
        if candidate.detect(path):
            return candidate
    hint = "a folder with config.json, or a .gguf file"
    raise Unsupported(f"{path}: no format that zenconvert reads; expected {hint}")
