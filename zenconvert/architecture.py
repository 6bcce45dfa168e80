"""Architectures as data: which tensors a model family has and what each vocabulary calls them.

One TOML file per family in ``zenconvert/architectures/``. A *module* is a weight with an optional
bias; templates hold ``{layer}`` and ``{expert}``. Nothing here knows file formats; a row that a
format keeps in another row order names a reversible operation from :data:`ROW_OPERATIONS`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from zenconvert.checkpoint import RowOrder
from zenconvert.errors import InvalidInput, MissingTensor, UnknownArchitecture
from zenconvert.hyperparameters import Hyperparameters

Role = Literal["embed", "linear", "norm", "router", "head"]
BiasRule = Literal["none", "optional", "required"]
Vocabulary = Literal["hf", "gguf"]

_STACK: Final = 3
"""Dimensions of a tensor that holds the experts of a layer."""
_FUSED: Final = 3
"""Modules at most that a file may keep in one tensor."""
_MOST_EXPERTS: Final = 1 << 16
_FOLDER: Final = Path(__file__).parent / "architectures"


@dataclass(frozen=True, slots=True)
class Module:
    """One row of an architecture table."""

    name: str
    """Neutral template, e.g. ``layers.{layer}.attn.q``."""
    hf: str
    gguf: str
    role: Role
    shape: tuple[str, ...]
    """Fields of :class:`Hyperparameters`, ``[out, in]``."""
    bias: BiasRule = "none"
    gguf_rows: str | None = None
    """Row operation between the HF (neutral) and the GGUF row order."""
    hf_also: str | None = None
    """Another name that tools give it which keep transformers' names of today."""
    hf_stack: str | None = None
    """The tensor that has all experts of a layer where transformers keeps them in one,
    ``[experts, parts · out, in]``."""
    hf_stack_part: tuple[int, int] = (0, 1)
    """Which part of the rows of an expert there it is, and of how many."""


