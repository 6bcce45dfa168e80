"""The noise floor is what the serving type does to the reference, and covers what is inside."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.verification.conftest import SOURCE, Gguf, Verified
from zenconvert import open_checkpoint, verify
from zenconvert.models import builtin_path
from zenconvert.texts.windows import Window
from zenconvert.verification.noise import noise_scores, serving_dtype
from zenconvert.verification.states import reference_states

FOLDER = builtin_path("zen-nano")


def nothing(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_floor_is_that_of_the_whole_model_in_that_type(dtype: str) -> None:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 8000, (150,), generator=random)
    windows = [Window("s", "und", tuple(ids.tolist()))]
    checkpoint = open_checkpoint(FOLDER)
    states = reference_states(checkpoint, windows, "floor", device="cpu", progress=nothing)
    measured, (scores,) = noise_scores(
        checkpoint, states, windows, "floor", dtype, device="cpu", progress=nothing
    )
    logits = []
    for kind in (torch.float32, getattr(torch, dtype)):
        model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=kind).eval()
        with torch.inference_mode():
            logits.append(model(ids[None]).logits[0, :-1].double().log_softmax(1))
    exact = (logits[0].exp() * (logits[0] - logits[1])).sum(1)
    assert measured == dtype
    assert scores.kl.mean() == pytest.approx(exact.mean().item(), rel=0.15)
    expected = {"bfloat16": (1e-4, 2e-3), "float16": (1e-6, 3e-5)}[dtype]
    assert expected[0] < scores.kl.mean() < expected[1]


def test_artifacts_are_served_in_the_type_of_their_format_or_config(gguf: Gguf) -> None:
    hf = open_checkpoint(SOURCE)
    assert serving_dtype(open_checkpoint(gguf(SOURCE, "q8_0"))) == "float16"
    assert serving_dtype(hf) == "bfloat16"
    half = replace(hf, config={**hf.config, "torch_dtype": "float16"})
    assert serving_dtype(half) == "float16"
    assert serving_dtype(replace(hf, config={**hf.config, "dtype": "float32"})) == "bfloat16"


def test_a_model_that_overflows_float16_is_measured_in_bfloat16(
    short: Path, tmp_path: Path
) -> None:
    """The up projection of one layer is scaled, its down projection scaled back."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "large"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] *= 2.0**18
    tensors["model.layers.2.mlp.down_proj.weight"] *= 2.0**-18
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    for _ in range(2):  # the second time from the cache
        report = verify(folder, folder, text=short)
        assert (report.noise.dtype, report.noise.overflows) == ("bfloat16", True)
        assert 0 < report.noise.summary.overall.kl_mean < 0.05
        assert report.as_dict()["noise_floor"]["overflows"]


def test_differences_inside_the_floor_are_told(verified: Verified) -> None:
    exact, lossy = verified("f32", "torch"), verified("q4_k_m", "torch")
    assert exact.as_dict()["within_noise"] == {
        "overall": True,
        "languages": {"de": True, "en": True},
    }
    assert lossy.as_dict()["within_noise"] == {
        "overall": False,
        "languages": {"de": False, "en": False},
    }
    noise, drift = lossy.noise, lossy.overall
    floor = noise.summary.overall.kl_mean
    for high, inside in ((floor, True), (floor * 1.01, False)):
        near = replace(
            drift,
            figures={**drift.figures, "kl.mean": floor / 2},
            intervals={**drift.intervals, "kl.mean": (0.0, high)},
        )
        assert noise.covers(near) is inside
