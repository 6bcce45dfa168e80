"""The Hub's own parser sees in our GGUF headers what we see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracles.conftest import Family
from tests.oracles.tool import Tool
from zenconvert import calibrate, convert
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.container import ARRAY, SCALARS, STRING, GgufFile
from zenconvert.formats.gguf.mixtures import FILE_TYPES

pytestmark = pytest.mark.oracles

_TYPE_IDS = {"str": STRING} | {name: number for number, (name, _) in SCALARS.items()}
_WIDE = {"u64", "i64"}


@pytest.fixture(scope="session")
def importance(model: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An importance matrix of the tiny Llama."""
    folder = tmp_path_factory.mktemp("importance")
    calibrate(
        model("llama3"),
        folder / "x.stats",
        languages=["en"],
        tokens_per_language=64,
        imatrix=folder / "imatrix.gguf",
    )
    return folder / "imatrix.gguf"


def as_the_parser_says(kind: str, value: Any) -> dict[str, Any]:
    """One value of ours in the form of the answer."""
    if kind.startswith("arr:"):
        element = kind.removeprefix("arr:")
        values = list(value) if element == "str" else np.asarray(value).tolist()
        values = [str(v) for v in values] if element in _WIDE else values
        return {"value": values, "type": ARRAY, "subType": _TYPE_IDS[element]}
    return {"value": str(value) if kind in _WIDE else value, "type": _TYPE_IDS[kind]}


def assert_same_header(file: GgufFile, found: dict[str, Any]) -> None:
    """Every key with its type and value, every tensor with its shape, type and place."""
    theirs = dict(found["metadata"])
    counts = {name: theirs.pop(name)["value"] for name in ("version", "tensor_count", "kv_count")}
    assert counts == {
        "version": 3,
        "tensor_count": str(len(file.tensors)),
        "kv_count": str(len(file.metadata)),
    }
    assert list(theirs) == list(file.metadata)
    for key, (kind, value) in file.metadata.items():
        assert theirs[key] == as_the_parser_says(kind, value), key
    ours = [(t.name, list(t.shape[::-1]), t.type_id, t.offset) for t in file.tensors.values()]
    begin = int(found["data"])
    assert ours == [
        (t["name"], [int(n) for n in t["shape"]], t["dtype"], begin + int(t["offset"]))
        for t in found["tensors"]
    ]


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_the_header_of_every_type(
    file_type: str, model: Family, importance: Path, hub_parser: Tool, tmp_path: Path
) -> None:
    family = "mixtral" if file_type == "mxfp4_moe" else "llama3"
    weights = importance if family == "llama3" else None
    convert(model(family), tmp_path / "x.gguf", f"gguf:{file_type}", importance=weights)
    file = container.read(tmp_path / "x.gguf")
    assert_same_header(file, hub_parser("header", file=file.path))


@pytest.mark.parametrize("source", ["builtin:zen-nano", "mixtral", "mistral"])
def test_the_header_of_every_tokenizer(source: str, gguf: Any, hub_parser: Tool) -> None:
    file = container.read(gguf(source, "q4_k_m"))
    assert_same_header(file, hub_parser("header", file=file.path))
