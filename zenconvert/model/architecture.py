"""Architectures as data: which tensors a model family has and what each vocabulary calls them.

One TOML file per family in ``zenconvert/architectures/``, read by
:mod:`zenconvert.model.architecture_table`. A *module* is a weight with an optional bias; templates
hold ``{layer}`` and ``{expert}``. Nothing here knows file formats; a row that a format keeps in
another row order or as other numbers names a reversible operation of
:mod:`zenconvert.model.operations`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import InvalidInput, MissingTensor, UnknownArchitecture, Unsupported
from zenconvert.model import operations
from zenconvert.model.architecture_table import ALWAYS, IGNORED, Table, read_table
from zenconvert.model.block_features import BlockFeatures, block_features
from zenconvert.model.config_sizes import Names
from zenconvert.model.gguf_family import GgufFamily, in_gguf
from zenconvert.model.hyperparameters import Hyperparameters, from_config
from zenconvert.model.table_rows import Balance, BiasRule, Module, Wrapper
from zenconvert.model.tensor_names import GROUPS, Kinds, tensor_names
from zenconvert.model.tensor_names import TensorName as TensorName

_STACK: Final = 3
"""Dimensions of a tensor that holds the experts of a layer."""
_FUSED: Final = 3
"""Modules at most that a file may keep in one tensor."""
_MOST_EXPERTS: Final = 1 << 16
_MOST_TOKENS: Final = 1 << 22
_FOLDER: Final = Path(__file__).parent.parent / "architectures"


@dataclass(frozen=True)
class Architecture:
    """A model family, as one of its model types has it: modules, and what configs mean."""

    id: str
    """Name of its TOML file."""
    model_type: str
    """``model_type`` of its configs."""
    model_types: tuple[str, ...]
    """All that the family has."""
    hf_class: str
    gguf: str
    """``general.architecture`` in GGUF."""
    gguf_without: str | None
    """GGUF files without this key are of this model type, if the family has several."""
    in_gguf: GgufFamily
    genai_types: frozenset[str]
    """Model types that onnxruntime-genai knows by name."""
    experts: bool | None
    """Whether models have experts; None where some have."""
    modules: tuple[Module, ...]
    balances: tuple[Balance, ...]
    names: Names
    """Size → where a config has it."""
    layers: Mapping[str, str]
    """``dense`` and ``sparse_step``, or ``types``, ``own``, ``keyed``, ``wide`` and ``mixture``, or
    ``linear`` and ``interval`` → the config's keys that say which layers are which."""
    needs: Mapping[str, Sequence[Any]]
    """Config key → the values without which the tables' modules are not the model's."""
    defaults: Mapping[str, Any]
    """What holds where a config is silent."""
    constants: Mapping[str, Sequence[Any]]
    """Config key → the values that graphs beside transformers' compute."""
    ignored: frozenset[str]
    """Config keys that change nothing in this family."""
    list_rules: Mapping[str, Mapping[str, Any]]
    """Config key → what its entries for every layer have to be, as ``LIST_RULES`` says."""
    block: BlockFeatures
    """What a layer computes beside its modules."""
    wrappers: tuple[Wrapper, ...]
    """Model types that hold models of the family."""
    further: tuple[str, ...]
    """What names of tensors begin with that predict further tokens, outside of layers."""

    def sizes(self, config: Mapping[str, Any], *, where: str) -> Hyperparameters:
        """The sizes of a config. Raises as ``from_config``, and Unsupported for a model of another
        kind than the table's."""
        for key, allowed in self.needs.items():
            value = config.get(key, self.defaults.get(key))
            if value is not None and value not in allowed:
                raise Unsupported(
                    f"{where}: {key} is {value!r:.60}, and {self.id} models are known with "
                    f"{' or '.join(map(repr, allowed)) or 'none'} only"
                )
        return from_config(config, self.defaults, self.names, where=where, layers=self.layers)

    def key(self, size: str) -> str:
        """The key under which a config that is written has a size."""
        names = self.names.get(size, size)
        return names if isinstance(names, str) else names[0]

    def keys(self, size: str) -> tuple[str, ...]:
        """All keys under which configs may have a size."""
        names = self.names.get(size, ())
        return (names,) if isinstance(names, str) else tuple(names)

    def older_key(self, size: str) -> str | None:
        """The key at the top of a config under which older configs have a size."""
        names = self.names.get(size, size)
        keys = [names] if isinstance(names, str) else names
        return next((key for key in keys if "." not in key), None)

    @property
    def has_rotations_by_kind(self) -> bool:
        """Whether kinds of layers have rotations of their own in the family."""
        return "sliding_theta" in self.names

    @property
    def bias_flags(self) -> frozenset[str]:
        """Config keys that say whether modules have biases."""
        return frozenset(m.bias_flag for m in self.modules if m.bias_flag is not None)

    def announces(self, config: Mapping[str, Any], module: Module) -> bool:
        """Whether a config says that a module has the bias that it may have."""
        if module.bias_flag is None:
            return module.bias == "required"
        found = config.get(module.bias_flag)
        return bool(self.defaults.get(module.bias_flag) if found is None else found)

    def check_counts(
        self, hp: Hyperparameters, shapes: Iterable[tuple[int, ...]], where: str
    ) -> None:
        """Raise MissingTensor for more layers or experts than tensors of these shapes can hold.

        Raises InvalidInput for a vocabulary that no model has.

        To be called before :meth:`tensor_names`, which takes as long as there are names.
        """
        if hp.vocab > _MOST_TOKENS:
            raise InvalidInput(f"{where}: a vocabulary of {hp.vocab}; at most {_MOST_TOKENS}")
        dense = len(hp.dense_layers)
        least = self._least(hp, ()) * (hp.layers - dense) + self._least(hp, (0,)) * dense
        if hp.linear_layers:
            one = [replace(hp, linear_layers=of) for of in ((0,), (1,))]
            least = hp.layers * min(self._least(h, ()) for h in one)
        if hp.full_layers:
            one = [replace(hp, full_layers=f) for f in ((), (0,))]
            one += [replace(h, sharing=1) for h in one if hp.sharing]
            least = hp.layers * min(self._least(h, ()) for h in one)
        stored = [shape for shape in shapes if 0 not in shape]
        room = len(stored) + sum(shape[0] for shape in stored if len(shape) == _STACK)
        if least > _FUSED * room or hp.experts > _MOST_EXPERTS:
            experts = f" of {hp.experts} experts" if hp.experts else ""
            raise MissingTensor(
                f"{where}: {hp.layers} layers{experts} call for at least {least} tensors, and "
                f"{len(stored)} are stored; the counts are wrong, or files are missing"
            )

    def _least(self, hp: Hyperparameters, dense: tuple[int, ...]) -> int:
        """Tensors that a layer needs."""
        sharing = min(hp.sharing, 1)
        one = replace(hp, layers=1, experts=min(hp.experts, 1), dense_layers=dense, sharing=sharing)
        needed = [n for n in self.tensor_names(one) if n.required and "{layer}" in n.module.name]
        needed = [n for n in needed if n.gguf_place <= 1]  # heads may be rows of one tensor
        of_experts = sum(n.expert is not None for n in needed)
        return len(needed) - of_experts + of_experts * hp.experts

    def modules_of(self, hp: Hyperparameters) -> tuple[Module, ...]:
        """The modules that models of this size have."""
        return tuple(m for m in self.modules if not m.only_with or getattr(hp, m.only_with))

    def tensor_names(self, hp: Hyperparameters) -> tuple[TensorName, ...]:
        """Every tensor that a model of this size may have, layer by layer."""
        modules = self.modules_of(hp)
        of_all = [s for m in modules for s in (*m.shape, *m.full_shape, *m.sharing_shape)]
        of_all += [size for m in modules if m.heads for size in (m.heads, GROUPS)]
        sizes = {size: int(getattr(hp, size)) for size in of_all}
        full = frozenset(hp.full_layers if self.layers else ())
        dense, linear = frozenset(hp.dense_layers), frozenset(hp.linear_layers)
        kinds = Kinds(hp.layers, dense, full, hp.keyed, hp.sharing, linear)
        return tensor_names(modules, tuple(sizes.items()), kinds, hp.experts, hp.tied)


