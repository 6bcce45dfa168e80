"""Second moments: tiles, weights, symmetry; and where hidden states and moments are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import CONFIGS
from zenconvert.calib import moments
from zenconvert.calib.moments import Moments
from zenconvert.errors import CorruptFile, NotEnoughResources
from zenconvert.model.architecture import architectures
from zenconvert.reference.batches import make_batches
from zenconvert.reference.hidden import HiddenStates, Place
from zenconvert.reference.inputs import Input, by_layer, layer_inputs
from zenconvert.reference.memory import Needs, Placement, place
from zenconvert.texts.windows import Window


@pytest.mark.parametrize("columns", [1, 7, 8, 20, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_weighted_sums_of_products(
    columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "TILE", {"cpu": 8})
    torch.manual_seed(0)
    found, expected = Moments(columns, "cpu"), torch.zeros(columns, columns, dtype=torch.float64)
    for weight in (1.0, 0.25, 3.0):
        rows = torch.randn(50, columns).to(dtype)
        found.add(rows, weight)
        expected += weight * rows.double().T @ rows.double()
    result = found.finish()
    assert result.dtype == torch.float32
    assert torch.equal(result, result.T)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["host", "device", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_come_back(kind: Place, dtype: torch.dtype, tmp_path: Path) -> None:
    windows = [Window(str(n), "ab"[n % 2], tuple(range(n + 2))) for n in range(9)]
    batches = make_batches(windows, "ab", 12)
    assert sorted(i for batch in batches for i in batch.windows) == list(range(9))
    tokens = sum(batch.tokens for batch in batches)
    states = HiddenStates(tokens, 5, dtype, device="cpu", place=kind, folder=tmp_path)
    torch.manual_seed(0)
    values = torch.randn(tokens, 5).to(dtype)
    states.put(torch.arange(tokens), values.float())
    at = 0
    for batch in batches:
        assert {windows[i].language for i in batch.windows} == {"ab"[batch.language]}
        assert batch.lengths == tuple(len(windows[i].ids) for i in batch.windows)
        assert len(batch.windows) == 1 or max(batch.lengths) * len(batch.windows) <= 12
        assert torch.equal(states.read(batch), values[at : at + batch.tokens])
        at += batch.tokens
    states.write(batches[1], torch.ones(batches[1].tokens, 5))
    states.save(tmp_path / "saved")
    other = HiddenStates(tokens, 5, dtype, device="cpu", place="host", folder=tmp_path)
    other.load(tmp_path / "saved")
    assert torch.equal(other.states, states.states)
    assert (other.read(batches[1]) == 1).all()
    smaller = HiddenStates(tokens - 1, 5, dtype, device="cpu", place="host", folder=tmp_path)
    with pytest.raises(CorruptFile, match="another run"):
        smaller.load(tmp_path / "saved")
    states.close()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


NEED = Needs(block=100, activations=50, hidden=400, largest_moments=30, all_moments=90)


@pytest.mark.parametrize(
    ("ram", "expected"),
    [
        (2 * 100 + 50 + 400 + 90, Placement("host", 90)),
        (2 * 100 + 50 + 400 + 30, Placement("host", 30)),
        (2 * 100 + 50 + 400 + 29, Placement("disk", 429)),
        (2 * 100 + 50 + 30, Placement("disk", 30)),
    ],
)
def test_states_go_where_there_is_room_in_memory(ram: int, expected: Placement) -> None:
    assert place(NEED, device="cpu", max_vram=None, max_ram=ram) == expected


@pytest.mark.parametrize(
    ("vram", "ram", "expected"),
    [
        (100 + 50 + 400 + 90, 200, Placement("device", 90)),
        (100 + 50 + 400 + 89, 600, Placement("host", 489)),
        (100 + 50 + 30, 600, Placement("host", 30)),
        (100 + 50 + 30, 599, Placement("disk", 30)),
    ],
)
def test_states_go_where_there_is_room_beside_a_gpu(
    vram: int, ram: int, expected: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**12, 10**12))
    assert place(NEED, device="cuda", max_vram=vram, max_ram=ram) == expected


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    with pytest.raises(NotEnoughResources, match=r"280 bytes and 279 may be used.*--max-ram"):
        place(NEED, device="cpu", max_vram=None, max_ram=279)
    with pytest.raises(NotEnoughResources, match=r"180 bytes and 90 may be used.*--max-vram"):
        place(NEED, device="cuda", max_vram=None, max_ram=1000)
    with pytest.raises(NotEnoughResources, match=r"two blocks in memory.*--max-ram"):
        place(NEED, device="cuda", max_vram=1000, max_ram=199)


def test_rounds_fit_and_keep_the_order() -> None:
    inputs = [
        Input("q", ("q", "k"), 2, stage=0),
        Input("o", ("o",), 2, stage=1),
        Input("router", ("router",), 9, stage=2, solved=False),
        Input("gate", ("gate",), 3, stage=2),
        Input("down", ("down",), 5, stage=3),
    ]
    found = Placement("host", 4 * 13).rounds(inputs, by_stage=False)
    assert [[i.name for i in group] for group in found] == [
        ["q", "o", "router"],
        ["gate"],
        ["down"],
    ]
    found = Placement("host", 4 * 100).rounds(inputs, by_stage=True)
    assert [[i.name for i in group] for group in found] == [
        ["q"], ["o"], ["router", "gate"], ["down"],
    ]  # fmt: skip


@pytest.mark.parametrize("family", CONFIGS)
def test_every_linear_module_reads_one_input(family: str) -> None:
    config = CONFIGS[family]
    (architecture,) = (a for a in architectures().values() if config["model_type"] in a.model_types)
    hp = architecture.sizes(config, where="test")
    layers = by_layer(architecture.tensor_names(hp))
    assert sorted(layers) == list(range(hp.layers))
    for all_experts in (False, True):
        inputs = layer_inputs(architecture, layers[1], all_experts=all_experts)
        modules = [module for item in inputs for module in item.modules]
        linear = {n.name for n in layers[1] if n.is_weight and len(n.shape) == 2}
        assert sorted(f"{module}.weight" for module in modules) == sorted(linear)
        assert [item.stage for item in inputs] == sorted(item.stage for item in inputs)
        assert {item.stage for item in inputs} == {0, 1, 2, 3}
        for item in inputs:
            columns = {n.shape[1] for n in layers[1] if n.name[:-7] in item.modules}
            assert columns == {item.columns}
