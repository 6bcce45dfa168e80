"""Tensors of a concrete model in every vocabulary, from the modules of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Final

from zenconvert.base.records import record
from zenconvert.model.table_rows import Module

GROUPS: Final = "linear_key_heads"
"""The size that says how many groups heads are tiled in."""


@record
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
    hf_rows: str | None = None
    """The tensor that HF files have it in, among rows of others."""
    gguf_rows: str | None = None
    """Another tensor that GGUF files may have it in, among rows of others."""
    unread: bool = False
    """Nobody computes with it."""
    gguf_values: str | None = None
    """The tensor of its values, where GGUF files have ``gguf`` of its keys alone."""
    gguf_place: int = 0
    """Where it stands among the rows of a tensor of a GGUF file, if it is of one of many heads."""

    @property
    def gguf_files(self) -> tuple[str, ...]:
        """The tensors that GGUF files have it in."""
        return (self.gguf,) if self.gguf_values is None else (self.gguf, self.gguf_values)

    @property
    def hf_file(self) -> str:
        """The tensor that HF files have it in, by itself or among rows of others."""
        return self.hf_rows or self.hf

    @property
    def hf_module(self) -> str:
        """What HF files call the module."""
        bare = self.module.hf_bare and self.is_weight
        return self.hf if bare else self.hf.rpartition(".")[0]

    @property
    def is_weight(self) -> bool:
        """True for the weight, False for the bias of the module."""
        return self.name.endswith(".weight")


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which layers of a model have which modules."""

    layers: int
    dense: frozenset[int]
    full: frozenset[int]
    keyed: bool
    """Layers that see everything have no values but keys."""
    sharing: int
    """Last layers that read keys and values of others."""
    linear: frozenset[int] = frozenset()
    """Layers with linear attention; all others see everything where there are some."""

    def of(self, layer: int) -> tuple[str | None, ...]:
        """What a layer is."""
        if layer in self.linear:
            return (None, "dense" if layer in self.dense else "sparse", "linear")
        full = layer in self.full or bool(self.linear)
        kinds = (None, "dense" if layer in self.dense else "sparse", "full" if full else "sliding")
        return kinds if full and self.keyed else (*kinds, "values")


@lru_cache(maxsize=2)  # several readers and writers of one model ask
def tensor_names(
    modules: tuple[Module, ...],
    sizes: tuple[tuple[str, int], ...],
    kinds: Kinds,
    experts: int,
    tied: bool,
) -> tuple[TensorName, ...]:
    known = dict(sizes)
    shapes = {m.name: tuple(known[size] for size in m.shape) for m in modules}
    full = {m.name: tuple(known[s] for s in m.full_shape) for m in modules if m.full_shape}
    wide = {m.name: tuple(known[s] for s in m.sharing_shape) for m in modules if m.sharing_shape}
    blocks = [m for m in modules if "{layer}" in m.name]
    first, last = modules.index(blocks[0]), modules.index(blocks[-1])
    places = [(module, "", shapes, False) for module in modules[:first]]
    for layer in range(kinds.layers):
        of, shares = kinds.of(layer), layer >= kinds.layers - kinds.sharing
        here = {**shapes, **full} if "full" in of else shapes
        here = {**here, **wide} if shares else here
        places += [(m, str(layer), here, shares) for m in blocks if m.layers in of]
    places += [(module, "", shapes, False) for module in modules[last + 1 :]]
    found = (
        name
        for module, layer, of_all, shares in places
        for name in _expand(module, of_all[module.name], layer, experts, tied=tied, shares=shares)
    )
    return tuple(_of_heads(found, known) if any(m.heads for m in modules) else found)


