"""Whatever a config says, a GPTQ or AWQ folder computes it with the weights that it holds, for
everybody who reads it: a consumer of our own beside ours, llama.cpp, and the other format.

``ZENCONVERT_DIFFERENTIAL`` and its seed as in ``test_differential``.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from tests.differential import packed, runs
from tests.differential.configs import FAMILIES, LENGTH, Config, draw
from tests.oracles import ours
from zenconvert import Options, convert, plan
from zenconvert.errors import PlanError, UsageError
from zenconvert.model.architecture import for_model_type

COUNT = int(os.environ.get("ZENCONVERT_DIFFERENTIAL", "300")) // 10
FIRST = int(os.environ.get("ZENCONVERT_DIFFERENTIAL_SEED", "0"))
PARTS = 3
TOLERANCE = 3e-4  # of the spread of logits
_OF_FILES = ("quantization_config", "torch_dtype", "dtype", "_name_or_path")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    runs.tokenizer(folder)
    return folder


def draw_packed(rng: random.Random, seed: int) -> Config:
    """A config of sizes that packed words hold, mostly."""
    config = draw(rng, FAMILIES[seed % len(FAMILIES)], runs.VOCAB)
    for key in ("intermediate_size", "moe_intermediate_size"):
        if key in config and rng.random() < 0.9:
            config[key] = rng.choice([32, 64, 96])
    if config["hidden_size"] % 32 and rng.random() < 0.9:
        config |= {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
        config["num_key_value_heads"] = rng.choice([2, 4])
    return config


def draw_target(rng: random.Random) -> tuple[str, Options]:
    """A target, and options for single modules."""
    group = rng.choice([32, 32, 32, 16, 64, -1])
    if rng.random() < 0.4:
        kind = rng.choice(["", "", "-sym", "-gemv"])
        kept = ((rng.choice([r"down_proj|\.w2\.", "q_proj", r"layers\.0\."]), "f16"),)
        return f"awq:w4g{group}{kind}", Options(kept if rng.random() < 0.4 else ())
    bits = rng.choice([2, 3, 4, 4, 8])
    kind = rng.choice(["", "", "-asym", "-v2", "-gptqmodel", "-asym-gptqmodel"])
    types = []
    if rng.random() < 0.4:
        module = rng.choice([r"down_proj|\.w2\.", "o_proj", "v_proj", r"\.w3|up_", r"layers\.0\."])
        types.append((module, rng.choice(["w8g32", "w4g32-asym", "w2g16", "f16", "bf16"])))
    head = rng.choice([None, None, "w8g32", "w4g-1", "f16"])
    return f"gptq:w{bits}g{group}{kind}", Options(tuple(types), output_type=head)


@pytest.mark.parametrize("part", range(PARTS))
def test_random_configs(part: int, tokenizer: Path, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(FIRST + part * COUNT // PARTS, FIRST + (part + 1) * COUNT // PARTS):
        rng = random.Random(seed)
        config = draw_packed(rng, seed)
        target, options = draw_target(rng)
        work = tmp_path / "one"
        try:
            outcomes.update(one(config, target, options, seed, tokenizer, work))
        except Exception as error:
            error.add_note(f"seed {seed}: {target} {options}\n{json.dumps(config)}")
            raise
        shutil.rmtree(work)
    print(f"seeds {FIRST + part * COUNT // PARTS}…: {dict(outcomes)}")


def one(
    config: Config, target: str, options: Options, seed: int, tokenizer: Path, work: Path
) -> list[str]:
    """Every way of one config and target; what became of it in each."""
    source = runs.write_model(work / "source", config, tokenizer, seed)
    text = runs.ids(LENGTH, seed)
    try:
        expected = runs.in_transformers(source, text)
    except runs.Refused:
        return ["no source"]
    assert_close(ours.logits(source, text), expected, "the torch engine")
    name = target.partition(":")[0]
    try:
        convert(source, work / "packed", target, options=options)
    except PlanError as error:
        told = [re.search(r"cannot be stored as (gptq|awq)", p) for p in error.problems]
        return [f"{name} refused"] if all(told) else pytest.fail(str(error))
    except UsageError as error:  # the only layer is kept
        whole = config["num_hidden_layers"] == 1 and any(
            "layers" in p for p, _ in options.tensor_types
        )
        return ["nothing packed"] if whole else pytest.fail(str(error))
    assert_same_config(source, work / "packed")
    assert_same_files(source, work / "packed")
    named = linears(config)
    if target.endswith("gptqmodel") and config["model_type"] == "mixtral":
        named = {packed.in_memory(module) for module in named}
    twin = packed.decoded(work / "packed", work / "twin", named)
    computed = runs.in_transformers(twin, text)
    assert_close(ours.logits(work / "packed", text), computed, "the torch engine")
    convert(work / "packed", work / "hf", "hf:f32")
    assert_same_config(source, work / "hf")
    assert_close(runs.in_transformers(work / "hf", text), computed, "hf")
    return [name, *through_others(work, name, text, computed), *in_gguf(work, text, computed)]


def linears(config: Config) -> set[str]:
    """Names of the modules that multiply by a matrix, as files call them."""
    architecture = for_model_type(config["model_type"])
    names = list(architecture.tensor_names(architecture.sizes(config, where="test")))
    return {
        n.hf_file.removesuffix(".weight")
        for n in names
        if n.is_weight and n.required and n.module.role in {"linear", "router", "head"}
    }


def assert_close(found: runs.Logits, expected: runs.Logits, what: str) -> None:
    gap = float(np.abs(found - expected).max()) / float(expected.std())
    assert gap < TOLERANCE, f"{what}: logits differ by {gap:.2e} of their spread"


def assert_same_config(source: Path, folder: Path) -> None:
    """transformers reads the same of both."""
    first, second = (json.loads((f / "config.json").read_text()) for f in (source, folder))
    second.pop("quantization_config", None)
    read = [AutoConfig.for_model(**copy.deepcopy(c)).to_dict() for c in (first, second)]
    for config in read:
        for key in _OF_FILES:
            config.pop(key, None)
    assert read[1] == read[0]
    kept = {k: v for k, v in first.items() if k not in _OF_FILES}
    assert {k: second.get(k) for k in kept} == kept


def assert_same_files(source: Path, folder: Path) -> None:
    """What is beside config and weights travels unchanged."""
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            assert (folder / file.name).read_bytes() == file.read_bytes()


def through_others(work: Path, name: str, text: list[int], computed: runs.Logits) -> list[str]:
    """To the other packed format and back, where the plan says that it is exact."""
    other = "awq" if name == "gptq" else "gptq"
    try:
        convert(work / "packed", work / "other", other, exact=True)
    except PlanError:
        return [f"no {other}"]
    except UsageError as error:  # a file of AWQ has one grid
        several = len(packed.grids(work / "packed")) > 1
        return [f"no {other}"] if several else pytest.fail(str(error))
    assert_close(ours.logits(work / "other", text), computed, other)
    config = json.loads((work / "source" / "config.json").read_text())
    twin = packed.decoded(work / "other", work / "other-twin", linears(config))
    assert_close(runs.in_transformers(twin, text), computed, f"{other}, decoded")
    return [f"as {other}"]


def in_gguf(work: Path, text: list[int], computed: runs.Logits) -> list[str]:
    """In llama.cpp, where the plan says that it is exact."""
    try:
        exact = plan(work / "packed", "gguf:f32", exact=True).exact
    except PlanError:
        return ["no gguf"]
    assert exact
    convert(work / "packed", work / "m.gguf", "gguf:f32")
    assert_close(runs.in_llamacpp(work / "m.gguf", text), computed, "llama.cpp")
    return ["in gguf"]
