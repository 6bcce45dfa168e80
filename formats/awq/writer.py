"""Checkpoint → AWQ folder that transformers, vLLM, GPTQModel and AutoAWQ load."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Final

from zenconvert.errors import UsageError
from zenconvert.formats import packed_folder
from zenconvert.formats.awq.activation import ones
from zenconvert.formats.awq.codec import BITS, AwqCodec
from zenconvert.formats.hf.writer import facts, float_name, folder_config, lay_out_folder
from zenconvert.formats.packed_folder import choose_modules, refuse_foreign
from zenconvert.formats.quantization import QUANTIZATION
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.encoding import DENSE
from zenconvert.model.layout import Choice, Layout
from zenconvert.model.target import Options, Scheme, Target

__all__ = ["TYPES", "choose", "facts", "lay_out"]

DEFAULT: Final = "w4g128"
TYPES: Final = (DEFAULT, "w4g64", "w4g32", "w4g128-gemv")
"""Examples: any ``w4gGROUP`` with ``-gemv`` will do."""


def choose(
    checkpoint: Checkpoint, target: Target, options: Options, *, importance: bool
) -> list[Choice]:
    """Every linear weight on the target's grid. Raises UsageError."""
    refuse_foreign(options, importance=importance, target="awq")
    scheme, suffixes = _parse(target.type) if target.type else (None, ())
    codec = AwqCodec("gemv" if "gemv" in suffixes else "gemm")
    choices = choose_modules(
        checkpoint,
        scheme,
        lambda _: codec,
        options,
        parse,
        head=False,
        runtime_names=packed_folder.RUNTIME_NAMES in suffixes,
    )
    choices = [_with_zeros(choice) for choice in choices]
    grids = Counter(str(c.scheme) for c in choices if c.scheme is not None)
    if len(grids) > 1:
        found = ", ".join(f"{grid} in {count}" for grid, count in grids.most_common())
        raise UsageError(
            f"an AWQ file has one grid for all its modules, and these have {found}; name the grid "
            "of all of them (awq:w4g128), or keep some in floats with --tensor-type"
        )
    return [*choices, *ones(checkpoint, DENSE[float_name(choices)])]


def parse(text: str) -> Scheme:
    """The grid of a target type; the default for an empty one. Raises UsageError."""
    return _parse(text)[0]


def _parse(text: str) -> tuple[Scheme, tuple[str, ...]]:
    scheme, rest = Scheme.parse(text or DEFAULT, symmetric=False)
    if unknown := set(rest) - {"gemm", "gemv", packed_folder.RUNTIME_NAMES}:
        raise UsageError(f"awq:{text}: {sorted(unknown)[0]!r} is no suffix; known are sym, gemv "
                         f"and {packed_folder.RUNTIME_NAMES}")  # fmt: skip
    if scheme.bits != BITS or scheme.act_order:
        raise UsageError(f"awq:{text}: AWQ has {BITS} bits and no act-order")
    return scheme, rest


def _with_zeros(choice: Choice) -> Choice:
    """AWQ files always store zeros, also where every one is the midpoint."""
    if (grid := choice.encoding.grouped) is None:
        return choice
    return replace(choice, encoding=replace(grid, symmetric=False))


def lay_out(
    checkpoint: Checkpoint, target: Target, choices: list[Choice], options: Options, name: str
) -> Layout:
    """Weights and ``config.json`` with the settings."""
    config = folder_config(checkpoint, float_name(choices))
    settings = _settings(choices)
    tables = {"config.json": {**config, QUANTIZATION: settings}}
    return lay_out_folder(checkpoint, choices, options, tables)


def _settings(choices: list[Choice]) -> dict[str, Any]:
    grids = {c.name.removesuffix(".weight"): c for c in choices if c.scheme is not None}
    if not grids:
        raise UsageError("an AWQ file has at least one quantized module; every one is kept")
    chosen = next(iter(grids.values()))
    assert isinstance(chosen.codec, AwqCodec)
    assert chosen.scheme is not None
    kept = [c.name.removesuffix(".weight") for c in choices if c.is_linear and c.scheme is None]
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": -1 if chosen.scheme.group is None else chosen.scheme.group,
        "zero_point": True,
        "version": chosen.codec.version,
        "modules_to_not_convert": packed_folder.in_blocks(kept, list(grids)) or None,
    }