@dataclass(frozen=True, slots=True)
class Balance:
    """AWQ may scale the output channels of ``smooth`` and unscale the inputs of ``into``."""

    smooth: str
    into: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorName:
    """One tensor of a concrete model in every vocabulary."""

    name: str
    """Neutral."""
    hf: str
    gguf: str
    module: Module
    shape: tuple[int, ...]
    required: bool
    expert: int | None = None
    """Position in the stack where a vocabulary stacks experts."""
    hf_also: str | None = None
    """Its other name in HF files, where there is one."""
    hf_stack: str | None = None
    """The tensor of all experts in HF files that have one."""

    @property
    def is_weight(self) -> bool:
        """True for the weight, False for the bias of the module."""
        return self.name.endswith(".weight")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model family: a table of modules and what configs mean."""

    id: str
    """Name of its TOML file."""
    model_types: tuple[str, ...]
    """``config.json`` ``model_type`` values; the first is written."""
    hf_class: str
    gguf: str
    """``general.architecture`` in GGUF."""
    gguf_keys: tuple[str, ...]
    """GGUF keys beyond the common ones."""
    experts: bool
    modules: tuple[Module, ...]
    balances: tuple[Balance, ...]
    defaults: Mapping[str, Any]
    defaults_of: Mapping[str, Mapping[str, Any]]

    def defaults_for(self, model_type: str) -> dict[str, Any]:
        """Config defaults of one model type of the family."""
        return {**self.defaults, **self.defaults_of.get(model_type, {})}

    def check_counts(
        self, hp: Hyperparameters, shapes: Iterable[tuple[int, ...]], where: str
    ) -> None:
        """Raise MissingTensor for more layers or experts than tensors of these shapes can hold.

        To be called before :meth:`tensor_names`, which takes as long as there are names.
        """
        one = replace(hp, layers=1, experts=min(hp.experts, 1))
        needed = [n for n in self.tensor_names(one) if n.required and "{layer}" in n.module.name]
        of_experts = sum(n.expert is not None for n in needed)
        least = hp.layers * (len(needed) - of_experts + of_experts * hp.experts)
        stored = [shape for shape in shapes if 0 not in shape]
        room = len(stored) + sum(shape[0] for shape in stored if len(shape) == _STACK)
        if least > _FUSED * room or hp.experts > _MOST_EXPERTS:
            experts = f" of {hp.experts} experts" if hp.experts else ""
            raise MissingTensor(
                f"{where}: {hp.layers} layers{experts} call for at least {least} tensors, and "
                f"{len(stored)} are stored; the counts are wrong, or files are missing"
            )

    def tensor_names(self, hp: Hyperparameters) -> Iterator[TensorName]:
        """Every tensor that a model of this size may have, layer by layer."""
        blocks = [m for m in self.modules if "{layer}" in m.name]
        first = self.modules.index(blocks[0])
        last = self.modules.index(blocks[-1])
        for module in self.modules[:first]:
            yield from _expand(module, hp, None)
        for layer in range(hp.layers):
            for module in blocks:
                yield from _expand(module, hp, layer)
        for module in self.modules[last + 1 :]:
            yield from _expand(module, hp, None)


def _expand(module: Module, hp: Hyperparameters, layer: int | None) -> Iterator[TensorName]:
    experts = range(hp.experts) if "{expert}" in module.name else (None,)
    for expert in experts:
        values = {"layer": layer, "expert": expert}
        name, hf, gguf = (t.format(**values) for t in (module.name, module.hf, module.gguf))
        also = f"{module.hf_also.format(**values)}.weight" if module.hf_also is not None else None
        stack = module.hf_stack.format(**values) if module.hf_stack is not None else None
        shape = tuple(int(getattr(hp, size)) for size in module.shape)
        tied_head = module.role == "head" and hp.tied
        weight = (f"{name}.weight", f"{hf}.weight", f"{gguf}.weight")
        yield TensorName(
            *weight, module, shape, required=not tied_head, expert=expert, hf_also=also,
            hf_stack=stack,
        )  # fmt: skip
        if module.bias != "none":
            bias = (f"{name}.bias", f"{hf}.bias", f"{gguf}.bias")
            required = module.bias == "required"
            yield TensorName(*bias, module, shape[:1], required=required, expert=expert)


def _rope_pairs(hp: Hyperparameters) -> RowOrder:
    """Halves → neighbouring pairs within a head (``LlamaModel.permute`` in llama.cpp)."""
    half = hp.head_dim // 2
    return RowOrder(tuple(side * half + pair for pair in range(half) for side in (0, 1)))


ROW_OPERATIONS: Final[dict[str, Callable[[Hyperparameters], RowOrder]]] = {
    "rope_pairs": _rope_pairs,
}


@cache
def architectures() -> dict[str, Architecture]:
    """Every known architecture by id."""
    return {path.stem: _load(path) for path in sorted(_FOLDER.glob("*.toml"))}


def for_model_type(model_type: str) -> Architecture:
    """The architecture of a ``config.json`` model type. Raises UnknownArchitecture."""
    for architecture in architectures().values():
        if model_type in architecture.model_types:
            return architecture
    known = sorted(t for a in architectures().values() for t in a.model_types)
    raise UnknownArchitecture(
        f"model type {model_type!r} is not known; known are {', '.join(known)}. "
        "Adding one takes a table in zenconvert/architectures/."
    )


def for_gguf(name: str, *, experts: bool) -> Architecture:
    """The architecture of a GGUF ``general.architecture``. Raises UnknownArchitecture."""
    for architecture in architectures().values():
        if architecture.gguf == name and architecture.experts == experts:
            return architecture
    known = sorted({a.gguf for a in architectures().values()})
    kind = "with experts" if experts else "without experts"
    raise UnknownArchitecture(
        f"GGUF architecture {name!r} {kind} is not known; known are {', '.join(known)}."
    )


def _load(path: Path) -> Architecture:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {
        "model_types", "class", "gguf", "gguf_keys", "experts",
        "defaults", "defaults_of", "module", "balance",
    }  # fmt: skip
    if unknown := set(table) - known:
        raise InvalidInput(f"{path}: unknown keys {sorted(unknown)}; known are {sorted(known)}")
    modules = tuple(_module(path, row) for row in table["module"])
    names = {m.name for m in modules}
    balances = tuple(Balance(b["smooth"], tuple(b["into"])) for b in table.get("balance", ()))
    for balance in balances:
        if missing := {balance.smooth, *balance.into} - names:
            raise InvalidInput(f"{path}: a balance names unknown modules {sorted(missing)}")
    return Architecture(
        id=path.stem,
        model_types=tuple(table["model_types"]),
        hf_class=table["class"],
        gguf=table["gguf"],
        gguf_keys=tuple(table.get("gguf_keys", ())),
        experts=table.get("experts", False),
        modules=modules,
        balances=balances,
        defaults=table.get("defaults", {}),
        defaults_of=table.get("defaults_of", {}),
    )


def _module(path: Path, row: dict[str, Any]) -> Module:
    known = {f.name for f in fields(Module)}
    if unknown := set(row) - known:
        raise InvalidInput(f"{path}: module {row.get('name')}: unknown keys {sorted(unknown)}")
    lists: dict[str, Any] = {k: tuple(row[k]) for k in ("shape", "hf_stack_part") if k in row}
    module = Module(**{**row, **lists})
    for value, allowed in ((module.role, get_args(Role)), (module.bias, get_args(BiasRule))):
        if value not in allowed:
            raise InvalidInput(f"{path}: module {module.name}: {value!r} is none of {allowed}")
    if module.gguf_rows is not None and module.gguf_rows not in ROW_OPERATIONS:
        raise InvalidInput(f"{path}: module {module.name}: no row operation {module.gguf_rows!r}")
    return module
