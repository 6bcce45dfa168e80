"""Checkpoint → compressed-tensors folder that vLLM, SGLang and transformers load.

``quantization_config`` has a group of settings for every grid: the only one is of all ``Linear``
modules but those in ``ignore``; of several every one names its modules.

Source: compressed_tensors' ``quant_scheme`` (llm-compressor's presets W4A16, W4A16_ASYM, W8A16,
FP8_DYNAMIC and FP8_BLOCK) and vLLM's ``compressed_tensors``, which has scales of integers in the
type that it serves in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from zenconvert.errors import UsageError
from zenconvert.formats.ct.codec import BITS, FloatCodec, IntCodec
from zenconvert.formats.hf import writer as hf_writer
from zenconvert.formats.hf.writer import float_name, folder_config, lay_out_folder
from zenconvert.formats.packed_folder import choose_modules, refuse_foreign
from zenconvert.formats.quantization import QUANTIZATION
from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.model.encoding import BF16, F16, F32, Dense, Encoding, Grouped
from zenconvert.model.layout import Choice, Layout
from zenconvert.model.meaning import Fact
from zenconvert.model.scaled import Scaled
from zenconvert.model.target import Options, Scheme, Target

__all__ = ["METHOD", "TYPES", "choose", "facts", "lay_out"]

METHOD: Final = "compressed-tensors"
DEFAULT: Final = "w4a16-g128"
FP8, FP8_BLOCK = "fp8", "fp8-block"
TYPES: Final = (
    DEFAULT, "w4a16-g128-asym", "w4a16-g32", "w8a16-g128", "w8a16-g-1", FP8, FP8_BLOCK,
)  # fmt: skip
"""Examples: any ``wBITSa16-gGROUP`` with ``-asym`` will do; without a group it has the 128 of
llm-compressor's presets."""
_TYPE: Final = re.compile(r"w(?P<bits>\d)a16(?:-g(?P<group>-1|\d+))?(?P<asym>-asym)?")
_GROUP: Final = 128
_FORMAT: Final = "pack-quantized"
_FLOATS: Final = "float-quantized"
_BLOCK: Final = 128
_TILES: Final = {FP8: (1, None), FP8_BLOCK: (_BLOCK, _BLOCK)}
_CODES: Final = Dense("f8_e4m3")
_SCALES: Final = (F32, F16, BF16)
_FLOAT: Final[dict[str, Any]] = {"num_bits": 8, "type": "float", "symmetric": True}
_ACTIVATIONS: Final[dict[str, dict[str, Any]]] = {
    FP8: {**_FLOAT, "strategy": "token", "dynamic": True},
    FP8_BLOCK: {**_FLOAT, "strategy": "group", "group_size": _BLOCK, "dynamic": True},
}
"""Rounded when a model runs, with a scale for every token, or for every 128 numbers of one."""
_WEIGHTS: Final[dict[str, dict[str, Any]]] = {
    FP8: {**_FLOAT, "strategy": "channel", "dynamic": False},
    FP8_BLOCK: {
        **_FLOAT, "strategy": "block", "block_structure": [_BLOCK, _BLOCK], "dynamic": False,
    },
}  # fmt: skip
_VERSION: Final = "0.20.0"
"""Of the library whose layout it is."""


def choose(
    checkpoint: Checkpoint, target: Target, options: Options, *, importance: bool
) -> list[Choice]:
    """Every linear weight on the target's grid. Raises UsageError."""
    refuse_foreign(options, importance=importance, target="ct")
    if (kind := _float_kind(checkpoint, target)) is not None:
        found = choose_modules(
            checkpoint, parse(""), _any_codec, options, _no_grid, head=False, runtime_names=False
        )
        return [_in_floats(choice, kind, follows=not target.type) for choice in found]
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
            f"and -asym for zeros, {FP8} or {FP8_BLOCK}; e.g. {', '.join(TYPES[:2])} or {TYPES[-3]}"
        )
    bits, group = int(found["bits"]), int(found["group"] or _GROUP)
    if bits not in BITS or not group:
        raise UsageError(f"ct:{text}: there are {' and '.join(map(str, BITS))} bits, and groups "
                         "have columns; -1 makes one group a row")  # fmt: skip
    return Scheme(bits, None if group == -1 else group, symmetric=found["asym"] is None)


