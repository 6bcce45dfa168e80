"""Every family, both ways: bytes of llama.cpp's converter, logits of llama.cpp and transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.differential import runs
from tests.families import FAMILIES, in_transformers_5
from tests.oracles import converter
from tests.oracles.llama_quantize import quantize
from tests.test_llamacpp_parity import assert_same_file
from tests.tiny import CONFIGS
from zenconvert import convert, open_checkpoint, plan
from zenconvert.errors import PlanError, Unsupported
from zenconvert.formats.gguf import mixtures
from zenconvert.planning.plan import Plan
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.llamacpp import LlamaCppEngine

NEW = [name for name in FAMILIES if name not in CONFIGS]
"""Families that no other test of parity covers."""
SHALLOW = [name for name in NEW if FAMILIES[name].config["num_hidden_layers"] < 64]
"""Those whose logits are not lost in what rounding the weights of so many random layers does."""
TEXT = runs.ids(48, 11)
Made = Callable[[str], Path]
Floats = Callable[[str, str], tuple[Path, Plan]]


@cache
def computed(source: Path) -> runs.Logits:
    """Logits of transformers for a folder that several tests look at."""
    return runs.in_transformers(source, TEXT)


@pytest.fixture(scope="module")
def floats(folder: Made, tmp_path_factory: pytest.TempPathFactory) -> Floats:
    """(family, f32 or bf16) → its GGUF file, and the plan of that."""
    place = tmp_path_factory.mktemp("floats")

    @cache
    def get(name: str, file_type: str) -> tuple[Path, Plan]:
        out = place / f"{name}-{file_type}.gguf"
        return out, convert(folder(name), out, f"gguf:{file_type}").plan

    return get


@pytest.mark.parametrize("file_type", ["f32", "bf16"])
@pytest.mark.parametrize("name", NEW)
def test_files_are_the_converters(
    name: str, file_type: str, folder: Made, floats: Floats, tmp_path: Path
) -> None:
    theirs = converter.convert(
        folder(name), tmp_path / "theirs.gguf", file_type, FAMILIES[name].pre,
        *FAMILIES[name].converter,
    )  # fmt: skip
    ours, plan = floats(name, file_type)
    assert tuple(fact.name for fact in plan.lost) == FAMILIES[name].lost
    assert plan.exact == (not plan.lost)
    assert_same_file(ours, theirs)


def test_the_llamacpp_engine_goes_by_what_files_say_of_yarn(folder: Made, floats: Floats) -> None:
    file, _ = floats("ministral3", "f32")
    engine = LlamaCppEngine(open_checkpoint(file), [Window("a", "und", tuple(TEXT))], threads=1)
    found = engine.logits(0, 0, len(TEXT)).numpy()
    engine.close()
    np.testing.assert_allclose(found, computed(folder("ministral3")), atol=1e-3, rtol=0)


@pytest.mark.parametrize("file_type", ["q4_k_m", "q3_k_l"])
@pytest.mark.parametrize("name", NEW)
def test_mixtures_are_the_quantizers(
    name: str, file_type: str, folder: Made, floats: Floats, tmp_path: Path
) -> None:
    source, _ = floats(name, "bf16")
    convert(folder(name), tmp_path / "ours.gguf", f"gguf:{file_type}")
    quantize(source, tmp_path / "theirs.gguf", mixtures.FILE_TYPES[file_type])
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize("name", NEW)
def test_llamacpp_computes_what_transformers_does_and_the_way_back_loses_nothing(
    name: str, folder: Made, floats: Floats, tmp_path: Path
) -> None:
    source = folder(name)
    expected = computed(source)
    first, _ = floats(name, "f32")
    gap = np.abs(runs.in_llamacpp(first, TEXT) - expected).max() / expected.std()
    assert gap < FAMILIES[name].llamacpp, gap
    convert(first, tmp_path / "back", "hf:bf16")
    np.testing.assert_array_equal(runs.in_transformers(tmp_path / "back", TEXT), expected)
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for key, values in before.items():
        assert values.tobytes() == after[key].tobytes(), key
    convert(tmp_path / "back", tmp_path / "second.gguf", "gguf:f32")
    assert (tmp_path / "second.gguf").read_bytes() == first.read_bytes()


def test_the_converter_takes_what_comes_back(folder: Made, tmp_path: Path) -> None:
    """Keys that it looks for, and that transformers does not read, are there."""
    first, back = tmp_path / "first.gguf", tmp_path / folder("cohere2").name
    convert(folder("cohere2"), first, "gguf:bf16")
    convert(first, back, "hf:bf16")
    theirs = converter.convert(back, tmp_path / "theirs.gguf", "bf16", FAMILIES["cohere2"].pre)
    assert_same_file(first, theirs)


def test_whole_heads_turn_by_factors_of_one_where_no_file_may_be_without(
    folder: Made, tmp_path: Path
) -> None:
    """llama.cpp loads no Gemma 4 without factors of frequencies."""
    source, file = tmp_path / "tiny", tmp_path / "model.gguf"
    shutil.copytree(folder("gemma4"), source)
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"]["full_attention"] = {"rope_type": "default", "rope_theta": 1e6}
    (source / "config.json").write_text(json.dumps(config))
    assert convert(source, file, "gguf:f32").plan.exact
    expected = runs.in_transformers(source, TEXT)
    gap = np.abs(runs.in_llamacpp(file, TEXT) - expected).max() / expected.std()
    assert gap < FAMILIES["gemma4"].llamacpp, gap
    assert open_checkpoint(file).config["rope_parameters"] == config["rope_parameters"]


@pytest.mark.parametrize("name", FAMILIES)
def test_both_spellings_of_a_config_give_one_file(
    name: str, folder: Made, floats: Floats, tmp_path: Path
) -> None:
    source = folder(name)
    old, _ = floats(name, "bf16")
    other = tmp_path / source.name
    other.mkdir()
    for file in source.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(in_transformers_5(config)))
    convert(other, tmp_path / "new.gguf", "gguf:bf16")
    assert_same_file(tmp_path / "new.gguf", old)


@pytest.mark.parametrize("target", ["gptq:w4g32", "awq:w4g32"])
@pytest.mark.parametrize("name", SHALLOW)
def test_solvers_take_every_linear_module(
    name: str, target: str, short_folder: Made, tmp_path: Path
) -> None:
    """transformers computes much the same with the folder decoded."""
    source = short_folder(name)
    samples = Calibrating(languages=["en"], tokens_per_language=200, context=64)
    done = convert(source, tmp_path / "packed", target, calibrating=samples)
    opened = open_checkpoint(source)
    names = opened.architecture.tensor_names(opened.hyperparameters)
    linear = {n.name.split(".")[-2] for n in names if n.module.role == "linear"}
    assert {name.split(".")[-2] for name in done.modules} == linear
    convert(tmp_path / "packed", tmp_path / "decoded", "hf:f32")
    expected = computed(source)
    found = runs.in_transformers(tmp_path / "decoded", TEXT)
    assert np.linalg.norm(found - expected) < FAMILIES[name].solved * np.linalg.norm(expected)


@pytest.mark.parametrize("name", NEW)
def test_graphs_compute_the_same_or_are_refused_by_name(
    name: str, folder: Made, tmp_path: Path
) -> None:
    source = folder(name)
    if not FAMILIES[name].onnx:
        with pytest.raises((PlanError, Unsupported), match=FAMILIES[name].refusal):
            plan(source, "onnx:f32")
        return
    expected = computed(source)
    convert(source, tmp_path / "onnx", "onnx:f32")
    gap = np.abs(runs.in_onnxruntime(tmp_path / "onnx", TEXT) - expected).max() / expected.std()
    assert gap < 1e-3, gap


KINDS = {"int4-acc0": 1e-3, "int8-acc0": 1e-3, "f16": 3e-2}
"""Type of a graph → how far its logits may be from those of its weights, in their deviations."""


RUN = [(name, kind) for name in SHALLOW if FAMILIES[name].onnx for kind in KINDS]
RUN += [(n, k) for n in NEW if n not in SHALLOW for k in KINDS if k != "f16"]  # which would drift


@pytest.mark.parametrize(("name", "kind"), RUN)
def test_graphs_of_integers_and_halves_compute_with_their_own_weights(
    name: str, kind: str, short_folder: Made, folder: Made, tmp_path: Path
) -> None:
    """A prefill, then step by step with the cache; a half of many layers, where there are."""
    source = folder(name) if name in SHALLOW else short_folder(name)
    convert(source, tmp_path / "onnx", f"onnx:{kind}")
    convert(tmp_path / "onnx", tmp_path / "decoded", "hf:f32")
    expected = runs.in_transformers(tmp_path / "decoded", TEXT)
    gap = np.abs(runs.in_onnxruntime(tmp_path / "onnx", TEXT) - expected).max() / expected.std()
    assert gap < KINDS[kind], gap
