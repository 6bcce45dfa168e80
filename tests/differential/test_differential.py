"""Whatever a config says, every format's own runtime computes it, or the plan names what is lost.

``ZENCONVERT_DIFFERENTIAL=N`` runs N configs (300 by default), ``ZENCONVERT_DIFFERENTIAL_SEED=S``
begins with another seed. A failure prints the seed and the config.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.differential import runs
from tests.differential.configs import FAMILIES, LENGTH, draw, is_common
from zenconvert import convert, plan
from zenconvert.errors import PlanError

COUNT = int(os.environ.get("ZENCONVERT_DIFFERENTIAL", "300"))
FIRST = int(os.environ.get("ZENCONVERT_DIFFERENTIAL_SEED", "0"))
PARTS = 10
TOLERANCE = 3e-4  # of the spread of logits: float32 in another order


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    runs.tokenizer(folder)
    return folder


def assert_close(found: runs.Logits, expected: runs.Logits, what: str) -> None:
    gap = float(np.abs(found - expected).max()) / float(expected.std())
    assert gap < TOLERANCE, f"{what}: logits differ by {gap:.2e} of their spread"


@pytest.mark.parametrize("part", range(PARTS))
def test_random_configs(part: int, tokenizer: Path, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(FIRST + part * COUNT // PARTS, FIRST + (part + 1) * COUNT // PARTS):
        rng = random.Random(seed)
        family = FAMILIES[seed % len(FAMILIES)]
        config = draw(rng, family, runs.VOCAB)
        work = tmp_path / "one"
        try:
            found = one(config, seed, tokenizer, work)
            assert_not_refused(config, found)
            outcomes.update(found)
        except Exception as error:
            error.add_note(f"seed {seed}: {json.dumps(config)}")
            raise
        shutil.rmtree(work)
    print(f"seeds {FIRST + part * COUNT // PARTS}…: {dict(outcomes)}")


def assert_not_refused(config: dict[str, Any], outcomes: list[str]) -> None:
    """What every runtime computes is written, and exactly: nothing passes by refusing alone."""
    if outcomes == ["no source"] or not is_common(config):
        return
    assert "gguf exact" in outcomes
    size = config["hidden_size"] // config["num_attention_heads"]
    assert "onnx exact" in outcomes or size % 16  # which one of the two kinds of graphs takes


def test_many_draws_are_common() -> None:
    draws = [
        draw(random.Random(seed), FAMILIES[seed % len(FAMILIES)], runs.VOCAB)
        for seed in range(FIRST, FIRST + 400)
    ]
    common = Counter(config["model_type"] for config in draws if is_common(config))
    print(f"{len(draws)} draws, common: {dict(common)}")
    assert common.total() >= 20


def one(config: dict[str, Any], seed: int, tokenizer: Path, work: Path) -> list[str]:
    """Every way of one config; what became of it in each."""
    source = runs.write_model(work / "source", config, tokenizer, seed)
    text = runs.ids(LENGTH, seed)
    try:
        expected = runs.in_transformers(source, text)
    except runs.Refused:
        return ["no source"]  # transformers does not take it either
    outcomes = ["sources"]
    convert(source, work / "hf", "hf:f32")
    assert_close(runs.in_transformers(work / "hf", text), expected, "hf → hf")
    outcomes.append(through_gguf(source, work, text, expected))
    outcomes.append(through_onnx(source, work, text, expected, random.Random(seed)))
    return outcomes


def through_gguf(source: Path, work: Path, text: list[int], expected: runs.Logits) -> str:
    try:
        planned = plan(source, "gguf:f32")
    except PlanError as error:
        return refused("gguf", error)
    convert(source, work / "m.gguf", "gguf:f32")
    computed = runs.in_llamacpp(work / "m.gguf", text)
    if planned.exact:
        assert_close(computed, expected, "llama.cpp")
    try:
        convert(work / "m.gguf", work / "back", "hf:f32")
    except PlanError as error:
        return refused("back", error)
    # a file says what llama.cpp computes with it, and so does the folder made from it
    assert_close(runs.in_transformers(work / "back", text), computed, "gguf → hf")
    if not planned.exact:
        return "gguf lossy"
    convert(work / "back", work / "again.gguf", "gguf:f32")
    assert (work / "again.gguf").read_bytes() == (work / "m.gguf").read_bytes()
    return "gguf exact"


def through_onnx(
    source: Path, work: Path, text: list[int], expected: runs.Logits, rng: random.Random
) -> str:
    target = rng.choice(["onnx:f32", "onnx:f32-standard"])
    try:
        planned = plan(source, target)
    except PlanError as error:
        return refused("onnx", error)
    convert(source, work / "onnx", target)
    assert planned.exact
    assert_close(runs.in_onnxruntime(work / "onnx", text), expected, "onnxruntime")
    return "onnx exact"


def refused(target: str, error: PlanError) -> str:
    for problem in error.problems:
        assert re.search(r": [\w.]+ is .+: \w", problem), problem
    return f"{target} refused"
