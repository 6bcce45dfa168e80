"""The walk back gives what autograd gives on the whole model, finite, and again after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.calib.test_whole_models import known
from tests.calib.walking import reference, selection
from tests.calib.whole_models import by_hand, whole_model
from tests.families import FAMILIES as OTHERS
from tests.tiny import raw_model
from zenconvert.calib import backward
from zenconvert.calib.back_plan import BackPlan
from zenconvert.calib.backward import walk_back
from zenconvert.calib.gradients import Gradients, drawn, sampled
from zenconvert.calib.statistics_file import StatisticsRun
from zenconvert.calib.statistics_reader import open_statistics
from zenconvert.calib.walk import WalkSettings
from zenconvert.calib.workspace import open_workspace
from zenconvert.errors import Unsupported, UsageError
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.reference import Reference
from zenconvert.texts.coverage import language_coverage
from zenconvert.texts.selection import Selection
from zenconvert.texts.windows import Window

TIED = {"gemma2": True}
FAMILIES = ("qwen3", "qwen3_moe", "gemma2", "granite", "gpt_oss", "llama4_text", "deepseek_v3")


class Kept(dict[str, Gradients]):
    """Takes everything."""

    def has(self, step: str) -> bool:
        return step in self

    def put(self, part: Gradients) -> None:
        self[part.step] = part


def made_up() -> Selection:
    """Windows of two languages, one of which weighs three times as much."""
    random, lengths = np.random.default_rng(3), {"en": (3, 40, 17), "fr": (2, 33)}
    windows = [
        Window(f"{code}{n}", code, tuple(random.integers(0, 300, n).tolist()))
        for code, own in lengths.items()
        for n in own
    ]
    coverage = [
        language_coverage(
            code, [[w] for w in windows if w.language == code], unused=0, cut=0, vocabulary=300
        )
        for code in lengths
    ]
    return Selection(tuple(windows), tuple(lengths), (1.0, 3.0), tuple(coverage))


def labels(logits: torch.Tensor, window: int) -> torch.Tensor:
    """Drawn by the rule: the first token whose cumulated probability is above the number drawn."""
    draws = np.random.default_rng([0, window]).random(len(logits))
    sums = np.cumsum(torch.softmax(logits.detach().double(), -1).numpy(), axis=-1)
    return torch.from_numpy((sums <= draws[:, None]).sum(1))


class Oracle:
    """Autograd through a whole model of transformers."""

    def __init__(self, model: Any, chosen: Selection) -> None:
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.embedding = self.head = torch.zeros(())
        weights, languages = chosen.token_weights, list(chosen.languages)
        self.rows: dict[str, Any] = {}
        self.inputs: dict[str, torch.Tensor] = {}
        embedding = model.get_input_embeddings()
        scale = float(getattr(embedding, "embed_scale", 1.0))
        model.requires_grad_(True)
        for name, module in model.named_modules():
            if type(module) is torch.nn.Linear or module is embedding:
                module.register_forward_hook(self.keep(name))
        for number, window in enumerate(chosen.windows):
            logits = model(torch.tensor([window.ids])).logits[0]
            drawn = labels(logits, number)
            loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
            model.zero_grad()
            torch.autograd.backward(loss)
            language = languages.index(window.language)
            for name, rows in self.rows.items():
                found = rows.grad.double().reshape(-1, rows.shape[-1])
                empty = np.zeros((len(languages), rows.shape[-1]))
                sums = self.squares.setdefault(name, empty)
                sums[language] += found.square().sum(0).numpy()
            count = float(weights[language])
            back = self.rows["model.embed_tokens"].grad.double()[0] * scale
            self.embedding = self.embedding + count * back.T @ back
            at_logits = self.rows["lm_head"].grad.double()[0].square().sum(1)
            x = self.inputs["lm_head"].double()[0]
            self.head = self.head + count * (x * at_logits[:, None]).T @ x

    def keep(self, name: str) -> Any:
        """A hook that keeps an output and its gradient."""

        def hook(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            self.rows[name], self.inputs[name] = output, args[0].detach()

        return hook


@pytest.mark.parametrize("family", [f for f in FAMILIES if known(f)])
def test_gradients_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    tied = TIED.get(family, False)
    model, chosen = whole_model(family, tmp_path, tie_word_embeddings=tied), made_up()
    reference = Reference(by_hand(tmp_path), logical_rows, device="cpu")
    plan, kept = BackPlan.of(reference, chosen, WalkSettings(), 10_000), Kept()
    with open_workspace(tmp_path / "work", {}) as workspace:
        walk_back(plan, workspace=workspace, taker=kept)
    oracle = Oracle(model, chosen)
    compared = 0
    for part in kept.values():
        assert not part.dropped.any()
        for module, sums in part.squares.items():
            name = f"model.{module}" if module.startswith("layers") else "lm_head"
            if name in oracle.squares:  # the whole model holds stacks of experts
                compared += 1
                wanted = oracle.squares[name]
                np.testing.assert_allclose(sums, wanted, rtol=1e-3, atol=1e-5 * wanted.max())
            assert sums.any()
    assert compared > 2 * reference.layers
    pairs = [(kept["embed"].moments, oracle.embedding)]
    assert (kept["head"].moments is not None) == tied
    if tied:
        pairs.append((kept["head"].moments, oracle.head))
    for found, expected in pairs:
        assert found is not None
        largest = float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4 * largest)


def write(folder: Path, out: Path, progress: Any = None, **settings: Any) -> Path:
    run = StatisticsRun(reference(folder), selection(), WalkSettings(**settings), fisher_tokens=64)
    run.run(out, progress=progress)
    return out


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ``model`` of three layers, and its ``x.stats``."""
    folder = tmp_path_factory.mktemp("written")
    raw_model(folder / "model", num_hidden_layers=3)
    write(folder / "model", folder / "x.stats", moments=True)
    return folder


