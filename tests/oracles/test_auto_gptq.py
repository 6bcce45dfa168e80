"""AutoGPTQ 0.7.1 and zenconvert read each other's files as the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracles import ours
from tests.oracles.conftest import Family, Written, folder_of
from tests.oracles.tool import Tool
from zenconvert import Options, convert, open_checkpoint, plan

pytestmark = pytest.mark.oracles

WRITTEN = [
    ("builtin:zen-nano", "gptq:w4g128"),
    ("llama3", "gptq:w2g64"),
    ("llama3", "gptq:w3g128"),
    ("llama3", "gptq:w4g32"),
    ("llama3", "gptq:w4g-1"),
    ("llama3", "gptq:w8g128"),
    ("llama3", "gptq:w8g-1"),
    ("mixtral", "gptq:w4g128"),
    ("mixtral", "gptq:w3g32"),
]


@pytest.mark.parametrize(("source", "target"), WRITTEN)
def test_it_computes_with_our_files_what_we_decode(
    source: str, target: str, written: Written, auto_gptq: Tool, tmp_path: Path
) -> None:
    folder = written(source, target)
    auto_gptq("logits", folder=folder, ids=ours.IDS, out=tmp_path / "theirs.npy")
    ours.assert_close(ours.logits(folder), np.load(tmp_path / "theirs.npy"), 1e-5)


FOREIGN: dict[str, dict[str, Any]] = {
    "w2 sym": {"bits": 2, "group": 64, "sym": True, "act_order": False},
    "w3 sym": {"bits": 3, "group": 32, "sym": True, "act_order": False},
    "w4 asym": {"bits": 4, "group": 32, "sym": False, "act_order": False},
    "w3 asym act-order": {"bits": 3, "group": 128, "sym": False, "act_order": True},
    "w4 sym act-order": {"bits": 4, "group": 32, "sym": True, "act_order": True},
    "w8 per row": {"bits": 8, "group": -1, "sym": True, "act_order": False},
}


@pytest.mark.parametrize(
    ("family", "name"), [*(("llama3", name) for name in FOREIGN), ("mixtral", "w4 asym")]
)
def test_we_read_its_files_as_it_does(
    family: str, name: str, model: Family, auto_gptq: Tool, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    auto_gptq("write", source=model(family), out=folder, **FOREIGN[name])
    auto_gptq("weights", folder=folder, out=tmp_path / "theirs.npz")
    theirs, found = np.load(tmp_path / "theirs.npz"), ours.weights(folder)
    assert set(found) == set(theirs.files)
    for module, values in found.items():
        ours.assert_close(values, theirs[module], 1e-6)
    checkpoint = open_checkpoint(folder)
    ordered = {getattr(t.encoding, "ordered", False) for t in checkpoint.tensors.values()}
    assert (True in ordered) == FOREIGN[name]["act_order"]


@pytest.mark.parametrize("name", ["w4 sym act-order", "w8 per row"])
def test_its_files_written_again_are_the_same_model(
    name: str, model: Family, auto_gptq: Tool, tmp_path: Path
) -> None:
    """Our writer keeps its order of columns, and AutoGPTQ reads what we wrote."""
    auto_gptq("write", source=model("llama3"), out=tmp_path / "theirs", **FOREIGN[name])
    assert plan(tmp_path / "theirs", "gptq", exact=True).exact
    convert(tmp_path / "theirs", tmp_path / "ours", "gptq")
    settings = json.loads((tmp_path / "ours" / "quantize_config.json").read_text())
    assert settings["desc_act"] == FOREIGN[name]["act_order"]
    for folder in ("theirs", "ours"):
        out = tmp_path / f"{folder}.npz"
        auto_gptq("weights", folder=tmp_path / folder, out=out)
    before, after = (np.load(tmp_path / f"{f}.npz") for f in ("theirs", "ours"))
    for module in before.files:
        np.testing.assert_array_equal(before[module], after[module])


def test_what_it_would_get_wrong_is_refused(
    model: Family, written: Written, auto_gptq: Tool, tmp_path: Path
) -> None:
    said = auto_gptq("refusal", folder=written("llama3", "gptq:w4g128-v2"))
    assert said.startswith("UsageError:")
    assert "version 2" in said
    assert auto_gptq("refusal", folder=model("llama3")).startswith("UsageError:")
    options = Options(output_type="w8g32")
    convert(folder_of("llama3", model), tmp_path / "head", "gptq:w4g128", options=options)
    said = auto_gptq("refusal", folder=tmp_path / "head")
    assert said.startswith("InvalidInput:")
    assert "lm_head" in said


def test_zenconvert_works_beside_it(model: Family, auto_gptq: Tool, tmp_path: Path) -> None:
    """Quantizing, repacking, decoding and verifying with transformers 4.49."""
    text = tmp_path / "text.txt"
    text.write_text("The ferry leaves at nine, and nobody waits for it.")
    steps = [
        ["gptq:w4g128", ["torch", "auto-gptq"]],
        ["awq:w4g128", []],
        ["gptq:w4g128-v2", []],
        ["hf:f32", ["torch"]],
    ]
    source = folder_of("builtin:zen-nano", model)
    found = auto_gptq("verify", source=source, out=tmp_path, steps=steps, text=text)
    assert found.pop("transformers") == "4.49.0"
    values = list(found.values())
    assert values[0] > 0.01
    np.testing.assert_allclose(values, values[0], rtol=1e-4)
