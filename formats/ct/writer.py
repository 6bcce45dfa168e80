"""Checkpoint → compressed-tensors folder that vLLM, SGLang and transformers load.

``quantization_config`` has a group of settings for every grid: the only one is of all ``Linear``
modules but those in ``ignore``; of several every one names its modules.

Source: compressed_tensors' ``quant_scheme`` (the presets W4A16, W4A16_ASYM and W8A16 of
llm-compressor) and vLLM's ``compressed_tensors``, which has scales in the type that it serves in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from zenconvert.errors import UsageError
from zenconvert.formats.ct.codec import BITS, IntCodec
from zenconvert.formats.hf.writer import facts, float_name, folder_config, lay_out_folder
from zenconvert.formats.packed_folder import choose_modules, refuse_foreign
from zenconvert.formats.quantization import QUANTIZATION
from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.model.encoding import F16, Dense, Grouped
from zenconvert.model.layout import Choice, Layout
from zenconvert.model.target import Options, Scheme, Target

__all__ = ["METHOD", "TYPES", "choose", "facts", "lay_out"]

METHOD: Final = "compressed-tensors"
DEFAULT: Final = "w4a16-g128"
TYPES: Final = (DEFAULT, "w4a16-g128-asym", "w4a16-g32", "w8a16-g128", "w8a16-g-1")
"""Examples: any ``wBITSa16-gGROUP`` with ``-asym`` will do; without a group it has the 128 of
llm-compressor's presets."""
_TYPE: Final = re.compile(r"w(?P<bits>\d)a16(?:-g(?P<group>-1|\d+))?(?P<asym>-asym)?")
_GROUP: Final = 128
_FORMAT: Final = "pack-quantized"
_VERSION: Final = "0.20.0"
"""Of the library whose layout it is."""


def choose(
    checkpoint: Checkpoint, target: Target, options: Options, *, importance: bool
) -> list[Choice]:
    """Every linear weight on the target's grid. Raises UsageError."""
    refuse_foreign(options, importance=importance, target="ct")
    scheme = parse(target.type) if target.type else None
    choices = choose_modules(
        checkpoint, scheme, _any_codec, options, parse, head=False, runtime_names=False
    )
    return [_with_codec(choice) for choice in choices]


def parse(text: str) -> Scheme:
    """The grid of a target type; the default for an empty one. Raises UsageError."""
    if "actorder" in text:
        raise UsageError(f"ct:{text}: current libraries read no weight_g_idx; leave -actorder away")
    found = _TYPE.fullmatch(text or DEFAULT)
    if found is None:
        raise UsageError(
            f"ct:{text}: {text!r} is no type; write wBITSa16-gGROUP with -1 for one group a row, "
            f"and -asym for zeros, e.g. {', '.join(TYPES[:2])} or {TYPES[-1]}"
        )
    bits, group = int(found["bits"]), int(found["group"] or _GROUP)
    if bits not in BITS or not group:
        raise UsageError(f"ct:{text}: there are {' and '.join(map(str, BITS))} bits, and groups "
                         "have columns; -1 makes one group a row")  # fmt: skip
    return Scheme(bits, None if group == -1 else group, symmetric=found["asym"] is None)


def _any_codec(scheme: Scheme) -> IntCodec:
    """What stands in until the shape is known."""
    return IntCodec(None, packed_zeros=not scheme.symmetric, index=False)


def _with_codec(choice: Choice) -> Choice:
    """With the codec of its shape, and scales in the type that the source has them in."""
    if choice.scheme is None or (grid := choice.encoding.grouped) is None:
        return choice
    grid = replace(grid, scale=_scale(choice.parts, grid))
    return replace(choice, encoding=grid, codec=IntCodec.written(grid, choice.shape))


def _scale(parts: Sequence[Tensor], grid: Grouped) -> Dense:
    """The type of scales that are kept; float16, as those that are computed have it."""
    kept = set()
    for part in parts:
        own = part.encoding.grid()
        fits = own is not None and own.offset is None and own.bits <= grid.bits
        same = own is not None and (own.group or part.columns) == (grid.group or part.columns)
        has_zeros = own is not None and grid.symmetric and not own.symmetric
        kept.add(own.scale if own is not None and fits and same and not has_zeros else F16)
    return kept.pop() if len(kept) == 1 else F16


def lay_out(
    checkpoint: Checkpoint, target: Target, choices: list[Choice], options: Options, name: str
) -> Layout:
    """Weights and ``config.json`` with the settings. Raises UsageError where none is quantized."""
    config = folder_config(checkpoint, float_name(choices))
    settings = _settings(checkpoint, choices)
    tables = {"config.json": {**config, QUANTIZATION: settings}}
    return lay_out_folder(checkpoint, choices, options, tables)


def _settings(checkpoint: Checkpoint, choices: Sequence[Choice]) -> dict[str, Any]:
    modules: dict[Scheme, list[str]] = {}
    for choice in choices:
        if choice.scheme is not None:
            modules.setdefault(choice.scheme, []).append(choice.name.removesuffix(".weight"))
    if not modules:
        raise UsageError("a ct folder has at least one quantized module; every one is kept")
    groups = {}
    for number, (scheme, names) in enumerate(modules.items()):
        targets = ["Linear"] if len(modules) == 1 else names
        groups[f"group_{number}"] = {
            "targets": targets,
            "weights": _arguments(scheme),
            "input_activations": None,
            "output_activations": None,
            "format": _FORMAT,
        }
    return {
        "quant_method": METHOD,
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(dict.fromkeys(_ignored(checkpoint, choices))),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": _VERSION,
    }


def _arguments(scheme: Scheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group is None else "group",
        "group_size": scheme.group,
        "dynamic": False,
    }


def _ignored(checkpoint: Checkpoint, choices: Sequence[Choice]) -> Iterator[str]:
    """Modules whose matrices stay in floats; the head always, which may be tied."""
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    roles = {name.name: name.module.role for name in names}
    for choice in choices:
        role = roles.get(choice.parts[0].name) if choice.parts else None
        is_matrix = len(choice.shape) == 2 and choice.name.endswith(".weight")
        if choice.scheme is None and is_matrix and role != "embed":
            yield choice.name.removesuffix(".weight")
    yield from (n.hf.removesuffix(".weight") for n in names if n.module.role == "head")
