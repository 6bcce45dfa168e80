"""What a family is in GGUF: its keys, and what llama.cpp computes whatever they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from zenconvert.model.architecture_table import OTHER, UNREAD, ZERO
from zenconvert.model.hyperparameters import Hyperparameters

_FACTORS: Final = frozenset(
    {"embedding_factor", "residual_factor", "logit_factor", "routed_factor"}
)
"""Sizes that are multiplied by, unless they are 0."""
_SEVENTY: Final = 80
"""Layers of a model of 70 billion parameters, for llama.cpp."""


@dataclass(frozen=True, slots=True)
class GgufKey:
    """A key of GGUF files, without the architecture before it, and what it holds."""

    name: str
    type: Literal[
        "u32",
        "f32",
        "bool",
        "text",
        "rotations",
        "file_type",
        "pattern",
        "recurrent",
        "by_layer",
        "sections",
    ]
    """``rotations``: all keys of scaled rotations; ``file_type``: only a place, ``pattern``: that
    of the layers that slide, ``recurrent``: that of those with linear attention; ``by_layer``: a
    number for every layer, where some have others; ``sections``: pairs of channels that rotate by
    each dimension of positions."""
    size: str = ""
    """A number of :class:`Hyperparameters`, and the key is left out where the model has none; of a
    ``text``, what it is in all files."""
    only_other: bool = False
    """Left out, too, where llama.cpp takes that number anyway."""
    unread: bool = False
    """llama.cpp computes with the number that is implied."""
    or_zero: bool = False
    """0 where the model has no such number."""

    @property
    def constant(self) -> int | bool | None:
        """What it is in all files."""
        if self.type == "bool":
            return self.size == "true"
        return int(self.size) if self.size.isdecimal() else None


@dataclass(frozen=True)
class GgufFamily:
    """A family in GGUF: keys, and what llama.cpp computes whatever they say."""

    keys: tuple[GgufKey, ...]
    """In the converter's order."""
    implied: Mapping[str, float | str]
    """Size → the number, or the size, that holds where a file is silent or has no key."""
    any_heads: bool
    """Heads may have another size than hidden / heads."""
    any_kv_heads: bool
    """There may be fewer heads of keys and values than of queries."""
    scalings: frozenset[str]
    """Kinds of scaled rotations; ``llama3`` is factors of frequencies in a tensor."""
    yarn_betas: bool
    """YaRN begins and ends where keys say, and not always at 32 and 1 rotations."""
    switches: frozenset[str]
    """Keys that turn off what is computed where they are false; true where a file is silent."""
    stated_heads: frozenset[str]
    """Scalings with which configs have to state the size of heads, whatever it is."""
    whole_queries_layers: frozenset[int]
    """Models of so many layers make queries of states themselves, and others of shorter rows."""
    no_biases: frozenset[str]
    """Modules of which the graph has no bias."""
    needs_biases: bool
    """The graph has a bias of every module that may have one."""
    window_period: int
    """The last of so many layers sees everything and the others a window; 0: no windows."""
    windows_layers: int
    """Models of so many layers have windows, and others none; 0: all have."""
    always_windows: bool
    """Some layers of every model have a window."""
    pattern_always: bool
    """Files with a window say which layers slide, and not only where they are others."""
    head: Literal["any", "tied", "own"]
    """Whether the embedding is the head; ``own``: it never is."""
    seventy: Literal["never", "any", "grouped"]
    """Which models of 80 layers are of llama.cpp's size class 70B: those with grouped heads."""
    hidden_over_heads_layers: int
    """Models of so many layers divide scores by √(hidden / heads)."""
    space_prefix: Literal["first", "last", "silent"]
    """Where a file says whether text begins with a space."""
    without_bos: frozenset[int]
    """Sizes of vocabularies of which a file always says whether they add BOS."""
    config: Mapping[str, Any]
    """What a config that is made of a file says beside sizes."""
    model: str
    """What files call the kind of its tokenizers; empty where that follows from these."""
    shown: frozenset[str]
    """Texts of tokens that are shown in texts, whatever the tokenizer says."""
    pre: str
    """What files call a pre-tokenizer that cuts as this one does; empty for the first name."""
    special: Mapping[str, str]
    """Role that a tokenizer names no token for → text of the one that has it in a file."""

    def has_key(self, size: str) -> bool:
        """Whether files have a key for a size."""
        return any(key.size == size for key in self.keys)

    def is_70b(self, layers: int, heads: int, kv_heads: int) -> bool:
        """Whether a model is of the size class 70B, whose mixtures are others."""
        grouped = self.seventy == "any" or heads != kv_heads
        return self.seventy != "never" and layers == _SEVENTY and grouped

    def implied_number(self, size: str, hp: Hyperparameters) -> float | None:
        """What llama.cpp takes for a size of such a model where the file is silent."""
        if size == "score_width" and hp.layers == self.hidden_over_heads_layers:
            return float(hp.hidden // hp.heads)
        found = self.implied.get(size)
        return hp.number(found) if isinstance(found, str) else found

    def of_zero(self, size: str) -> float | None:
        """What llama.cpp computes with for a size that a file says is 0; None for without it."""
        none = size == "score_scale" or (size == "logit_softcap" and size not in self.implied)
        return 1.0 if size in _FACTORS else None if none else 0.0


def in_gguf(values: Mapping[str, Any]) -> GgufFamily:
    """A family in GGUF, from a checked table."""
    graph, tokenizer = values["gguf_graph"], values["gguf_tokenizer"]
    return GgufFamily(
        keys=tuple(_gguf_key(name, row) for name, row in values["gguf_keys"].items()),
        implied=values["gguf_implied"],
        any_heads=graph["heads"] == "any",
        any_kv_heads=graph["kv_heads"] == "any",
        scalings=frozenset(graph["scalings"]),
        yarn_betas=graph["yarn_betas"],
        switches=frozenset(graph["switches"]),
        stated_heads=frozenset(graph["stated_heads"]),
        whole_queries_layers=frozenset(graph["whole_queries_layers"]),
        no_biases=frozenset(graph["no_biases"]),
        needs_biases=graph["biases"] == "required",
        window_period=graph["window_period"],
        windows_layers=graph["windows_layers"],
        always_windows=graph["windows"] == "always",
        pattern_always=graph["pattern"] == "always",
        head=graph["head"],
        seventy=graph["seventy"],
        hidden_over_heads_layers=graph["hidden_over_heads_layers"],
        space_prefix=tokenizer["space_prefix"],
        without_bos=frozenset(tokenizer["without_bos"]),
        config=values["gguf_config"],
        model=tokenizer["model"],
        shown=frozenset(tokenizer["shown"]),
        pre=tokenizer["pre"],
        special=tokenizer["special"],
    )


def _gguf_key(name: str, row: str) -> GgufKey:
    kind, _, size = row.partition(" ")
    return GgufKey(
        name,
        cast(Any, kind),
        size.removesuffix(OTHER).removesuffix(UNREAD).removesuffix(ZERO),
        only_other=size.endswith(OTHER),
        unread=size.endswith(UNREAD),
        or_zero=size.endswith(ZERO),
    )
