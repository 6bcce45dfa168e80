"""AutoAWQ 0.2.9 and zenconvert read each other's files as the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.families import FAMILIES
from tests.oracles import ours
from tests.oracles.conftest import Family, Written, folder_of
from tests.oracles.tool import Tool
from zenconvert import convert, open_checkpoint

pytestmark = pytest.mark.oracles

KNOWN = (
    "qwen2", "llama3", "mistral", "mixtral", "qwen3", "qwen3_moe", "phi", "phi_longrope", "cohere",
    "starcoder2", "gemma2", "stablelm", "deepseek_v2", "deepseek_v3",
)  # fmt: skip
"""Families of ``tests.families`` that it has; it ended in 2025."""
WRONG_THERE = ("gemma2",)
UNTRIED = ("stablelm", "deepseek_v2", "deepseek_v3")
WRITTEN = [
    ("builtin:zen-nano", "awq:w4g128"),
    ("llama3", "awq:w4g64"),
    ("llama3", "awq:w4g32-sym"),
    ("llama3", "awq:w4g-1"),
    ("llama3", "awq:w4g128-gemv"),
    ("llama3", "awq:w4g64-gemv"),
    ("llama3", "awq:w4g32-gemv"),
    ("mixtral", "awq:w4g128"),
    ("mixtral", "awq:w4g64-gemv"),
]


@pytest.mark.parametrize(("source", "target"), WRITTEN)
def test_it_computes_with_our_files_what_we_decode(
    source: str, target: str, written: Written, autoawq: Tool, tmp_path: Path
) -> None:
    folder = written(source, target)
    autoawq("logits", folder=folder, ids=ours.IDS, out=tmp_path / "theirs.npy")
    ours.assert_close(ours.logits(folder), np.load(tmp_path / "theirs.npy"), 1e-5)


@pytest.mark.parametrize("target", ["awq:w4g128", "awq:w4g128-gemv", "awq:w4g32-gemv"])
def test_it_packs_the_same_bytes(
    target: str, written: Written, autoawq: Tool, tmp_path: Path
) -> None:
    """No CPU kernel reads GEMV files: AutoAWQ's own packing says whether they are right."""
    folder = written("llama3", target)
    convert(folder, tmp_path / "decoded", "hf:f32")
    assert autoawq("repack", folder=folder, decoded=tmp_path / "decoded") == []


@pytest.mark.parametrize(
    ("family", "group", "version"),
    [
        ("llama3", 128, "gemm"),
        ("llama3", 32, "gemm"),
        ("llama3", 128, "gemv"),
        ("llama3", 32, "gemv"),
        ("mixtral", 64, "gemm"),
    ],
)
def test_we_read_its_files_as_it_does(
    family: str, group: int, version: str, model: Family, autoawq: Tool, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    autoawq("write", source=model(family), out=folder, group=group, version=version)
    grids = {str(t.encoding) for t in open_checkpoint(folder).tensors.values()}
    assert grids == {f"w4g{group}-asym", "f16"}
    autoawq("logits", folder=folder, ids=ours.IDS, out=tmp_path / "theirs.npy")
    ours.assert_close(ours.logits(folder), np.load(tmp_path / "theirs.npy"), 1e-5)


def test_other_folders_are_refused(written: Written, autoawq: Tool) -> None:
    said = autoawq("refusal", folder=written("llama3", "gptq:w4g128"))
    assert said.startswith("UsageError:")


def test_zenconvert_works_beside_it(model: Family, autoawq: Tool, tmp_path: Path) -> None:
    """Quantizing, repacking, decoding and verifying with transformers 4.51."""
    text = tmp_path / "text.txt"
    text.write_text("The ferry leaves at nine, and nobody waits for it.")
    steps = [
        ["awq:w4g128", ["torch", "autoawq"]],
        ["gptq:w4g128-asym", []],
        ["awq:w4g128-gemv", []],
        ["hf:f32", ["torch"]],
    ]
    source = folder_of("builtin:zen-nano", model)
    found = autoawq("verify", source=source, out=tmp_path, steps=steps, text=text)
    assert found.pop("transformers") == "4.51.3"
    values = list(found.values())
    assert values[0] > 0.01
    np.testing.assert_allclose(values, values[0], rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in KNOWN if n not in (*WRONG_THERE, *UNTRIED)])
def test_families_that_it_knows_are_called_as_it_expects(
    name: str, packed: Written, autoawq: Tool, tmp_path: Path
) -> None:
    """Its engine here refuses folders where it takes other modules for quantized than we do."""
    folder, out = packed(name, "awq:w4g32"), tmp_path / "theirs.npy"
    autoawq("logits", folder=folder, ids=ours.IDS, out=out)
    ours.assert_close(ours.logits(folder), np.load(out), 1e-4)


def test_it_leaves_out_the_softcap_of_scores(
    packed: Written, autoawq: Tool, tmp_path: Path
) -> None:
    """transformers 4.51's default attention, which it takes, has none; the rest is right."""
    folder, out = packed("gemma2", "awq:w4g32"), tmp_path / "theirs.npy"
    autoawq("logits", folder=folder, ids=ours.IDS, out=out)
    shutil.copytree(folder, tmp_path / "without")
    config = json.loads((folder / "config.json").read_text())
    without = json.dumps({**config, "attn_logit_softcapping": None})
    (tmp_path / "without" / "config.json").write_text(without)
    ours.assert_close(ours.logits(tmp_path / "without"), np.load(out), 1e-4)


def test_it_knows_no_others(autoawq: Tool) -> None:
    types = set(autoawq("types"))
    assert {n for n, f in FAMILIES.items() if f.config["model_type"] in types} == set(KNOWN)
