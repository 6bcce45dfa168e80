"""Layer by layer, models of every kind compute what transformers' whole model does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.calib.whole_models import FAMILIES, by_hand, whole_model
from zenconvert.calib.statistics import InputStatistics
from zenconvert.calib.walk import WalkSettings, walk
from zenconvert.errors import InvalidInput, Unsupported
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.moe_modules import unify_experts
from zenconvert.reference.reference import Reference
from zenconvert.texts.coverage import language_coverage
from zenconvert.texts.selection import Selection
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.torch_engine import TorchEngine

LENGTHS = (3, 70, 24, 2, 47)
LANGUAGES = ("en", "fr", "en", "fr", "en")


def made_up() -> list[Window]:
    random = np.random.default_rng(3)
    return [
        Window(f"{n}", language, tuple(random.integers(0, 300, length).tolist()))
        for n, (length, language) in enumerate(zip(LENGTHS, LANGUAGES, strict=True))
    ]


def known(family: str) -> bool:
    from transformers import CONFIG_MAPPING

    return family in CONFIG_MAPPING


CASES = [
    pytest.param(family, marks=pytest.mark.skipif(not known(family), reason="not in this version"))
    for family in FAMILIES
]


@pytest.mark.parametrize("family", CASES)
def test_logits_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    model, windows = whole_model(family, tmp_path), made_up()
    engine = TorchEngine(
        by_hand(tmp_path), windows, device="cpu", progress=lambda done, total: None
    )
    for number, window in enumerate(windows):
        with torch.inference_mode():
            expected = model(torch.tensor([window.ids])).logits[0]
        assert len(window.ids) < 20 or expected.std() > 0.2
        found = engine.logits(number, 0, len(window.ids))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", CASES)
def test_statistics_are_those_of_hooks(family: str, tmp_path: Path) -> None:
    model, windows = whole_model(family, tmp_path), made_up()
    seen = hooked(model, windows)
    found: dict[str, InputStatistics] = {}
    reference = Reference(by_hand(tmp_path), logical_rows, device="cpu")
    coverage = [
        language_coverage(
            code, [[w] for w in windows if w.language == code], unused=0, cut=0, vocabulary=300
        )
        for code in ("en", "fr")
    ]
    chosen = Selection(tuple(windows), ("en", "fr"), (1.0, 1.0), tuple(coverage))
    for part in walk(reference, chosen, WalkSettings(moments=True)):
        found |= part.inputs
    for name, rows in seen.items():
        assert found[name].tokens.sum() == len(rows), name
        squares = found[name].squares.sum(0)
        np.testing.assert_allclose(squares, np.square(rows).sum(0), rtol=1e-3, atol=1e-6)
    linear = {name for name, item in found.items() if item.columns}
    assert linear == set(seen)


@pytest.mark.skipif(not known("gemma3_text"), reason="not in this version")
def test_the_text_model_of_a_nested_config_is_taken(tmp_path: Path) -> None:
    """Prefixes before the names of its layers do not matter."""
    model, window = whole_model("gemma3_text", tmp_path), made_up()[1]
    flat = by_hand(tmp_path)
    names = [
        replace(name, hf=name.hf.replace("model.", "language_model.model.", 1))
        for name in flat.architecture.tensor_names(flat.hyperparameters)
    ]
    nested = replace(
        flat,
        config={"model_type": "gemma3", "text_config": dict(flat.config), "vision_config": {}},
        architecture=cast(Any, SimpleNamespace(id="by hand", tensor_names=lambda hp: names)),
    )
    engine = TorchEngine(nested, [window], device="cpu", progress=lambda done, total: None)
    with torch.inference_mode():
        expected = model(torch.tensor([window.ids])).logits[0]
    found = engine.logits(0, 0, len(window.ids))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_experts_held_in_another_way_are_refused() -> None:
    class Strange(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = torch.nn.Parameter(torch.empty(3, 4, 5))
            self.act_fn = torch.nn.functional.silu

    layer = torch.nn.Module()
    layer.experts = Strange()
    with pytest.raises(Unsupported, match=r"here: transformers .*Strange.*up_proj.*\(3, 4, 5\)"):
        unify_experts(layer, "here")


@pytest.mark.parametrize(
    ("family", "missing"),
    [
        ("qwen3", "layers.1.self_attn.q_norm.weight"),
        ("gpt_oss", "layers.3.self_attn.sinks"),
        ("deepseek_v3", "layers.2.mlp.gate.e_score_correction_bias"),
        ("qwen3", "norm.weight"),
    ],
)
def test_tensors_that_are_not_there_are_named(family: str, missing: str, tmp_path: Path) -> None:
    """Parameters, buffers and what stands after the last layer; nothing is left at random."""
    if not known(family):
        pytest.skip("not in this version")
    whole_model(family, tmp_path)
    checkpoint = by_hand(tmp_path)
    tensors = {k: v for k, v in checkpoint.tensors.items() if k != missing}
    assert len(tensors) == len(checkpoint.tensors) - 1
    with pytest.raises(InvalidInput, match=f"missing keys.*{missing.rpartition('.')[2]}"):
        TorchEngine(
            replace(checkpoint, tensors=tensors), made_up(), device="cpu",
            progress=lambda done, total: None,
        )  # fmt: skip


def hooked(model: Any, windows: list[Window]) -> dict[str, NDArray[np.float64]]:
    """Neutral module name → rows that it reads in the whole model."""
    seen: dict[str, list[NDArray[np.float64]]] = {}

    def keep(name: str, values: torch.Tensor) -> None:
        flat = values.detach().reshape(-1, values.shape[-1]).double().numpy()
        seen.setdefault(name, []).append(flat)

    def keep_stack(name: str, experts: Any, args: Any, kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        count = len(experts.down_proj)
        states = given[0].reshape(-1, given[0].shape[-1])
        for number in range(count):
            if len(given) > 1:
                rows = states[(given[1] == number).any(-1)]
            else:
                rows = states.reshape(count, -1, states.shape[-1])[number]
                rows = rows[rows.any(-1)]
            if len(rows):
                keep(f"{name}.{number}.gate", rows)
                keep(f"{name}.{number}.up", rows)
                keep(f"{name}.{number}.down", inner(experts, number, rows))

    for path, module in model.named_modules():
        name = path.removeprefix("model.").replace("lm_head", "head")
        owner, _, last = name.rpartition(".")
        if last == "experts" and hasattr(module, "down_proj"):
            module.register_forward_pre_hook(
                lambda m, args, kwargs, name=owner: keep_stack(name, m, args, kwargs),
                with_kwargs=True,
            )
        elif isinstance(module, torch.nn.Linear) or hasattr(module, "top_k"):
            if not hasattr(module, "weight"):
                continue
            listed = name.split(".experts.")
            if len(listed) == 2:
                name = f"{listed[0]}.{listed[1].removesuffix('_proj')}"
            module.register_forward_pre_hook(lambda m, args, name=name: keep(name, args[0]))
    with torch.inference_mode():
        for window in windows:
            model(torch.tensor([window.ids]))
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def inner(experts: Any, number: int, rows: torch.Tensor) -> Any:
    """What an expert's ``down`` reads."""
    weight, turned = experts.gate_up_proj[number], experts.down_proj.shape[1] == rows.shape[-1]
    both = rows @ (weight.T if turned else weight)
    if hasattr(experts, "gate_up_proj_bias"):
        both = both + experts.gate_up_proj_bias[number]
        gate, up = both[:, ::2].clamp(max=7), both[:, 1::2].clamp(-7, 7)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    gate, up = both.chunk(2, dim=-1)
    return getattr(experts, "act_fn", torch.nn.functional.silu)(gate) * up