def _float_kind(checkpoint: Checkpoint, target: Target) -> str | None:
    """The type of 8-bit floats that weights become: the named one, or else what they are."""
    if target.type:
        return target.type if target.type in _TILES else None
    tensors = checkpoint.tensors.values()
    return next((kind for kind in _TILES if any(_is_of(t.encoding, kind) for t in tensors)), None)


def _is_of(encoding: Encoding, kind: str) -> bool:
    return (
        isinstance(encoding, Scaled)
        and encoding.codes == _CODES
        and encoding.tile == _TILES[kind]
        and encoding.scale in _SCALES
    )


def _no_grid(text: str) -> Scheme:
    """Raise UsageError: there are no integers beside 8-bit floats."""
    raise UsageError(f"{text!r} makes no sense in 8-bit floats; choose from bf16, f16, f32")


def _in_floats(choice: Choice, kind: str, *, follows: bool) -> Choice:
    """8-bit floats where integers were chosen, with scales as the source has them.

    ``follows``: what the source has in floats stays so. Raises UsageError for a matrix of other
    than whole tiles.
    """
    if choice.scheme is None:
        return choice
    if follows and not any(part.encoding.is_quantized for part in choice.parts):
        floats, why = choice.parts[0].encoding.floats, "the source keeps it in floats"
        return replace(choice, encoding=floats, codec=None, scheme=None, why=why)
    own = {part.encoding for part in choice.parts}
    first = choice.parts[0].encoding
    encoding = first if len(own) == 1 and _is_of(first, kind) else None
    encoding = encoding or Scaled(_CODES, BF16, _TILES[kind])
    assert isinstance(encoding, Scaled)
    rows, width = encoding.tile
    if choice.shape[1] % (width or 1) or any(start % (rows or 1) for start in choice.starts):
        raise UsageError(
            f"{choice.name} {list(choice.shape)} is no multiple of blocks of {_BLOCK} × {_BLOCK}, "
            "or holds modules that are none; ct:fp8 has a scale for every row"
        )
    codec = FloatCodec(encoding)
    return replace(choice, encoding=encoding, codec=None, scheme=None, lines=codec)


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


def facts(checkpoint: Checkpoint, target: Target, options: Options) -> list[Fact]:
    """Facts of the config, and what is done to activations."""
    found = hf_writer.facts(checkpoint, target, options)
    if (kind := _float_kind(checkpoint, target)) is not None:
        each = "token" if kind == FP8 else f"{_BLOCK} numbers of a token"
        why = f"runtimes round what weights read to 8-bit floats, with a scale for every {each}"
        value = _ACTIVATIONS[kind]
        found.append(Fact("input_activations", value, QUANTIZATION, why=why, told=True))
    return found


def _settings(checkpoint: Checkpoint, choices: Sequence[Choice]) -> dict[str, Any]:
    modules: dict[Scheme | str, list[str]] = {}
    for choice in choices:
        if _is_packed(choice):
            kind = choice.scheme or (FP8 if choice.encoding.band == 1 else FP8_BLOCK)
            modules.setdefault(kind, []).append(choice.name.removesuffix(".weight"))
    if not modules:
        raise UsageError("a ct folder has at least one quantized module; every one is kept")
    groups, form = {}, _FLOATS if any(isinstance(kind, str) for kind in modules) else _FORMAT
    for number, (kind, names) in enumerate(modules.items()):
        targets = ["Linear"] if len(modules) == 1 else names
        groups[f"group_{number}"] = {
            "targets": targets,
            "weights": _WEIGHTS[kind] if isinstance(kind, str) else _arguments(kind),
            "input_activations": _ACTIVATIONS[kind] if isinstance(kind, str) else None,
            "output_activations": None,
            "format": form,
        }
    return {
        "quant_method": METHOD,
        "format": form,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(dict.fromkeys(_ignored(checkpoint, choices))),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": _VERSION,
    }


def _is_packed(choice: Choice) -> bool:
    return choice.scheme is not None or choice.lines is not None


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
        if not _is_packed(choice) and is_matrix and role != "embed":
            yield choice.name.removesuffix(".weight")
    yield from (n.hf.removesuffix(".weight") for n in names if n.module.role == "head")
