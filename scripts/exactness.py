"""What becomes of linear weights between every two formats, by the planner alone.

The table of docs/support.md is made from it; ``tests/test_matrix.py`` holds it against files that
are written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zenconvert.formats.registry import format_named
from zenconvert.ggml.encoding import encoding_of
from zenconvert.ggml.types import BY_NAME
from zenconvert.model.architecture import architectures
from zenconvert.model.checkpoint import Checkpoint, StoredTensor, Tensor
from zenconvert.model.encoding import BF16, F32, Dense, Encoding, Grouped
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.scaled import Scaled
from zenconvert.model.target import Options, Target
from zenconvert.model.tokenizer import Tokenizer
from zenconvert.planning.judging import recoding

GRIDS: Final[dict[str, tuple[str, Encoding]]] = {
    "HF": ("hf:bf16", BF16),
    "GGUF Q4_0": ("gguf:q4_0", encoding_of(BY_NAME["q4_0"])),
    "GGUF Q4_1": ("gguf:q4_1", encoding_of(BY_NAME["q4_1"])),
    "GGUF Q8_0": ("gguf:q8_0", encoding_of(BY_NAME["q8_0"])),
    "GPTQ": ("gptq:w4g32", Grouped(4, 32, symmetric=True)),
    "GPTQ, zeros": ("gptq:w4g32-asym", Grouped(4, 32, symmetric=False)),
    "AWQ": ("awq:w4g32", Grouped(4, 32, symmetric=False)),
    "compressed-tensors": ("ct:w4a16-g32", Grouped(4, 32, symmetric=True)),
    "compressed-tensors, zeros": ("ct:w4a16-g32-asym", Grouped(4, 32, symmetric=False)),
    "compressed-tensors, 8 bits": ("ct:w8a16-g-1", Grouped(8, None, symmetric=True)),
    "compressed-tensors, FP8": ("ct:fp8", Scaled(Dense("f8_e4m3"), BF16, (1, None))),
    "ONNX": ("onnx:int4", Grouped(4, 32, symmetric=True)),
    "ONNX, zeros": ("onnx:int4-asym", Grouped(4, 32, symmetric=False)),
}
"""Name → the target that writes it, and the encoding of its linear weights."""

ONLY_READ: Final[dict[str, Encoding]] = {
    "FP8": Scaled(Dense("f8_e4m3"), F32, (128, 128)),
    "compressed-tensors, bytes": Grouped(8, None, symmetric=True),
}
"""Name → the encoding of linear weights of folders that nobody writes here, with the scales that
``tests/test_matrix.py`` gives them."""

SOURCES: Final = {**{name: encoding for name, (_, encoding) in GRIDS.items()}, **ONLY_READ}
"""Name → the encoding of its linear weights."""

TARGETS: Final[dict[str, str]] = {
    "HF": "hf:f32",
    "GGUF Q4_0": "gguf:q4_0",
    "GGUF Q4_1": "gguf:q4_1",
    "GGUF Q8_0": "gguf:q8_0",
    "GPTQ": "gptq",
    "AWQ": "awq",
    "compressed-tensors": "ct",
    "ONNX": "onnx",
}
"""Name → target. Where no grid is named, the formats follow that of the source."""

EXACT, ROUNDED, QUANTIZED, AGAIN, REFUSED = "exact", "rounded", "quantized", "again", "refused"
_MARKS: Final = {EXACT: "**=**", ROUNDED: "≈", QUANTIZED: "q", AGAIN: "↻", REFUSED: "–"}
_SIZE: Final = 256


def kind(source: str, target: str) -> str:
    """What becomes of a linear weight of :data:`SOURCES`: one of the five kinds."""
    checkpoint = _checkpoint(SOURCES[source])
    wanted = Target.parse(TARGETS[target])
    form = format_named(wanted.format)
    options = Options(pure=wanted.format == "gguf")
    choices = form.choose(checkpoint, wanted, options, importance=False)
    choice = next(c for c in choices if c.parts and c.parts[0].name.endswith("ffn.up.weight"))
    new, codec = choice.encoding.grouped, choice.codec
    if new is not None and codec is not None and codec.refuses(new, choice.shape):
        return REFUSED
    found = recoding(choice.parts[0], choice)
    if found.exact:
        return EXACT
    if found.action == "repack":
        return ROUNDED
    return QUANTIZED if SOURCES[source] == BF16 else AGAIN


def table() -> str:
    """Markdown: sources down, targets across."""
    head = f"| from \\ to | {' | '.join(TARGETS)} |"
    lines = [head, "|---" * (len(TARGETS) + 1) + "|"]
    for source in SOURCES:
        marks = " | ".join(_MARKS[kind(source, target)] for target in TARGETS)
        lines.append(f"| {source} | {marks} |")
    return "\n".join(lines) + "\n"


def _checkpoint(linear: Encoding) -> Checkpoint:
    """A model of one layer that is nowhere on the disk."""
    architecture = architectures()["llama"]
    sizes = Hyperparameters(
        layers=1, hidden=_SIZE, ffn=_SIZE, heads=4, kv_heads=4, vocab=_SIZE, context=_SIZE,
        head_dim=64, explicit_head_dim=False, rms_eps=1e-5, rope_theta=1e4, rope_scaling=None,
        tied=False,
    )  # fmt: skip
    tensors = {}
    for name in architecture.tensor_names(sizes):
        if name.required:
            encoding = linear if name.module.role == "linear" else F32
            stored = StoredTensor(Path("nowhere"), 0, name.hf)
            tensors[name.name] = Tensor(name.name, name.shape, encoding, stored)
    return Checkpoint(
        path=Path("nowhere"),
        format="hf",
        architecture=architecture,
        hyperparameters=sizes,
        config={"model_type": "llama"},
        tensors=tensors,
        load_tokenizer=_no_tokenizer,
    )


def _no_tokenizer() -> Tokenizer:
    raise AssertionError("a model that is nowhere has no tokenizer")


if __name__ == "__main__":
    print(table())
