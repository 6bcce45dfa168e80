"""What the config of a GPTQ folder says of its modules, in the words of every tool that writes one.

``quant_method`` is ``gptq`` (AutoGPTQ, GPTQModel, optimum, auto-round) or ``auto-round``; the
layout is called ``checkpoint_format``, ``format`` or, by auto-round, ``packing_format``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import CorruptFile, Unsupported
from zenconvert.formats.gptq.codec import ZeroRule
from zenconvert.formats.quantization import AUTO_ROUND_GPTQ

VERSION_1: Final = "gptq"
VERSION_2: Final = "gptq_v2"
PLANAR: Final = "gptq_p"
_OVERRIDES: Final = ("dynamic", "extra_config")


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for every module. Bits and groups are not here: shapes cannot lie."""

    symmetric: bool
    """Every module is said to have its zeros at the midpoint."""
    act_order: bool
    """Some module may have its columns grouped in an order of their own."""
    version: str
    by_word: bool
    """Version 1 zeros were made by subtracting from whole words (GPTQModel)."""
    varied: frozenset[str] = frozenset()
    """What some modules have of their own."""
    warnings: tuple[str, ...] = ()
    """Where the settings contradict themselves."""

    @property
    def rule(self) -> ZeroRule:
        """How zeros are stored."""
        if self.version != VERSION_1:
            return "as_is"
        return "plus_one_by_word" if self.by_word else "plus_one"


def parse(path: Path, table: Mapping[str, Any]) -> Settings:
    """Understand the settings. Raises Unsupported for layouts that cannot be read, CorruptFile."""
    given = [table[key] for key in ("checkpoint_format", "format") if table.get(key) is not None]
    names = [str(name).lower() for name in given]
    named = names[0] if names else VERSION_1
    version = AUTO_ROUND_GPTQ.get(str(table.get("packing_format")), named)
    others = [name for name in names if name != version]
    if version not in {VERSION_1, VERSION_2, PLANAR}:
        raise Unsupported(
            f"{path}: the GPTQ layout {version!r} is not read; known are {VERSION_1}, {VERSION_2} "
            f"and {PLANAR}"
        )
    if str(table.get("pack_dtype") or "int32").removeprefix("torch.") != "int32":
        raise Unsupported(f"{path}: codes packed as {table['pack_dtype']} are not read; only int32")
    overrides = list(_overrides(path, table))
    own = [table, *overrides]
    symmetric = [_flag(path, each, "sym", default=True) for each in own]
    act_order = [_flag(path, each, "desc_act", default=False) for each in own]
    by_word = "gptqmodel" in str(table.get("meta", ""))
    return Settings(
        all(symmetric),
        any(act_order),
        version,
        by_word,
        frozenset(key for rules in overrides for key in rules),
        (f"called both {version} and {others[0]}: read as {version}",) if others else (),
    )


def stems(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that the weights may have before ``.safetensors``."""
    own = table.get("model_file_base_name")
    names = ["model"]  # the only one that transformers looks for
    if isinstance(own, str) and own and not set(own) & set("/\\\0"):
        names.append(own)
    names.append(f"gptq_model-{table.get('bits')}bit-{table.get('group_size')}g")
    return tuple(dict.fromkeys(names))


def _overrides(path: Path, table: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What single modules have of their own; which they are does not matter here."""
    for key in _OVERRIDES:
        rules = table.get(key) or {}
        found = [own for own in rules.values() if own] if isinstance(rules, dict) else [rules]
        if not all(isinstance(own, dict) for own in found):
            raise CorruptFile(f"{path}: {key} should map modules to settings")
        yield from found


def _flag(path: Path, table: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = table.get(key)
    if value is not None and not isinstance(value, bool):
        raise CorruptFile(f"{path}: {key} should be true or false, found {value!r}")
    return default if value is None else value