@pytest.mark.parametrize("layer", [2, 1, 0])
def test_an_interrupted_walk_goes_on(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(at: Any) -> None:
        if at.stage == "gradients" and at.layer == layer:
            raise Interrupted

    out, begun = tmp_path / "x.stats", []
    with pytest.raises(Interrupted):
        write(written / "model", out, interrupt, moments=True)
    original = backward._WalkBack.layer

    def counted(walk: Any, number: int) -> None:
        begun.append(number)
        original(walk, number)

    monkeypatch.setattr(backward._WalkBack, "layer", counted)
    write(written / "model", out, moments=True)
    assert begun == list(range(layer, -1, -1))
    assert out.read_bytes() == (written / "x.stats").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["x.stats"]


def test_files_without_gradients_are_read_as_before(written: Path, tmp_path: Path) -> None:
    run = StatisticsRun(reference(written / "model"), selection(), WalkSettings(moments=True))
    run.run(tmp_path / "older.stats")
    older, newer = open_statistics(tmp_path / "older.stats"), open_statistics(written / "x.stats")
    assert newer.has_fisher
    assert not older.has_fisher
    with pytest.raises(UsageError, match="--fisher"):
        older.fisher()
    for module in older.modules:
        ours, theirs = (s.of(module, moments=True) for s in (newer, older))
        np.testing.assert_array_equal(ours.squares, theirs.squares)
        assert ours.moments is not None
        assert theirs.moments is not None
        assert torch.equal(ours.moments, theirs.moments)
    fisher, facts = newer.fisher(), newer.facts["fisher"]
    assert facts["labels"] == "sampled"
    assert fisher.tokens == sum(facts["tokens"])
    assert facts["tokens"] == [64, 64, 64]  # cut to those asked for
    assert fisher.dropped == 0
    assert newer.row_shares().sum() == pytest.approx(1)
    assert bool((fisher.moments.diagonal() > 0).all())
    assert newer.gradients("layers.0.attn.q").shape == (256,)


def test_gradients_that_are_not_finite_count_as_zeros(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = backward._through

    def faulty(*given: Any) -> Any:
        at_states, at_outputs = original(*given)
        at_states[0, 0], at_states[1, 1], at_outputs[1, 2] = torch.nan, 1e30, torch.inf
        return at_states, at_outputs

    monkeypatch.setattr(backward, "_through", faulty)
    found = open_statistics(write(written / "model", tmp_path / "x.stats"))
    fisher = found.fisher()
    assert bool(fisher.moments.isfinite().all())
    assert fisher.dropped == 2 * 3  # the first two tokens of one batch of every language
    assert all(np.isfinite(found.gradients(m)).all() for m in ("head", "layers.2.ffn.down"))


def test_layers_that_read_more_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "model", OTHERS["gemma4_e2b"].config)
    with pytest.raises(Unsupported, match="--fisher"):
        BackPlan.of(reference(folder), selection(), WalkSettings(), 64)


def test_labels_are_drawn_from_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 3.0, -torch.inf]]).repeat(20_000, 1)
    draws = drawn(0, [4], [len(logits)])
    found = sampled(logits, torch.from_numpy(draws))
    shares = torch.bincount(found, minlength=4) / len(found)
    torch.testing.assert_close(shares, logits[0].softmax(0), rtol=0, atol=0.01)
    both = drawn(0, [9, 4], [5, len(logits)])
    np.testing.assert_array_equal(both[5:], draws)  # whatever else is in the batch