def _expand(
    module: Module, shape: tuple[int, ...], layer: str, experts: int, *, tied: bool, shares: bool
) -> Iterator[TensorName]:
    """The tensors of a module in one layer, of every expert; ``shares``: the layer reads keys and
    values of another one."""
    unread = shares and module.unshared
    values = module.gguf_values and f"{module.gguf_values.replace('{layer}', layer)}.weight"
    also, stack = module.hf_also, module.hf_stack
    texts = (module.name, module.hf, module.gguf, also, stack, module.hf_rows, module.gguf_rows)
    names = [(text or "").replace("{layer}", layer) for text in texts]
    required = not (module.role == "head" and tied) and not unread
    for expert in range(experts) if "{expert}" in module.name else (None,):
        of = names
        if expert is not None:
            number = str(expert)
            of = [text.replace("{expert}", number) for text in names]
        name, hf, gguf, other, stacked, rows, gguf_rows = of
        stored = hf if module.hf_bare else f"{hf}.weight"
        in_gguf = gguf if module.gguf_bare else f"{gguf}.weight"
        yield TensorName(
            f"{name}.weight", stored, in_gguf, module, shape, required, expert,
            (other if module.hf_bare else f"{other}.weight") if also is not None else None,
            stacked or None,
            f"{rows}.weight" if rows else None, f"{gguf_rows}.weight" if gguf_rows else None,
            unread, values,
        )  # fmt: skip
        if module.bias != "none":
            yield TensorName(
                f"{name}.bias", f"{hf}.bias", f"{gguf}.bias", module, shape[:1],
                module.bias == "required", expert, None,
                f"{stacked}_bias" if stacked and module.hf_stacked else None,
                f"{rows}.bias" if rows else None, f"{gguf_rows}.bias" if gguf_rows else None,
                unread,
            )  # fmt: skip


def _of_heads(names: Iterable[TensorName], sizes: Mapping[str, int]) -> Iterator[TensorName]:
    """The same with a tensor of every head where modules have one of each: head by head where
    these are rows of one tensor of HF files, module by module where they are of one in GGUF."""
    for of_heads, group in groupby(names, key=lambda n: n.module.heads and (n.hf_rows or n.hf)):
        parts = list(group)
        if not of_heads:
            yield from parts
            continue
        count = sizes[parts[0].module.heads]
        for head in range(count):
            for at, name in enumerate(parts):
                place = head
                if name.module.gguf_tiled:
                    groups = sizes[GROUPS]
                    place = head % (count // groups) * groups + head // (count // groups)
                texts = (name.name, name.hf, name.gguf)
                own, hf, gguf = (text.replace("{head}", str(head)) for text in texts)
                yield replace(name, name=own, hf=hf, gguf=gguf, gguf_place=1 + at * count + place)


def in_rows(names: Iterable[TensorName]) -> dict[str, list[TensorName]]:
    """HF name of every tensor that holds rows of several → these, in the order of their rows."""
    found: dict[str, list[TensorName]] = {}
    for name in names:
        if name.hf_rows is not None:
            found.setdefault(name.hf_rows, []).append(name)
    return found


def in_one_tensor(names: Iterable[TensorName], *, stacked: bool) -> dict[str, list[TensorName]]:
    """HF name of every tensor of files that holds several → these, in the order of their rows:
    modules that are rows of one, and, where files are ``stacked``, experts of a layer in families
    whose files have them in no other way."""
    found = in_rows(names)
    if not stacked:
        return found
    for name in names:
        if name.module.hf_stacked and name.hf_stack is not None:
            found.setdefault(name.hf_stack, []).append(name)
    for stored, parts in found.items():
        if stored == parts[0].hf_stack:
            parts.sort(key=lambda n: (n.expert or 0, n.module.hf_stack_part))
    return found


def joined_shape(names: Sequence[TensorName]) -> tuple[int, ...]:
    """The shape of a tensor that holds the rows of all of these, or of all experts."""
    if len(names) == 1:
        return names[0].shape
    experts = len({name.expert for name in names})
    if experts > 1 or (names[0].expert is not None and len(names) > 1):
        return stack_shape(names)
    return (sum(name.shape[0] for name in names), *names[0].shape[1:])


def stack_shape(names: Sequence[TensorName]) -> tuple[int, ...]:
    """The shape of a tensor that holds all experts of these, as files have it."""
    experts = len({name.expert for name in names})
    rows = sum(name.shape[0] for name in names) // experts
    one = (rows, *names[0].shape[1:])
    return (experts, *(one[::-1] if names[0].module.hf_turned else one))
