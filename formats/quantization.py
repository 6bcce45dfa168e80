"""What a folder's weights are quantized with, found out once: by ``quantization_config``.

It stands in ``config.json``, or where older tools have put it beside that file. ``quant_method``
names the method; auto-round packs as others do, and says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import CorruptFile
from zenconvert.formats.hf.json_file import read_json

QUANTIZATION: Final = "quantization_config"
"""Key of config.json that says how weights are quantized."""
GPTQ_FILE: Final = "quantize_config.json"
AWQ_FILE: Final = "quant_config.json"
_BESIDE: Final = {GPTQ_FILE: ("desc_act", "gptq"), AWQ_FILE: ("w_bit", "awq")}
"""File beside config.json → a key that tells whose it is, and whose."""
_NUMBERS: Final = ("bits", "w_bit", "group_size", "q_group_size")
_NUMBER: Final = re.compile(r"-?[0-9]{1,4}")
AUTO_ROUND_GPTQ: Final = {
    "auto_round:auto_gptq": "gptq",
    "auto_round:gptq": "gptq",
    "auto_round": "gptq_v2",
    "auto_round:gptqmodel": "gptq_v2",
}
"""``packing_format`` of auto-round → version of GPTQ's layout."""
_PACKINGS: Final = {**dict.fromkeys(AUTO_ROUND_GPTQ, "gptq"), "auto_round:auto_awq": "awq"}


@dataclass(frozen=True)
class Quantization:
    """The settings of a quantized folder."""

    method: str
    """``quant_method``, or whose layout it is packed in; "" where nothing is named."""
    table: dict[str, Any]


def of_folder(path: Path) -> Quantization | None:
    """How a folder is quantized; None where it is not, or is no folder with a config.json.

    Raises CorruptFile where the settings are none.
    """
    config = path / "config.json"
    if not config.is_file():
        return None
    table = read_json(config).get(QUANTIZATION)
    if table is not None:
        if not isinstance(table, dict):
            raise CorruptFile(f"{config}: {QUANTIZATION} should be an object")
        return Quantization(_method(table), _with_numbers(table))
    for name in _BESIDE:
        if (path / name).is_file() and (method := _method(found := read_json(path / name))):
            return Quantization(method, _with_numbers(found))
    return None


def _with_numbers(table: dict[str, Any]) -> dict[str, Any]:
    """With numbers where some tools have written texts of digits."""
    read = {k: table[k] for k in _NUMBERS if isinstance(table.get(k), str)}
    return {**table, **{k: int(v) for k, v in read.items() if _NUMBER.fullmatch(v)}}


def _method(table: dict[str, Any]) -> str:
    packing = _PACKINGS.get(str(table.get("packing_format")))
    named = table.get("quant_method")
    if named is None:
        named = next((whose for key, whose in _BESIDE.values() if key in table), None)
    return packing or (named.lower() if isinstance(named, str) else "")
