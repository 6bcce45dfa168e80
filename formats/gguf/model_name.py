"""What a model's name says: base name, size, fine-tune and version.

Names follow ``Basename-7B-Instruct-v0.2``; a Hub id adds ``organisation/`` in front. The reading is
that of llama.cpp (``Metadata.get_model_id_components`` in gguf-py), so that files get the same
``general.*`` values whoever writes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_VERSION: Final = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE: Final = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE: Final = re.compile(
    r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE
)
_TUNE: Final = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_NO_TITLE: Final = re.compile(r"v\d+(?:\.\d+)*|\d.*")
_POWERS: Final = " KMBT"


@dataclass(frozen=True, slots=True)
class NameParts:
    """Components of a model name; None where the name does not tell."""

    name: str
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


def title(name: str) -> str:
    """``my-model-v1`` → ``My Model v1``: lower-case words capitalised, versions left alone."""
    words = name.strip().replace("-", " ").split()
    return " ".join(w.title() if w.islower() and not _NO_TITLE.fullmatch(w) else w for w in words)


def parse(model_id: str, parameters: int) -> NameParts:
    """Take a model id apart; ``parameters`` tells a size (``7B``) from a context (``32k``)."""
    if " " in model_id:
        return NameParts(model_id)  # a sentence, not a name by the convention
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    parts = [p for p in name.split("-") if p]
    kinds: list[set[str]] = [set() for _ in parts]
    for i, part in enumerate(parts):
        parts[i], kind = _classify(part, i, parameters)
        kinds[i] |= kind
    _prefer_numbers(parts, kinds)
    _mark_basename(parts, kinds)

    def joined(kind: str, *, but_not: str | None = None) -> str | None:
        chosen = [p for p, k in zip(parts, kinds, strict=True) if kind in k and but_not not in k]
        return "-".join(dict.fromkeys(chosen) if kind == "size" else chosen) or None

    size, tune = joined("size"), joined("finetune")
    version = joined("version", but_not="basename")
    # a bare name says nothing reliable about its base
    basename = joined("basename") if size or tune or version else None
    owner = organization if organization and not organization.startswith(".") else None
    return NameParts(name, owner, basename, tune, version, size)


def _classify(part: str, position: int, parameters: int) -> tuple[str, set[str]]:
    if _VERSION.fullmatch(part):
        return part, {"version"}
    if _TYPE.fullmatch(part):
        return part.upper(), {"type"}
    if position > 0 and _SIZE.fullmatch(part):
        return _classify_size(part.replace("_", "."), parameters)
    if position > 0 and _TUNE.fullmatch(part):
        return part, {"finetune"}
    return part, set()


def _classify_size(part: str, parameters: int) -> tuple[str, set[str]]:
    if part[-1].isdecimal():  # 7b1 means 7.1b
        part = f"{part[:-2]}.{part[-1]}{part[-2]}"
    if len(part) > 1 and part[-2].isdecimal() and part[-1] in "kmbt":
        part = part[:-1] + part[-1].upper()
    try:
        claimed = float(part[:-1]) * 1000 ** _POWERS.find(part[-1])
    except ValueError:
        return part, {"size"}
    if parameters and abs(claimed - parameters) > 7 * parameters // 8:
        return part[:-1] + part[-1].lower(), {"finetune"}  # likely a context length
    return part, {"size"}


def _prefer_numbers(parts: list[str], kinds: list[set[str]]) -> None:
    """Words such as ``mini`` are no size where a number is there too."""
    sizes = [i for i, kind in enumerate(kinds) if "size" in kind]
    if any(c.isdecimal() for i in sizes for c in parts[i]):
        for i in sizes:
            if parts[i].isalpha():
                kinds[i].discard("size")


def _mark_basename(parts: list[str], kinds: list[set[str]]) -> None:
    """The base name is the leading run of plain words and versions, trailing versions excepted."""
    at_start = True
    for part, kind in zip(parts, kinds, strict=True):
        if at_start and ((not kind and part[0].isalpha()) or "version" in kind):
            kind.add("basename")
        else:
            at_start = False
            if not kind:
                kind.add("finetune")
    for kind in reversed(kinds):
        if "basename" not in kind or len(kind) == 1:
            break
        kind.discard("basename")


def size_label(total: int, shared: int, one_expert: int, experts: int) -> str:
    """``110B``, or ``8x7B``: experts times shared plus one expert's parameters."""
    if experts:
        return f"{experts}x{_rounded(shared + one_expert)}"
    return _rounded(total)


def _rounded(count: int) -> str:
    """Two digits and a letter."""
    power = next((p for p in (4, 3, 2) if count > 1000**p), 1)
    # times a decimal factor and not divided, so that the last digit rounds as in gguf-py
    scaled = count * {4: 1e-12, 3: 1e-9, 2: 1e-6, 1: 1e-3}[power]
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{_POWERS[power]}"