@cache
def _families() -> dict[str, dict[str, Architecture]]:
    """Table name → model type → architecture."""
    found = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        table = read_table(path, operations.NAMES)
        types = (*table.values["model_types"], *table.values.get("within", ()))
        found[path.stem] = {t: _built(table, t) for t in types}
    return found


def architectures() -> dict[str, Architecture]:
    """Every known architecture by id, as the first of its model types has it."""
    return {name: next(iter(types.values())) for name, types in _families().items()}


def for_model_type(model_type: str, wrapper: Wrapper | None = None) -> Architecture:
    """The architecture of a ``config.json`` model type, which may be inside of another.

    Raises UnknownArchitecture.
    """
    for types in _families().values():
        found = types.get(model_type)
        inside = found is not None and wrapper in next(iter(types.values())).wrappers
        if found is not None and (inside or (not wrapper and model_type in found.model_types)):
            return found
    if wrapper is not None:
        return for_model_type(model_type)
    known = sorted({t for a in architectures().values() for t in a.model_types})
    raise UnknownArchitecture(
        f"model type {model_type!r} is not known; known are {', '.join(known)}"
    )


def wrapper_of(model_type: str) -> Wrapper | None:
    """What a model type is that holds a language model beside others; None for any other."""
    return _wrappers().get(model_type)


