"""What a conversion should produce: ``format[:type]`` and the options that refine it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from zenconvert.errors import UsageError
from zenconvert.model.allotment import AUTO, Allotment, Budget

_SIZE: Final = re.compile(r"(\d+)\s*([KMG]?)", re.IGNORECASE)
_SCHEME: Final = re.compile(r"w(?P<bits>\d)g(?P<group>-1|\d+)")
_UNITS: Final = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}

Solver = Literal["rtn", "gptq", "awq"]
"""Names of methods (``zenconvert.calib.methods``)."""


@dataclass(frozen=True, slots=True)
class Target:
    """A format and a type in it, e.g. ``gguf`` and ``q4_k_m``; an empty type means its default."""

    format: str
    type: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse ``format[:type]``. Raises UsageError when it is malformed."""
        name, _, kind = text.strip().lower().partition(":")
        if not re.fullmatch(r"\w+", name, re.ASCII) or not re.fullmatch(r"[a-z0-9_\-]*", kind):
            raise UsageError(f"target {text!r} is malformed; write format[:type], e.g. gguf:q4_k_m")
        return cls(name, kind)

    @property
    def is_auto(self) -> bool:
        """Whether every tensor has a type of its own, chosen by what its errors cost."""
        return self.type == AUTO

    def __str__(self) -> str:
        return f"{self.format}:{self.type}" if self.type else self.format


@dataclass(frozen=True, slots=True)
class Scheme:
    """The grid that weights are quantized to: unsigned integers with a scale per column group."""

    bits: int
    group: int | None
    """Columns per group; None for one group a row."""
    symmetric: bool = True
    act_order: bool = False
    """Columns are solved, and grouped, by falling importance."""

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    @classmethod
    def parse(cls, text: str, *, symmetric: bool) -> tuple[Scheme, tuple[str, ...]]:
        """Parse ``w4g128-asym-actorder-…``; ``symmetric`` holds where neither is named.

        Returns the scheme and the suffixes that it does not know. Raises UsageError.
        """
        head, *suffixes = text.split("-") if "g-1" not in text else _split_per_row(text)
        match = _SCHEME.fullmatch(head)
        if match is None:
            raise UsageError(
                f"{text!r} is no grid; write wBITSgGROUP with -1 for one group a row, "
                "e.g. w4g128 or w8g-1"
            )
        group = int(match["group"])
        if group == 0:
            raise UsageError(f"{text!r}: groups must have columns; -1 makes one group a row")
        if {"sym", "asym"} <= set(suffixes):
            raise UsageError(f"{text!r}: sym and asym exclude each other")
        scheme = cls(
            bits=int(match["bits"]),
            group=None if group == -1 else group,
            symmetric="sym" in suffixes or (symmetric and "asym" not in suffixes),
            act_order="actorder" in suffixes,
        )
        rest = tuple(s for s in suffixes if s not in {"sym", "asym", "actorder"})
        return scheme, rest

    def __str__(self) -> str:
        group = -1 if self.group is None else self.group
        kind = "" if self.symmetric else "-asym"
        return f"w{self.bits}g{group}{kind}{'-actorder' if self.act_order else ''}"


@dataclass(frozen=True, slots=True)
class Options:
    """Refinements of a target. A format ignores none of them: it refuses what it cannot honour."""

    tensor_types: tuple[tuple[str, str], ...] = ()
    """``(regular expression, type)``, searched in output tensor names; the first match wins."""
    output_type: str | None = None
    """Type of the output head."""
    embedding_type: str | None = None
    """Type of the token embedding."""
    pure: bool = False
    """Every matrix in the type of the target, without a mixture."""
    split_max_size: int | None = None
    """Largest size of one output file in bytes."""
    pre_tokenizer: str | None = None
    """Name of the pre-tokenizer, where it cannot be told from the tokenizer."""
    ignored_keys: tuple[str, ...] = ()
    """Keys of the source that nobody here knows and that change nothing, as somebody says."""
    text_only: bool = False
    """Only the language model of one that also sees or hears."""
    mtp: Literal["keep", "drop"] = "keep"
    """What becomes of layers that predict further tokens, where the target has a place for them."""
    size: Budget | None = None
    """How large the output may be, where its types are chosen for that."""
    menu: tuple[str, ...] = ()
    """The types to choose from; the format's own by default."""
    allotment: Allotment | None = None
    """Those that were chosen."""
    layout: str | None = None
    """Whose names and places the files have, where a format can be laid out in several ways."""


def _split_per_row(text: str) -> list[str]:
    head, _, rest = text.partition("g-1")
    return [head + "g-1", *rest.removeprefix("-").split("-")] if rest else [text]


def parse_tensor_type(text: str) -> tuple[str, str]:
    """Parse ``REGEX=TYPE``. Raises UsageError for a malformed pair or expression."""
    pattern, separator, kind = text.rpartition("=")
    if not separator or not pattern or not kind:
        raise UsageError(f"tensor type {text!r:.200} is malformed; write REGEX=TYPE")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        told = f"tensor type {text!r:.200}: invalid regular expression: {error!s:.200}"
        raise UsageError(told) from error
    return pattern, kind.lower()


def parse_size(text: str) -> int:
    """Parse ``500M``, ``4G`` (decimal units) to bytes. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise UsageError(f"size {text!r} is malformed; write a number with K, M or G, e.g. 4G")
    return int(match[1]) * _UNITS[match[2].upper()]
