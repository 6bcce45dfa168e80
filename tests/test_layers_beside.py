"""Layers that read keys and values of others, and that are given inputs of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.differential import runs
from tests.families import FAMILIES
from tests.oracles import converter
from tests.test_llamacpp_parity import assert_same_file
from zenconvert import convert, open_checkpoint, plan
from zenconvert.calib.statistics import InputStatistics
from zenconvert.calib.walk import WalkSettings, walk
from zenconvert.calib.workspace import open_workspace
from zenconvert.errors import CorruptFile, PlanError, Unsupported
from zenconvert.planning.recoding import logical_rows
from zenconvert.publication.resources import verifying
from zenconvert.reference.inputs import layer_inputs
from zenconvert.reference.reference import Reference
from zenconvert.solve.calibration_texts import Calibrating
from zenconvert.texts.coverage import language_coverage
from zenconvert.texts.selection import Selection
from zenconvert.texts.windows import Window

Made = Callable[[str], Path]
NAME = "gemma4_e2b"
TEXT = runs.ids(40, 5)


@pytest.fixture(scope="module")
def released(folder: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as it was trained: with keys and values in layers that do not read them."""
    source = tmp_path_factory.mktemp("released") / f"tiny-{NAME}"
    shutil.copytree(folder(NAME), source)
    tensors = load_file(source / "model.safetensors")
    checkpoint = open_checkpoint(source)
    for name in checkpoint.architecture.tensor_names(checkpoint.hyperparameters):
        if name.unread:
            tensors[name.hf] = torch.full(name.shape, 7.0, dtype=torch.bfloat16)
    save_file(dict(sorted(tensors.items())), source / "model.safetensors", {"format": "pt"})
    return source


