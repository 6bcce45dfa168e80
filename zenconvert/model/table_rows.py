"""Rows of the tables in ``architectures/``: modules, balances, model types around others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["embed", "linear", "norm", "router", "head", "kept"]
"""``router``: a matrix that stays in floats, whatever reads the same; ``kept``: one that stays in
floats, and that nobody scales."""
BiasRule = Literal["none", "optional", "required"]


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
    bias_flag: str | None = None
    """Key of the config that says whether there is a bias; transformers goes by it alone."""
    gguf_rows_moved: str | None = None
    """Operation that puts rows into the order of GGUF; that of HF files is the neutral one."""
    gguf_change: str | None = None
    """Operation that makes its numbers."""
    layers: Literal["sparse", "dense", "sliding", "full", "values", "linear"] | None = None
    """The layers that have it: of a mixture, or those with a window or without one, or whose values
    are no keys, or with linear attention in place of scores; None for all."""
    full_shape: tuple[str, ...] = ()
    """Its shape in layers that see everything, where it is another one."""
    sharing_shape: tuple[str, ...] = ()
    """Its shape in layers that read keys and values of others, where it is another one."""
    unshared: bool = False
    """These layers do without: files may have it there, and nobody reads it."""
    only_with: str = ""
    """A size without which models have no such module."""
    hf_bare: bool = False
    """HF files have it under ``hf`` itself, and not as the weight of a module of that name."""
    gguf_bare: bool = False
    """So have GGUF files under ``gguf``."""
    hf_stacked: bool = False
    """HF files have it in ``hf_stack``, and not by itself, and its bias in ``…_bias``."""
    hf_turned: bool = False
    """Experts of ``hf_stack`` are ``[in, parts · out]`` there, the outputs of its parts in turn."""
    hf_also: str | None = None
    """Another name that tools give it which keep transformers' names of today."""
    hf_stack: str | None = None
    """The tensor that has all experts of a layer where transformers keeps them in one,
    ``[experts, parts · out, in]``."""
    hf_stack_part: tuple[int, int] = (0, 1)
    """Which part of the rows of an expert there it is, and of how many."""
    hf_rows: str | None = None
    """What HF files have it in, among rows of others, in the table's order; modules that have one
    name in GGUF are rows of one tensor there in the same way. ``hf`` is its name alone, which some
    tools write."""
    gguf_rows: str | None = None
    """Another tensor that GGUF files may have it in, among rows of others in the table's order."""
    heads: str = ""
    """A number of heads, of which each has one of its own: ``{head}`` in its names. Where several
    are rows of one tensor of HF files, those of a head stand together there."""
    gguf_tiled: bool = False
    """In GGUF the first heads of all groups stand before their second ones, as many groups as there
    are key heads of linear attention."""
    gguf_flat: bool = False
    """GGUF files have no dimensions of 1 in it."""
    gguf_order: int = 0
    """Where the converter puts its stack among those of a layer, from 1; 0: by its name."""

    gguf_values: str | None = None
    """GGUF files have it in two tensors: its rows are, head after head, those that make keys, which
    ``gguf`` has turned, and those that make values, which are in this one."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Modules that read one input, and what puts it out: AWQ may scale the output channels of
    ``smooth`` and unscale the inputs of ``into``."""

    smooth: str | None
    """None where nothing may be scaled."""
    into: tuple[str, ...]
    kv_to_q: bool = False
    """The channels are those of key-value heads, each read through several query heads."""
    one_plus: bool = False
    """``smooth`` is a norm that multiplies by 1 + its weight."""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A model type that holds a model of the family beside what sees or hears."""

    model_type: str
    config: str
    """Key of its config that has the language model's."""
    text_type: str
    """The language model's type, where it does not say so itself."""
    prefixes: Mapping[str, str]
    """What names of its tensors begin with there → and alone."""
    beside: tuple[str, ...]
    """What names of all other tensors begin with."""
