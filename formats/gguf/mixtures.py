"""Which ggml type every tensor of a file type gets, as ``llama-quantize`` decides, with the reason.

The rules are data (``mixtures.toml``). Around them: tensors that are never quantized, the output
head, the caller's overrides, and smaller blocks for rows that are not a multiple of a type's block.

Source: ``llama_tensor_get_type``, ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` in
llama.cpp's llama-quant.cpp; ``prepare_tensors`` of its converter for float file types. Overrides
differ on purpose: they hold for float file types too and are never lower-cased.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import InvalidInput, UsageError
from zenconvert.ggml import blocks
from zenconvert.ggml.types import BY_NAME

ALIASES: Final = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "mxfp4": "mxfp4_moe"}

_DATA: Final = Path(__file__).with_name("mixtures.toml")
_FLOAT_TYPES: Final = frozenset({"f32", "f16", "bf16"})
_OUTPUT: Final = "output.weight"
_EMBEDDING: Final = "token_embd.weight"
_INPUTS: Final = "per_layer_token_embd.weight"
"""An embedding, too; the quantizer lets patterns name it before the type of embeddings holds."""
_AS_IT_IS: Final = "per_layer_model_proj.weight"
"""What the quantizer leaves in the type that it has."""
_NEEDS_IMPORTANCE: Final = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"})
# rows that are not a multiple of 256
_FALLBACKS: Final = {
    **dict.fromkeys(
        ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"
    ),
    **dict.fromkeys(("q2_k", "q3_k", "tq1_0", "tq2_0", "q2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the rules ask of a model."""

    layers: int
    heads: int
    kv_heads: int
    experts: int
    tied: bool
    """The embedding is the output head too."""
    is_70b: bool = False
    """It is of llama.cpp's size class 70B."""

    @property
    def gqa(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor by its GGUF name and its shape, slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: str | None = None
    """The ggml type that it has already; None for encodings of other formats."""
    stays: bool = False
    """Files of floats have it in that type, too."""


_IN_BLOCK: Final = re.compile(r"blk\.(\d+)\.(\w+?)(_exps|_shexp)?\.weight")
_LIKE_ATTN_V: Final = frozenset({"attn_v", "attn_qkv", "attn_kv_b"})
"""Roles of one category (``category_is_attn_v``): what holds values, among other rows or not."""


@dataclass(frozen=True, slots=True)
class TypeChoice:
    """A type and what decided it."""

    type: str
    why: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a file type; see the head of mixtures.toml."""

    tensors: tuple[str, ...]
    type: str
    layers: str | None = None
    gqa4: bool | None = None
    importance: bool | None = None
    experts: int | None = None
    experts_min: int | None = None

    def fits(self, roles: Sequence[str], layer: int, model: ModelFacts, importance: bool) -> bool:
        """True when every condition holds."""
        return (
            not set(roles).isdisjoint(self.tensors)
            and (self.layers is None or _in_layers(self.layers, layer, model.layers))
            and (self.gqa4 is None or self.gqa4 == (model.gqa >= 4))
            and (self.importance is None or self.importance == importance)
            and (self.experts is None or self.experts == model.experts)
            and (self.experts_min is None or model.experts >= self.experts_min)
        )

    def explain(self, role: str) -> str:
        """The conditions in words."""
        conditions = (
            (self.layers is not None, f"in the {_LAYER_SETS.get(self.layers or '', '')}"),
            (self.gqa4 is True, "with four or more query heads per key-value head"),
            (self.importance is True, "with importance weights"),
            (self.importance is False, "without importance weights"),
            (self.experts is not None, f"in a model of {self.experts} experts"),
            (self.experts_min is not None, f"in a model of {self.experts_min} or more experts"),
        )
        return " ".join([role, *(text for holds, text in conditions if holds)])


@dataclass(frozen=True, slots=True)
class FileType:
    """One file type with its rules."""

    name: str
    id: int
    """``llama_ftype``."""
    type: str
    rules: tuple[Rule, ...] = ()
    output: str = "q6_k"
    embedding: str | None = None
    seventy: bool = True


def _in_layers(name: str, layer: int, count: int) -> bool:
    """Membership in a set of layers; integer divisions as in llama.cpp."""
    eighth, seven_eighths = count // 8, 7 * count // 8
    return {
        "first_2": layer < 2,
        "first_4": layer < 4,
        "first_sixteenth": layer < count // 16,
        "first_eighth": layer < eighth,
        "middle": eighth <= layer < seven_eighths,
        "more_bits": layer < eighth or layer >= seven_eighths or (layer - eighth) % 3 == 2,
    }[name]


def _load() -> tuple[dict[str, FileType], dict[str, str]]:
    table = tomllib.loads(_DATA.read_text(encoding="utf-8"))
    known = {f.name for f in fields(FileType)} - {"name"}
    file_types = {}
    for name, row in table["file_types"].items():
        if unknown := set(row) - known:
            raise InvalidInput(f"{_DATA}: {name}: unknown keys {sorted(unknown)}")
        rules = tuple(_rule(name, rule, table["layers"]) for rule in row.get("rules", ()))
        file_types[name] = FileType(name, **{**row, "rules": rules})
    return file_types, table["layers"]


def _rule(name: str, row: dict[str, Any], layer_sets: dict[str, str]) -> Rule:
    if unknown := set(row) - {f.name for f in fields(Rule)}:
        raise InvalidInput(f"{_DATA}: {name}: unknown conditions {sorted(unknown)}")
    if row.get("layers", "first_2") not in layer_sets or row["type"] not in BY_NAME:
        raise InvalidInput(f"{_DATA}: {name}: unknown layers or type in {row}")
    return Rule(**{**row, "tensors": tuple(row["tensors"])})


_FILE_TYPES, _LAYER_SETS = _load()
FILE_TYPES: Final[dict[str, int]] = {name: f.id for name, f in _FILE_TYPES.items()}
"""File type → ``llama_ftype`` number."""


def block_types(file_type: str) -> set[str]:
    """Every type that a file of this file type may hold by rule."""
    chosen = _FILE_TYPES[file_type]
    types = {chosen.type, *(rule.type for rule in chosen.rules)}
    return types | ({chosen.embedding} if chosen.embedding is not None else set())


def choose(
    file_type: str,
    model: ModelFacts,
    tensors: Sequence[TensorFacts],
    *,
    importance: bool = False,
    pure: bool = False,
    overrides: Sequence[tuple[str, str]] = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    allotted: Mapping[str, TypeChoice] | None = None,
) -> dict[str, TypeChoice]:
    """The type of every tensor by name.

    ``allotted`` is what goes before the rules of the file type, tensor by tensor.

    ``overrides`` are ``(regular expression, type)``; the first that is found in a name wins.
    Raises UsageError for an unknown file type or type and for an invalid expression.
    """
    if file_type not in _FILE_TYPES:
        raise UsageError(f"there is no GGUF file type {file_type!r}")
    compiled = [(_compiled(pattern), _known(kind)) for pattern, kind in overrides]
    named = {_OUTPUT: output_type, _EMBEDDING: embedding_type}
    if model.tied and embedding_type is None:
        named[_EMBEDDING] = output_type
    choices, places = {}, _value_places(tensors)
    for tensor in tensors:
        chosen = _kept(tensor, file_type)
        if chosen is None and (kind := named.get(tensor.name)) is not None:
            chosen = TypeChoice(_known(kind), f"{kind} was asked for")
        if chosen is None:
            chosen = _overridden(tensor, compiled)
        if chosen is None and tensor.name == _INPUTS and (kind := named[_EMBEDDING]) is not None:
            chosen = TypeChoice(_known(kind), f"{kind} was asked for")
        if chosen is None and allotted is not None:
            chosen = allotted.get(tensor.name)
        if chosen is None:
            of = replace(model, layers=len(places)) if tensor.name in places else model
            at = places.get(tensor.name)
            chosen = _by_rule(_FILE_TYPES[file_type], of, tensor, importance, pure, at)
        choices[tensor.name] = _fitting(tensor, chosen)
    return choices


def _value_places(tensors: Sequence[TensorFacts]) -> dict[str, int]:
    """The place of every tensor that holds values among these: the quantizer counts them, and some
    layers may have none."""
    found = {}
    for tensor in tensors:
        match = _IN_BLOCK.fullmatch(tensor.name)
        if match is not None and match[2] in _LIKE_ATTN_V:
            found[tensor.name] = int(match[1])
    return {name: at for at, name in enumerate(sorted(found, key=lambda name: found[name]))}


def requires_importance(file_type: str, tensor: str, kind: str) -> bool:
    """True when llama.cpp does not write this type for this tensor without importance weights."""
    if blocks.requires_importance(kind):
        return True
    if tensor in {_OUTPUT, _EMBEDDING, _INPUTS}:
        return False
    return kind in _NEEDS_IMPORTANCE or (kind == "q2_k" and file_type == "q2_k_s")


def _known(kind: str) -> str:
    if kind not in BY_NAME:
        raise UsageError(f"there is no ggml type {kind!r}; known are {', '.join(BY_NAME)}")
    return kind


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"invalid regular expression {pattern!r}: {error}") from error


def _kept(tensor: TensorFacts, file_type: str) -> TypeChoice | None:
    """Tensors that stay in f32: vectors, norms, routers and the like; or as they are."""
    if tensor.name == _AS_IT_IS and file_type not in _FLOAT_TYPES:
        return TypeChoice(tensor.type or "bf16", "it is small, and stays as it is")
    if len(tensor.shape) < 2:
        return TypeChoice("f32", "vectors stay in f32")
    if not tensor.name.endswith(".weight") or "_norm." in tensor.name:
        return TypeChoice("f32", "norms and biases stay in f32")
    if re.search(r"\.ffn_gate_inp(_shexp)?\.", tensor.name):
        return TypeChoice("f32", "routers stay in f32")
    if ".ssm_conv1d." in tensor.name:
        return TypeChoice("f32", "convolutions stay in f32")
    return None


def _overridden(
    tensor: TensorFacts, overrides: Sequence[tuple[re.Pattern[str], str]]
) -> TypeChoice | None:
    for pattern, kind in overrides:
        if pattern.search(tensor.name):
            return TypeChoice(kind, f"the name matches {pattern.pattern!r}")
    return None


def _by_rule(
    file_type: FileType,
    model: ModelFacts,
    tensor: TensorFacts,
    importance: bool,
    pure: bool,
    place: int | None,
) -> TypeChoice:
    default = file_type.type
    if default in _FLOAT_TYPES and tensor.stays and tensor.type is not None:
        return TypeChoice(tensor.type, "the source's own blocks, bit for bit")
    if default in _FLOAT_TYPES or pure:
        return TypeChoice(default, f"{default} for every matrix")
    embeds = tensor.name in {_EMBEDDING, _INPUTS}
    if tensor.name == _OUTPUT or (model.tied and embeds):
        return _output(file_type, tensor)
    if embeds:
        return TypeChoice(file_type.embedding or default, f"the embedding in {file_type.name}")
    match = _IN_BLOCK.fullmatch(tensor.name)
    if match is None:
        return TypeChoice(default, f"the type of {file_type.name}")
    layer, role = int(match[1]) if place is None else place, match[2]
    roles = [f"{role}{match[3]}", role] if match[3] and len(tensor.shape) > 2 else [role]
    roles = ["attn_v"] if role in _LIKE_ATTN_V else roles
    kind, why = default, f"the type of {file_type.name}"
    for rule in file_type.rules:
        if rule.fits(roles, layer, model, importance):
            kind, why = rule.type, rule.explain(role)
            break
    if file_type.seventy and "attn_v" in roles and model.is_70b and kind in {"q3_k", "q4_k"}:
        return TypeChoice("q5_k", f"{role} of a model of the 70B class")
    return TypeChoice(kind, why)


def _output(file_type: FileType, tensor: TensorFacts) -> TypeChoice:
    if tensor.shape[-1] % BY_NAME[file_type.type].block_size:
        return TypeChoice("q8_0", f"the output head, whose rows of {tensor.shape[-1]} are odd")
    kind = "q8_0" if file_type.type == "q8_0" else file_type.output
    return TypeChoice(kind, f"the output head in {file_type.name}")


def _fitting(tensor: TensorFacts, choice: TypeChoice) -> TypeChoice:
    """The choice, or a type with smaller blocks that divides the rows."""
    columns, block = tensor.shape[-1], BY_NAME[choice.type].block_size
    if columns % block == 0:
        return choice
    smaller = _FALLBACKS.get(choice.type, choice.type)
    if columns % BY_NAME[smaller].block_size:
        smaller = "f16"
    why = f"rows of {columns} are no multiple of {block}: {choice.type} falls back to {smaller}"
    return TypeChoice(smaller, f"{choice.why}; {why}")