def test_keys_that_nobody_reads_travel_and_change_nothing(
    released: Path, folder: Made, tmp_path: Path
) -> None:
    theirs = converter.convert(released, tmp_path / "theirs.gguf", "bf16", FAMILIES[NAME].pre)
    done = convert(released, tmp_path / "ours.gguf", "gguf:bf16")
    assert done.plan.exact
    assert_same_file(tmp_path / "ours.gguf", theirs)
    convert(tmp_path / "ours.gguf", tmp_path / "back", "hf:bf16")
    before, after = (load_file(p / "model.safetensors") for p in (released, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    expected = runs.in_transformers(folder(NAME), TEXT)
    convert(released, tmp_path / "floats.gguf", "gguf:f32")  # others round activations
    found = runs.in_llamacpp(tmp_path / "floats.gguf", TEXT)
    assert np.abs(found - expected).max() < FAMILIES[NAME].llamacpp * expected.std()


def test_scales_are_found_past_keys_that_nobody_reads(released: Path, tmp_path: Path) -> None:
    samples = Calibrating(languages=["en"], tokens_per_language=100, context=50)
    done = convert(released, tmp_path / "awq", "awq:w4g32", calibrating=samples)
    assert {n.split(".")[1] for n in done.modules if ".attn.k" in n} == {"0", "1", "2"}
    spare = open_checkpoint(tmp_path / "awq").tensors["layers.5.attn.k.weight"]
    assert np.abs(logical_rows(spare, 0, spare.rows) - 7).max() < 0.1


def test_both_embeddings_have_to_know_the_same_tokens_in_llamacpp(
    folder: Made, tmp_path: Path
) -> None:
    source = tmp_path / "tiny"
    shutil.copytree(folder(NAME), source)
    config = json.loads((source / "config.json").read_text())
    config["vocab_size_per_layer_input"] += 2
    tensors = load_file(source / "model.safetensors")
    rows = tensors["model.embed_tokens_per_layer.weight"]
    tensors["model.embed_tokens_per_layer.weight"] = torch.cat((rows, rows[:2]))
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match=r"vocab_size_per_layer_input .*llama.cpp wants as many"):
        plan(source, "gguf:bf16")
    assert plan(source, "hf:bf16").exact


def test_sizes_of_networks_that_no_config_says_are_refused(folder: Made, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    convert(folder(NAME), file, "gguf:bf16")
    data = file.read_bytes()
    sizes = np.array([512] * 3 + [1024] * 3, dtype="<i4").tobytes()
    assert data.count(sizes) == 1
    wrong = np.array([512] * 3 + [1024] * 2 + [512], dtype="<i4").tobytes()
    file.write_bytes(data.replace(sizes, wrong))
    with pytest.raises(CorruptFile, match="feed_forward_length should be one number, or twice"):
        open_checkpoint(file)


def test_a_walk_goes_on_with_keys_and_inputs_where_it_was_ended(
    folder: Made, tmp_path: Path
) -> None:
    """In memory or on the disk, in one go or in two: the same numbers."""
    checkpoint = open_checkpoint(folder(NAME))
    windows = [Window("a", "en", tuple(TEXT)), Window("b", "en", tuple(TEXT[:9]))]
    coverage = language_coverage("en", [[w] for w in windows], unused=0, cut=0, vocabulary=300)
    chosen = Selection(tuple(windows), ("en",), (1.0,), (coverage,))

    def found(settings: WalkSettings, workspace: str, last: int) -> dict[str, InputStatistics]:
        parts: dict[str, InputStatistics] = {}
        reference = Reference(checkpoint, logical_rows, device="cpu")
        with open_workspace(tmp_path / workspace, {}, save_seconds=0.0) as work:
            for part in walk(reference, chosen, settings, workspace=work):
                parts |= part.inputs
                if part.layer == last:
                    break
        return parts

    whole = found(WalkSettings(), "one", 6)
    first = found(WalkSettings(), "two", 4)
    rest = found(WalkSettings(), "two", 6)
    assert "layers.5.attn.q" not in first
    assert "layers.0.attn.q" not in rest
    for name, one in {**first, **rest}.items():
        np.testing.assert_array_equal(one.squares, whole[name].squares, err_msg=name)
    assert whole.keys() == first.keys() | rest.keys()


def test_states_of_all_kinds_are_the_same_on_the_disk(
    folder: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zenconvert.reference import memory
    from zenconvert.verification.engines.torch_engine import TorchEngine

    checkpoint = open_checkpoint(folder(NAME))
    windows = [Window("a", "en", tuple(TEXT)), Window("b", "en", tuple(TEXT[:9]))]

    def logits() -> torch.Tensor:
        engine = TorchEngine(checkpoint, windows, device="cpu", progress=lambda done, total: None)
        return torch.cat([engine.logits(n, 0, len(w.ids)) for n, w in enumerate(windows)])

    usual, place = logits(), memory.place
    monkeypatch.setattr(
        memory, "place", lambda *args, **kwargs: replace(place(*args, **kwargs), hidden="disk")
    )
    assert torch.equal(logits(), usual)


def test_experts_of_a_router_that_reads_something_else_are_not_given_all_tokens(
    folder: Made,
) -> None:
    checkpoint = open_checkpoint(folder("gemma4_moe"))
    reference = Reference(checkpoint, logical_rows, device="cpu")
    with pytest.raises(Unsupported, match="route tokens by something else than what experts read"):
        layer_inputs(checkpoint.architecture, reference.by_layer[0], all_experts=True)


def test_experts_are_one_tensor_in_hf_folders_and_stand_alone_in_packed_ones(
    folder: Made, tmp_path: Path
) -> None:
    convert(folder("gemma4_moe"), tmp_path / "gptq", "gptq:w4g32")
    packed = {n for n in load_file(tmp_path / "gptq" / "model.safetensors") if ".0.experts." in n}
    assert "model.layers.0.experts.5.up_proj.qweight" in packed
    assert "model.layers.0.experts.gate_up_proj" not in packed
    convert(tmp_path / "gptq", tmp_path / "hf", "hf:bf16")
    stacks = load_file(tmp_path / "hf" / "model.safetensors")
    assert stacks["model.layers.0.experts.gate_up_proj"].shape == (6, 256, 256)
    assert stacks.keys() == load_file(folder("gemma4_moe") / "model.safetensors").keys()


def test_a_release_leaves_room_for_what_stands_beside_hidden_states(folder: Made) -> None:
    prepared = SimpleNamespace(
        checkpoint=open_checkpoint(folder(NAME)),
        engines={"a": ("torch",)},
        windows=[Window("a", "en", tuple(TEXT))],
        recipe=SimpleNamespace(verification=SimpleNamespace(device="cpu")),
        plans={},
    )
    need = verifying(cast(Any, prepared), cast(Any, SimpleNamespace(name="a")))
    keys_and_values = 2 * (4 * 16 + 4 * 32)
    assert need.disk == 2 * 4 * len(TEXT) * (256 + 6 * 128 + keys_and_values)
