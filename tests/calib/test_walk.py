"""The walk's statistics are those of the whole model, and its contract holds."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.calib.independent import Seen, activations
from tests.calib.walking import assert_same, gather, reference, selection
from tests.tiny import raw_model
from zenconvert import open_checkpoint
from zenconvert.calib.moments import Moments
from zenconvert.calib.statistics import InputStatistics
from zenconvert.calib.walk import LayerProgress, Sequential, WalkSettings, walk
from zenconvert.calib.workspace import open_workspace
from zenconvert.errors import InvalidInput, NotEnoughResources, UsageError
from zenconvert.reference import batches, memory
from zenconvert.reference.block import Block
from zenconvert.reference.memory import Placement
from zenconvert.reference.reference import Reference
from zenconvert.verification.engines.torch_engine import TorchEngine


def assert_sums(found: dict[str, InputStatistics], seen: Seen, languages: Sequence[str]) -> None:
    for name, item in found.items():
        for number, language in enumerate(languages):
            rows = seen[name, language]
            assert item.tokens[number] == len(rows), (name, language)
            for sums, expected in (
                (item.squares, np.square(rows).sum(0)),
                (item.magnitudes, np.abs(rows).sum(0)),
            ):
                np.testing.assert_allclose(sums[number], expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("family", ["qwen2", "llama3", "mistral", "mixtral"])
def test_sums_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", family)
    chosen = selection(weights=(1, 2, 0.5))
    seen = activations(folder, chosen.windows)
    found = gather(folder, chosen, moments=True)
    assert {name for name, _ in seen} == set(found)
    assert_sums(found, seen, chosen.languages)
    for name, item in found.items():
        if name.endswith("router"):
            assert item.moments is None
            continue
        expected = sum(
            weight * seen[name, language].T @ seen[name, language]
            for language, weight in zip(chosen.languages, chosen.token_weights, strict=True)
        )
        assert item.moments is not None
        size = np.abs(expected).max()
        np.testing.assert_allclose(item.moments.numpy(), expected, rtol=1e-3, atol=1e-5 * size)
        np.testing.assert_allclose(
            item.importance(), np.diag(expected) / item.weight, rtol=1e-3, atol=1e-5 * size
        )


def test_parts_cover_the_model_in_order(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", "mixtral")
    checkpoint = open_checkpoint(folder)
    layers: list[int | None] = []
    modules: list[str] = []
    for part in walk(reference(folder), selection(), WalkSettings()):
        layers.append(part.layer)
        modules += part.modules
        assert part.last
        assert (part.routed is not None) == (part.layer is not None)
        if part.routed is not None:
            experts = [part.of(f"layers.{part.layer}.moe.{e}.gate").tokens for e in range(4)]
            np.testing.assert_array_equal(part.routed, np.stack(experts, axis=1))
            tokens = part.of(f"layers.{part.layer}.attn.v").tokens
            np.testing.assert_array_equal(part.routed.sum(axis=1), 2 * tokens)
        with pytest.raises(UsageError, match="no statistics of 'nothing'"):
            part.of("nothing")
    assert layers == [0, 1, None]
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    linear = [n.name for n in names if n.module.role in {"linear", "router", "head"}]
    assert sorted(f"{module}.weight" for module in modules) == sorted(linear)


@pytest.mark.parametrize("place", ["host", "disk"])
def test_neither_place_nor_rounds_nor_batches_matter(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = raw_model(tmp_path / "model", "mixtral")
    expected = gather(folder, selection(), moments=True)
    room = 4 * 256 * 256 * 3  # three of the ten inputs of a layer
    monkeypatch.setattr(
        memory,
        "place",
        lambda *_, **__: Placement(place, room),  # type: ignore[arg-type]
    )
    parts = list(walk(reference(folder), selection(), WalkSettings(moments=True)))
    assert [part.layer for part in parts] == [0, 0, 0, 0, 1, 1, 1, 1, None]
    assert [part.last for part in parts] == [*[False, False, False, True] * 2, True]
    assert_same(gather(folder, selection(), moments=True), expected)
    monkeypatch.setattr(batches, "_TOKENS_ELSEWHERE", 64)
    for name, item in gather(folder, selection()).items():
        np.testing.assert_array_equal(item.tokens, expected[name].tokens)
        np.testing.assert_allclose(item.squares, expected[name].squares, rtol=1e-4, atol=1e-9)


def test_budgets_are_kept_or_refused(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model")
    with pytest.raises(NotEnoughResources, match=r"two blocks|one block.*--max-ram"):
        gather(folder, selection(), max_ram=1_000_000)


def test_all_experts_are_measured_over_all_tokens(tmp_path: Path) -> None:
    """The router still decides what goes on, and what is counted as routed."""
    folder = raw_model(tmp_path / "model", "mixtral")
    chosen = selection()
    routed = gather(folder, chosen)
    tensors = {k: v.double() for k, v in load_file(folder / "model.safetensors").items()}
    for part in walk(reference(folder), chosen, WalkSettings(all_experts=True, moments=True)):
        if part.layer is None:
            np.testing.assert_allclose(part.of("head").squares, routed["head"].squares, rtol=1e-5)
            continue
        shared = part.of(f"layers.{part.layer}.moe.2.up")
        assert shared is part.of(f"layers.{part.layer}.moe.router")
        np.testing.assert_array_equal(shared.tokens, chosen.tokens)
        assert part.routed is not None
        np.testing.assert_array_equal(part.routed.sum(axis=1), 2 * chosen.tokens)
    seen = activations(folder, chosen.windows)
    states = torch.from_numpy(seen["layers.1.moe.router", "zh"])
    found = gather(folder, chosen, all_experts=True)
    for expert in range(4):
        name = f"model.layers.1.block_sparse_moe.experts.{expert}"
        gate, up = (states @ tensors[f"{name}.{w}.weight"].T for w in ("w1", "w3"))
        inner = torch.nn.functional.silu(gate) * up
        np.testing.assert_allclose(
            found[f"layers.1.moe.{expert}.down"].squares[1], inner.square().sum(0), rtol=1e-3
        )


def coarse(value: torch.Tensor) -> torch.Tensor:
    """A weight that has lost much."""
    return torch.round(value.float() * 20) / 20


def coarsened(folder: Path, out: Path, layers: Sequence[int]) -> Path:
    """A copy whose linear weights in these layers are coarse."""
    out.mkdir()
    (out / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if any(f"layers.{n}." in name for n in layers) and value.dim() == 2 and "gate." not in name:
            tensors[name] = coarse(value)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def sequential(folder: Path, kind: Sequential) -> dict[str, InputStatistics]:
    """A walk whose consumer makes every linear weight coarse."""
    found: dict[str, InputStatistics] = {}
    for part in walk(reference(folder), selection(), WalkSettings(sequential=kind, moments=True)):
        found |= part.inputs
        for module in part.modules:
            if part.layer is not None and not module.endswith("router"):
                part.replace(f"{module}.weight", coarse(part.weight(f"{module}.weight")))
    return found


@pytest.mark.parametrize("family", ["llama3", "mixtral"])
def test_a_sequential_walk_goes_on_with_replaced_weights(family: str, tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", family)
    original = gather(folder, selection(), moments=True)
    first = gather(coarsened(folder, tmp_path / "first", [0]), selection(), moments=True)
    both = gather(coarsened(folder, tmp_path / "both", [0, 1]), selection(), moments=True)
    changed = "layers.1.attn.q"
    assert np.abs(first[changed].squares / original[changed].squares - 1).max() > 0.01
    by_layer = sequential(folder, "layers")
    expected = {
        name: original[name] if "layers.0" in name else first[name] for name in original
    } | {"head": both["head"]}
    assert_same(by_layer, expected)
    assert_same(sequential(folder, "stages"), both)


def test_parts_are_valid_until_the_walk_goes_on(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model")
    parts = walk(reference(folder), selection(), WalkSettings(moments=True))
    part = next(parts)
    weight = part.weight("layers.0.ffn.up.weight")
    assert weight.dtype == torch.float32
    with pytest.raises(UsageError, match="only a sequential walk"):
        part.replace("layers.0.ffn.up.weight", weight)
    next(parts)
    assert part.inputs == {}
    with pytest.raises(UsageError):
        part.of("layers.0.ffn.up")
    parts.close()


@pytest.mark.parametrize(("kind", "most"), [("off", 4), ("stages", 1)])
def test_only_one_block_and_the_moments_of_one_part_are_in_memory(
    kind: Sequential, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: weakref.WeakSet[Block] = weakref.WeakSet()
    moments: list[weakref.ref[torch.Tensor]] = []
    build, begin = Reference.block, Moments.__init__

    def alive() -> int:
        return sum(known() is not None for known in moments)

    def counted_block(self: Reference, layer: int, weights: Any = None) -> Block:
        assert not blocks
        made = build(self, layer, weights)
        blocks.add(made)
        return made

    def counted_moments(self: Moments, columns: int, device: str) -> None:
        assert alive() < most
        begin(self, columns, device)
        moments.append(weakref.ref(self.sums))

    monkeypatch.setattr(Reference, "block", counted_block)
    monkeypatch.setattr(Moments, "__init__", counted_moments)
    folder = raw_model(tmp_path / "model", num_hidden_layers=3)
    for part in walk(reference(folder), selection(), WalkSettings(moments=True, sequential=kind)):
        assert alive() == len(part.inputs) <= most
    assert len(moments) == 3 * 4 + 1


def test_weights_are_given_as_they_are_stored(tmp_path: Path) -> None:
    """Also where the walk computes in a narrower dtype."""
    folder = raw_model(tmp_path / "model", dtype="f32")
    stored = load_file(folder / "model.safetensors")
    for part in walk(reference(folder), selection(), WalkSettings(dtype="bf16")):
        if part.layer == 1:
            found = part.weight("layers.1.attn.k.weight")
            assert torch.equal(found, stored["model.layers.1.self_attn.k_proj.weight"])
        if part.layer is None:
            assert torch.equal(part.weight("head.weight"), stored["lm_head.weight"])


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_halves_give_nearly_the_same(dtype: str, tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", "llama3")
    exact = gather(folder, selection(), moments=True)
    for name, item in gather(folder, selection(), moments=True, dtype=dtype).items():
        np.testing.assert_array_equal(item.tokens, exact[name].tokens)
        ratio = item.squares.sum() / exact[name].squares.sum()
        assert ratio == pytest.approx(1, abs=0.02)
        ours, theirs = item.moments, exact[name].moments
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_activations_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInput, match=r"layer 1: what layers\.1\.ffn\.down reads.*'en'"):
        gather(folder, selection())


@pytest.mark.parametrize("tied", [False, True])
def test_final_states_are_those_of_the_torch_engine(tied: bool, tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", tie_word_embeddings=tied)
    windows = selection().windows
    engine = TorchEngine(
        open_checkpoint(folder), windows, device="cpu", progress=lambda done, total: None
    )
    *_, head = walk(reference(folder), selection(), WalkSettings())
    assert head.layer is None
    parts = walk(reference(folder), selection(), WalkSettings())
    for part in parts:
        if part.layer is None:
            assert set(part.inputs) == (set() if tied else {"head"})
            found = dict(part.states())
    assert sorted(found) == list(range(len(windows)))
    for number, rows in found.items():
        expected = engine.states.rows(number, 0, len(windows[number].ids))
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
def test_a_walk_goes_on_where_states_were_saved(save_seconds: float, tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", num_hidden_layers=4)
    expected = gather(folder, selection(), moments=True)
    found: dict[str, InputStatistics] = {}
    order: list[int | None] = []
    for stop in (1, 3, None):  # after this layer was shown, the first two runs end
        with open_workspace(tmp_path / "work", {"run": 1}, save_seconds=save_seconds) as workspace:
            done = {layer for layer in order if layer is not None}
            assert (workspace.first_layer > 0) == (save_seconds == 0 and bool(done))
            parts = walk(
                reference(folder), selection(), WalkSettings(moments=True),
                workspace=workspace, skip=done,
            )  # fmt: skip
            for part in parts:
                order.append(part.layer)
                found |= part.inputs
                if stop is not None and part.layer == stop:
                    break
            parts.close()
    assert order == [0, 1, 2, 3, None]
    assert_same(found, expected)


def test_another_run_empties_the_workspace(tmp_path: Path) -> None:
    for number in (1, 2):
        with open_workspace(tmp_path / "work", {"run": number}) as workspace:
            assert workspace.first_layer == 0
            with workspace.new_file("hidden-00003.bin") as path:
                path.touch()
            assert workspace.first_layer == 3
            with (
                pytest.raises(UsageError, match="another run"),
                open_workspace(tmp_path / "work", {"run": number}),
            ):
                pass


def test_progress_ends_at_one(tmp_path: Path) -> None:
    seen: list[LayerProgress] = []
    folder = raw_model(tmp_path / "model", num_hidden_layers=3)
    for _ in walk(reference(folder), selection(), WalkSettings(), progress=seen.append):
        pass
    assert [at.done for at in seen] == sorted(at.done for at in seen)
    assert {(at.layer, at.layers) for at in seen} == {(0, 3), (1, 3), (2, 3)}
    assert seen[0].seconds_left is None
    assert seen[-1].done == 1
    assert seen[-1].seconds_left == 0


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model")
    with pytest.raises(UsageError, match="device 'abacus'"):
        gather(folder, selection(), device="abacus")
    with pytest.raises(UsageError, match="no dtype 'f8'"):
        gather(folder, selection(), dtype="f8")
    with pytest.raises(UsageError, match="cannot skip"):
        next(walk(reference(folder), selection(), WalkSettings(sequential="layers"), skip={0}))
