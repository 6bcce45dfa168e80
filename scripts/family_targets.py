"""Family × target: a tiny model of every family is planned for every target, and says why not."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Final

import zenconvert
from tests.families import FAMILIES, Family
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert.errors import InputWarning, ZenError

_TARGETS: Final = {
    "HF": "hf:f32",
    "GGUF": "gguf:f32",
    "GPTQ": "gptq:w4g32",
    "AWQ": "awq:w4g32",
    "compressed-tensors": "ct:w4a16-g32",
    "ONNX": "onnx:f32",
}
"""Title of a column → a target of its format. Tiny layers are no multiple of a larger group."""


def table() -> str:
    """The Markdown, a row for every family of the tests and whatever differs within one."""
    lines = [f"| model | {' | '.join(_TARGETS)} | why not, or what is lost |"]
    lines.append("|---" * (len(_TARGETS) + 2) + "|")
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        for name, family in FAMILIES.items():
            lines.append(_row(name, family, Path(scratch) / name))
    return "\n".join(lines) + "\n"


def _row(name: str, family: Family, folder: Path) -> str:
    folder.mkdir()
    vocab = MAKERS[family.tokenizer](folder)
    raw_model(folder, family.config, vocab_size=vocab, bos_token_id=1, eos_token_id=2, biases=True)
    cells, reasons = [], []
    for title, target in _TARGETS.items():
        cell, why = _planned(folder, target)
        cells.append(cell)
        reasons += [f"{title}: {one}" for one in why]
    kind = family.config["model_type"]
    model = f"`{kind}`" if kind == name else f"`{kind}` ({name})"
    return f"| {model} | {' | '.join(cells)} | {'; '.join(reasons)} |"


def _planned(folder: Path, target: str) -> tuple[str, list[str]]:
    """``yes``, ``in part`` or ``no``, and the reasons."""
    try:
        lost = zenconvert.plan(folder, target).lost
    except ZenError as error:
        text = str(error).strip().splitlines()[-1]
        return "no", [text.strip(" -").removeprefix(f"{folder}: ").replace("|", "\\|")]
    return ("in part" if lost else "yes"), [f"{fact.name}: {fact.why}" for fact in lost]