@cache
def _wrappers() -> dict[str, Wrapper]:
    found = {}
    for types in _families().values():
        for row in next(iter(types.values())).wrappers:
            found[row.model_type] = row
    return found


def for_gguf(name: str, keys: Collection[str], *, experts: bool, pre: str = "") -> Architecture:
    """The architecture of a GGUF ``general.architecture`` in a file with these keys; of several,
    the one whose files name the pre-tokenizer ``pre``.

    Raises UnknownArchitecture.
    """
    fitting = [
        architecture
        for types in _families().values()
        if (first := next(iter(types.values()))).gguf == name and first.experts in (experts, None)
        for architecture in types.values()
    ]
    odd = (a for a in fitting if a.gguf_without is not None)
    usual = (a for a in fitting if a.gguf_without is None)
    by_key = next((a for a in odd if f"{name}.{a.gguf_without}" not in keys), None)
    by_pre = next((a for a in fitting if a.in_gguf.pre and a.in_gguf.pre == pre), None)
    if (found := by_pre or by_key or next(usual, None)) is not None:
        return found
    known = sorted({a.gguf for a in architectures().values()})
    kind = "with experts" if experts else "without experts"
    raise UnknownArchitecture(
        f"GGUF architecture {name!r} {kind} is not known; known are {', '.join(known)}."
    )


def _built(table: Table, model_type: str) -> Architecture:
    """One model type's architecture from a checked table."""
    values = table.variant(model_type)
    flags = {name: flag for flag, names in values["biases"].items() for name in names}
    moved, changes = (
        {name: kind for kind, names in values["gguf_operations"].items() if kind in of
         for name in names}
        for of in (operations.ROWS.keys(), operations.NAMES - operations.ROWS.keys())
    )  # fmt: skip
    block, config = values["block"], values["config"]
    return Architecture(
        id=table.path.stem,
        model_type=model_type,
        model_types=tuple(values["model_types"]),
        hf_class=values["class"],
        gguf=values["gguf"],
        gguf_without=values.get("gguf_without"),
        in_gguf=in_gguf(values),
        genai_types=frozenset(block["genai_types"]),
        experts={"optional": None}.get(values.get("experts", False), values.get("experts", False)),
        modules=tuple(
            _module(row, flags.get(row["name"]), moved.get(row["name"]), changes.get(row["name"]))
            for row in values["module"]
        ),
        balances=tuple(
            Balance(b.get("smooth"), tuple(b["into"]), "heads" in b, "through" in b)
            for b in values["balance"]
        ),
        names=values["sizes"],
        layers=values["layers"],
        needs=values["needs"],
        defaults=values["defaults"],
        constants={k: v for k, v in config.items() if isinstance(v, list)},
        list_rules={k: v for k, v in config.items() if isinstance(v, dict)},
        ignored=frozenset(k for k, v in config.items() if v == IGNORED),
        block=block_features(block),
        wrappers=tuple(
            Wrapper(**{**row, "beside": tuple(row["beside"])}) for row in values.get("wrapper", ())
        ),
        further=tuple(values.get("further", ())),
    )


def _module(
    row: Mapping[str, Any], flag: str | None, moved: str | None, change: str | None
) -> Module:
    fields = {k: v for k, v in row.items() if k != "after"}
    lists = {k: tuple(v) for k, v in row.items() if isinstance(v, list)}
    bias: BiasRule = "none" if flag is None else "required" if flag == ALWAYS else "optional"
    return Module(
        **{**fields, **lists},
        bias=bias,
        bias_flag=flag if bias == "optional" else None,
        gguf_rows_moved=moved,
        gguf_change=change,
    )
