"""Checkpoint → GPTQ folder that transformers, vLLM, GPTQModel and AutoGPTQ load.

Symmetric grids are written as version 1, which every consumer reads; grids with zeros as version 2,
the only one that can hold a zero of 0.
"""

from __future__ import annotations

import re
from typing import Any, Final

from zenconvert.errors import UsageError
from zenconvert.formats import packed_folder
from zenconvert.formats.gptq.codec import BITS, GptqCodec
from zenconvert.formats.hf import writer as hf_writer
from zenconvert.formats.hf.writer import float_name, folder_config, lay_out_folder
from zenconvert.formats.packed_folder import choose_modules, refuse_foreign
from zenconvert.formats.quantization import GPTQ_FILE, QUANTIZATION
from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.model.layout import Choice, Layout
from zenconvert.model.meaning import Fact
from zenconvert.model.target import Options, Scheme, Target

DEFAULT: Final = "w4g128"
TYPES: Final = (DEFAULT, "w3g128", "w2g64", "w8g128", "w8g-1")
"""Examples: any ``wBITSgGROUP`` with ``-asym``, ``-actorder`` and ``-v2`` will do."""
_VERSION_1: Final = GptqCodec("plus_one")
_VERSION_2: Final = GptqCodec("as_is")
_DYNAMIC_KEYS: Final = ("bits", "group_size", "sym", "desc_act")


def choose(
    checkpoint: Checkpoint, target: Target, options: Options, *, importance: bool
) -> list[Choice]:
    """Every linear weight on the target's grid. Raises UsageError."""
    refuse_foreign(options, importance=importance, target="gptq")
    scheme, suffixes = (_parse(target.type)) if target.type else (None, ())

    def choices(*, version_2: bool) -> list[Choice]:
        def codec(scheme: Scheme) -> GptqCodec:
            return _VERSION_2 if version_2 or not scheme.symmetric else _VERSION_1

        runtime_names = packed_folder.RUNTIME_NAMES in suffixes
        return choose_modules(
            checkpoint, scheme, codec, options, parse, head=True, runtime_names=runtime_names
        )

    found = choices(version_2="v2" in suffixes)
    # one file has one version: as soon as a module has zeros of its own, it is version 2
    if any((grid := c.encoding.grouped) is not None and not grid.symmetric for c in found):
        return choices(version_2=True)
    return found


def parse(text: str) -> Scheme:
    """The grid of a target type; the default for an empty one. Raises UsageError."""
    return _parse(text)[0]


def _parse(text: str) -> tuple[Scheme, tuple[str, ...]]:
    scheme, rest = Scheme.parse(text or DEFAULT, symmetric=True)
    if unknown := set(rest) - {"v2", packed_folder.RUNTIME_NAMES}:
        raise UsageError(f"gptq:{text}: {sorted(unknown)[0]!r} is no suffix; known are sym, asym, "
                         f"actorder, v2 and {packed_folder.RUNTIME_NAMES}")  # fmt: skip
    if scheme.bits not in BITS:
        raise UsageError(f"gptq:{text}: GPTQ has {', '.join(map(str, BITS))} bits")
    return scheme, rest


def lay_out(
    checkpoint: Checkpoint, target: Target, choices: list[Choice], options: Options, name: str
) -> Layout:
    """Weights, ``config.json`` with the settings, and the settings once more for AutoGPTQ."""
    settings = _settings(choices, parse(target.type) if target.type else None)
    config = folder_config(checkpoint, float_name(choices))
    tables = {"config.json": {**config, QUANTIZATION: settings}, GPTQ_FILE: settings}
    return lay_out_folder(checkpoint, choices, options, tables)


def facts(checkpoint: Checkpoint, target: Target, options: Options) -> list[Fact]:
    """Facts of the config, and who does not run an order of columns."""
    found = hf_writer.facts(checkpoint, target, options)
    ordered = (
        parse(target.type).act_order
        if target.type
        else any(_is_ordered(tensor) for tensor in checkpoint.tensors.values())
    )
    if ordered:
        why = "AutoGPTQ, GPTQModel and transformers run act-order; vLLM and mlx-lm refuse it"
        found.append(Fact("desc_act", True, GPTQ_FILE, why=why, told=True))
    return found


def _is_ordered(tensor: Tensor) -> bool:
    grid = tensor.encoding.grouped
    return grid is not None and grid.ordered


def _settings(choices: list[Choice], scheme: Scheme | None) -> dict[str, Any]:
    grids = {c.name.removesuffix(".weight"): c for c in choices if c.scheme is not None}
    if not grids:
        raise UsageError("a GPTQ file has at least one quantized module; every one is kept")
    schemes = [c.scheme for c in grids.values() if c.scheme is not None]
    common = scheme or max(schemes, key=schemes.count)
    codec = next(c.codec for c in grids.values() if isinstance(c.codec, GptqCodec))
    settings: dict[str, Any] = {
        **_own(common),
        "damp_percent": 0.01,
        "static_groups": False,
        "true_sequential": False,
        "lm_head": "lm_head" in grids,
        "quant_method": "gptq",
        "checkpoint_format": codec.name,
        "pack_dtype": "int32",
    }
    if dynamic := _dynamic(choices, common):
        settings["dynamic"] = dynamic
    if kept := [c.name.removesuffix(".weight") for c in choices if c.is_linear and not c.scheme]:
        settings["modules_in_block_to_quantize"] = [packed_folder.in_blocks(list(grids), kept)]
    return settings


def _own(scheme: Scheme) -> dict[str, Any]:
    group = -1 if scheme.group is None else scheme.group
    return dict(
        zip(_DYNAMIC_KEYS, (scheme.bits, group, scheme.symmetric, scheme.act_order), strict=True)
    )


def _dynamic(choices: list[Choice], common: Scheme) -> dict[str, Any]:
    """What single modules have of their own, in the form of GPTQModel and vLLM."""
    rules: dict[str, Any] = {}
    for choice in choices:
        if choice.scheme is not None and choice.scheme != common:
            rules[f"+:^{_pattern(choice)}$"] = _own(choice.scheme)
        elif choice.scheme is None and choice.is_linear:
            rules[f"-:^{_pattern(choice)}$"] = {}
    return rules


def _pattern(choice: Choice) -> str:
    return re.escape(choice.name.removesuffix(".weight")).replace(r"\_", "_")
