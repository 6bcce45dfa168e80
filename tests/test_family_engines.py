"""Every family by its table: configs come back from GGUF key by key, and a walk over the layers
computes and sees what transformers' whole model does."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

from tests.calib.test_whole_models import hooked
from tests.differential import runs
from tests.families import FAMILIES
from zenconvert import convert, open_checkpoint
from zenconvert.calib.statistics import InputStatistics
from zenconvert.calib.walk import WalkSettings, walk
from zenconvert.model import meaning
from zenconvert.model.architecture import for_model_type
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.reference import Reference
from zenconvert.texts.coverage import language_coverage
from zenconvert.texts.selection import Selection
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.torch_engine import TorchEngine
from zenconvert.verification.engines.transformers_engine import TransformersEngine

Made = Callable[[str], Path]
TEXT = runs.ids(48, 11)
OTHERWISE = {
    "cohere": {"max_position_embeddings"},  # llama.cpp's converter takes model_max_length
    "exaone4": {"sliding_window_pattern"},  # layer_types are compared
    "exaone4_64": {"sliding_window_pattern"},
    "cohere2": {"sliding_window_pattern"},
    "gemma3": {"sliding_window_pattern"},
    "gemma4": {"use_bidirectional_attention"},  # of images alone
    "gemma4_e2b": {"use_bidirectional_attention"},
    "gemma4_moe": {"use_bidirectional_attention"},
    "qwen3": {"max_window_layers"},  # without windows
    "dots1": {"max_window_layers"},  # without windows
    "minimax_m2": {"attn_type_list"},  # all of one type
    "qwen3_next": {"full_attention_interval"},
}
"""Keys that another one stands for in GGUF, or that change nothing as they are."""
ALWAYS = {"layer_types", "rope_parameters"}
"""What transformers makes of several keys."""


def understood(path: Path) -> dict[str, Any]:
    """A config as transformers takes it, with what it takes where a key is missing."""
    given = json.loads((path / "config.json").read_text())
    fields = {k: v for k, v in given.items() if k not in ("model_type", "architectures")}
    saved: dict[str, Any] = AutoConfig.for_model(given["model_type"], **fields).to_dict()
    inner = saved.get("rope_parameters") or {}
    spare = {key.rpartition(".")[2] for key in for_model_type(given["model_type"]).ignored}
    return {
        **saved,
        "rope_parameters": {k: v for k, v in inner.items() if k not in spare | {"type"}},
    }


def spare(name: str, config: dict[str, Any]) -> set[str]:
    """Keys that change nothing, by name, or that have the only value that the family has."""
    shared = tomllib.loads(meaning._SHARED.read_text(encoding="utf-8"))
    architecture = for_model_type(config["model_type"])
    fixed = {k for k, values in architecture.constants.items() if config.get(k) in values}
    return {*architecture.ignored, *shared["ignored"], *fixed, *OTHERWISE.get(name, ())}


@pytest.mark.parametrize("name", FAMILIES)
def test_configs_come_back_from_gguf_key_by_key(name: str, folder: Made, tmp_path: Path) -> None:
    """All but what the plan calls lost."""
    source = folder(name)
    done = convert(source, tmp_path / "model.gguf", "gguf:bf16")
    convert(tmp_path / "model.gguf", tmp_path / "back", "hf:bf16")
    before, after = understood(source), understood(tmp_path / "back")
    own = json.loads((source / "config.json").read_text())
    lost = {fact.name.partition(".")[0] for fact in done.plan.lost}
    told = ({*own} | (ALWAYS & before.keys())) - spare(name, own) - lost
    assert {"hidden_size", "rope_parameters"} - lost <= told
    assert {k: after.get(k) for k in told} == {k: before.get(k) for k in told}


def test_the_longest_text_of_a_file_is_under_every_key_that_has_it(
    folder: Made, tmp_path: Path
) -> None:
    """transformers takes 8192 where max_position_embeddings is missing."""
    convert(folder("cohere"), tmp_path / "model.gguf", "gguf:bf16")
    convert(tmp_path / "model.gguf", tmp_path / "back", "hf:bf16")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    keys = ("model_max_length", "max_position_embeddings")
    assert [config[key] for key in keys] == [1024, 1024]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_torch_engine_computes_what_the_whole_model_does(name: str, folder: Made) -> None:
    source = folder(name)
    expected = runs.in_transformers(source, TEXT)
    engine = TorchEngine(
        open_checkpoint(source), [Window("a", "en", tuple(TEXT))], device="cpu",
        progress=lambda done, total: None,
    )  # fmt: skip
    found = engine.logits(0, 0, len(TEXT)).numpy()
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2", "starcoder2"])
def test_the_transformers_engine_scales_and_caps_logits_as_the_model(
    name: str, folder: Made, tmp_path: Path
) -> None:
    convert(folder(name), tmp_path / "floats", "hf:f32")
    windows = [Window("a", "en", tuple(TEXT))]
    engine = TransformersEngine(open_checkpoint(tmp_path / "floats"), windows, threads=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "floats", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([TEXT])).logits[0]
    found = torch.cat([engine.logits(0, 0, 7), engine.logits(0, 7, len(TEXT))])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))


WALKED = (
    "olmo3", "exaone4", "granite", "cohere2", "starcoder2", "ministral3", "phi", "qwen2_moe",
    "gemma4", "gemma4_e2b", "gemma4_moe", "glm4", "gpt_oss",
    "granitemoeshared", "glm4_moe", "deepseek_v3",
)  # fmt: skip
"""Families whose layers are built otherwise than those that other tests walk through."""


def readers(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """What ``hooked`` calls a module of the whole model → ours that read the same: those whose rows
    it holds, or one expert of a stack."""
    found: dict[str, list[str]] = {}
    for name in checkpoint.architecture.tensor_names(checkpoint.hyperparameters):
        if name.is_weight and not name.unread and name.module.role in {"linear", "router"}:
            module = name.hf_file.removesuffix(".weight").removeprefix("model.")
            module = re.sub(r"\.experts\.(\d+\.\w+)_proj$", r".\1", module)
            if name.hf_also is not None:  # what transformers has in memory
                module = name.hf_also.removesuffix(".weight").removeprefix("model.")
            found.setdefault(module, []).append(name.name.removesuffix(".weight"))
    return found


@pytest.mark.parametrize("name", WALKED)
def test_statistics_are_those_of_hooks_on_the_whole_model(name: str, folder: Made) -> None:
    checkpoint = open_checkpoint(folder(name))
    model = AutoModelForCausalLM.from_pretrained(
        folder(name), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours = readers(checkpoint)
    windows = [Window("a", "en", tuple(TEXT)), Window("b", "en", tuple(TEXT[:9]))]
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    outside = {n.hf.removeprefix("model.") for n in names if n.module.role == "kept"}
    outside = {"head", *(name.removesuffix(".weight") for name in outside)}
    seen = {m: rows for m, rows in hooked(model, windows).items() if m not in outside}
    assert seen.keys() == ours.keys()
    coverage = language_coverage("en", [[w] for w in windows], unused=0, cut=0, vocabulary=300)
    chosen = Selection(tuple(windows), ("en",), (1.0,), (coverage,))
    found: dict[str, InputStatistics] = {}
    reference = Reference(checkpoint, logical_rows, device="cpu")
    for part in walk(reference, chosen, WalkSettings(moments=True)):
        found |= {module: one for one in part.inputs.values() for module in one.modules}
    for theirs, rows in seen.items():
        for module in ours[theirs]:
            assert_sums(found[module], rows)
    assert found.keys() - {m for part in ours.values() for m in part} <= {"head"}


def assert_sums(found: InputStatistics, rows: NDArray[np.float64]) -> None:
    """Statistics of one language are those of the rows that a module reads."""
    assert found.tokens.sum() == len(rows), found.name
    sums_of = [
        (found.squares.sum(0), np.square(rows).sum(0)),
        (found.magnitudes.sum(0), np.abs(rows).sum(0)),
    ]
    if found.moments is not None or not found.name.endswith(".router"):  # which nobody solves for
        assert found.moments is not None
        sums_of.append((found.moments.numpy(), rows.T @ rows))
    for sums, expected in sums_of:
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=atol, err_msg=found.name)
