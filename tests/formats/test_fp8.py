"""Folders of 8-bit floats with scales: decoded as transformers does, and what becomes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families import FAMILIES
from tests.fp8_folders import Tensors, change, make_fp8, stacked
from tests.packed_folders import assert_decodes
from tests.tiny import raw_model
from zenconvert import convert, inspect, open_checkpoint, plan, verify
from zenconvert.errors import PlanError, ZenError
from zenconvert.planning.recoding import logical_rows
from zenconvert.solve.calibration_texts import Calibrating

NAME = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read(family: str, tmp_path: Path) -> None:
    source = raw_model(tmp_path / "source", FAMILIES[family].config)
    assert_decodes(tmp_path / "fp8", make_fp8(source, tmp_path / "fp8"))


@pytest.mark.parametrize(
    "options",
    [
        {"block": (128, 128)},
        {"block": (96, 80)},  # the last blocks are short both ways
        {"block": (128, 128), "scale": torch.bfloat16},
        {"block": (64, 128), "powers": True, "scale": torch.float8_e8m0fnu},
        {"block": None, "suffix": "weight_scale"},
        {"block": None, "suffix": "weight_scale", "shape": (-1,)},
        {"block": None, "shape": ()},
        {"block": None, "shape": (1,), "suffix": "weight_scale"},
    ],
    ids=str,
)
def test_scales_of_every_kind(options: dict[str, Any], source: Path, tmp_path: Path) -> None:
    assert_decodes(tmp_path / "fp8", make_fp8(source, tmp_path / "fp8", **options))


@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_numbers_are_those_of_transformers(
    block: tuple[int, int], source: Path, tmp_path: Path
) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    make_fp8(source, tmp_path / "fp8", block)
    stored = load_file(tmp_path / "fp8" / "model.safetensors")
    tensor = open_checkpoint(tmp_path / "fp8").tensors["layers.1.ffn.down.weight"]
    theirs = Fp8Dequantize(None)._dequantize_one(
        stored[f"{NAME}.weight"], stored[f"{NAME}.weight_scale_inv"], torch.float32
    )
    np.testing.assert_array_equal(logical_rows(tensor, 0, tensor.rows), theirs.numpy())


def test_exponents_in_bytes_are_read(source: Path, tmp_path: Path) -> None:
    expected = make_fp8(source, tmp_path / "fp8", scale=torch.float8_e8m0fnu, powers=True)

    def as_bytes(stored: Tensors) -> None:
        for name in [n for n in stored if n.endswith("_scale_inv")]:
            stored[name] = stored[name].view(torch.uint8)

    assert_decodes(change(tmp_path / "fp8", as_bytes), expected)


@pytest.mark.parametrize("powers", [True, False])
@pytest.mark.parametrize("target", ["hf:bf16", "hf:f16", "hf:f32", "gguf:bf16", "gguf:f32"])
def test_widening_is_exact_where_the_numbers_are(
    target: str, powers: bool, source: Path, tmp_path: Path
) -> None:
    expected = make_fp8(source, tmp_path / "fp8", powers=powers)
    name = f"{NAME}.weight"
    steps = {s.source: s for s in plan(tmp_path / "fp8", target).steps}
    numbers = expected[name]
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    narrow = numbers.to(dtype[target.partition(":")[2]])
    step = steps[NAME]
    assert step.action == "decode"
    assert "fp8-e4m3-128x128" in step.as_dict()["from"]
    assert step.exact == bool((narrow.float() == numbers).all())
    out = tmp_path / "out.gguf" if target.startswith("gguf") else tmp_path / "out"
    convert(tmp_path / "fp8", out, target)
    tensor = open_checkpoint(out).tensors["layers.1.ffn.down.weight"]
    np.testing.assert_array_equal(logical_rows(tensor, 0, tensor.rows), narrow.float().numpy())


def test_what_is_written_is_no_quantized_model(source: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    expected = make_fp8(source, tmp_path / "fp8")
    convert(tmp_path / "fp8", tmp_path / "out", "hf:f32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("target", ["gptq:w4g128", "awq:w4g128", "gguf:q4_0", "onnx:int4"])
def test_quantizing_again_has_to_be_allowed(target: str, source: Path, tmp_path: Path) -> None:
    make_fp8(source, tmp_path / "fp8")
    with pytest.raises(PlanError, match="--allow-requantize"):
        plan(tmp_path / "fp8", target)
    assert not plan(tmp_path / "fp8", target, allow_requantize=True).exact


def test_inspect_names_it(source: Path, tmp_path: Path) -> None:
    make_fp8(source, tmp_path / "fp8")
    found = inspect(tmp_path / "fp8")
    assert found.format == "hf"
    assert found.encodings["fp8-e4m3-128x128"][0] == 14


def test_scales_of_activations_are_left_out_by_name(source: Path, tmp_path: Path) -> None:
    expected = make_fp8(source, tmp_path / "fp8", None, shape=())

    def add(stored: Tensors) -> None:
        stored[f"{NAME}.input_scale"] = torch.ones(())

    change(tmp_path / "fp8", add, activation_scheme="static")
    assert_decodes(tmp_path / "fp8", expected)
    assert any("activations" in text for text in open_checkpoint(tmp_path / "fp8").warnings)


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return raw_model(tmp_path / "source", FAMILIES["qwen3_moe"].config)


@pytest.mark.parametrize(
    "options", [{}, {"block": (64, 80)}, {"block": None, "shape": ()}], ids=str
)
def test_experts_in_one_array_a_layer_are_read(
    options: dict[str, Any], mixture: Path, tmp_path: Path
) -> None:
    expected = make_fp8(mixture, tmp_path / "fp8", **options)
    change(tmp_path / "fp8", stacked)
    names = load_file(tmp_path / "fp8" / "model.safetensors")
    assert "model.layers.1.mlp.experts.gate_up_proj_scale_inv" in names
    assert_decodes(tmp_path / "fp8", expected)


def one_less(stored: Tensors) -> None:
    stacked(stored)
    name = "model.layers.1.mlp.experts.down_proj_scale_inv"
    stored[name] = stored[name][1:]


def no_scales(stored: Tensors) -> None:
    stacked(stored)
    del stored["model.layers.1.mlp.experts.gate_up_proj_scale_inv"]


@pytest.mark.parametrize(
    ("damage", "block", "reason"),
    [
        (stacked, (96, 128), "gate_up_proj_scale_inv has a scale for every 96 rows"),
        (one_less, (128, 128), r"down_proj_scale_inv has shape \[5, "),
        (no_scales, (128, 128), "gate_up_proj_scale_inv is missing beside"),
    ],
)
def test_stacks_that_do_not_fit_their_scales_are_refused(
    damage: Callable[[Tensors], None],
    block: tuple[int, int],
    reason: str,
    mixture: Path,
    tmp_path: Path,
) -> None:
    make_fp8(mixture, tmp_path / "fp8", block)
    with pytest.raises(ZenError, match=reason):
        open_checkpoint(change(tmp_path / "fp8", damage))


SCALES = f"{NAME}.weight_scale_inv"


def setting(value: float) -> Callable[[Tensors], None]:
    def change_one(stored: Tensors) -> None:
        stored[SCALES][1, 1] = value

    return change_one


def cut(stored: Tensors) -> None:
    stored[SCALES] = stored[SCALES][:1]


def turned(stored: Tensors) -> None:
    stored[SCALES] = stored[SCALES].T


def integers(stored: Tensors) -> None:
    stored[SCALES] = stored[SCALES].int()


def doubled(stored: Tensors) -> None:
    stored[f"{NAME}.weight_scale"] = stored[SCALES].clone()


def without(stored: Tensors) -> None:
    del stored[SCALES]


def alone(stored: Tensors) -> None:
    del stored[f"{NAME}.weight"]


def of_floats(stored: Tensors) -> None:
    stored[f"{NAME}.weight"] = stored[f"{NAME}.weight"].bfloat16()


def of_a_norm(stored: Tensors) -> None:
    stored["model.norm.weight_scale_inv"] = torch.ones(1)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0, 1e-40])
def test_impossible_scales_are_refused(value: float, source: Path, tmp_path: Path) -> None:
    make_fp8(source, tmp_path / "fp8")
    change(tmp_path / "fp8", setting(value))
    with pytest.raises(ZenError, match=rf"{NAME}.*scale at \[1, 1\]"):
        plan(tmp_path / "fp8", "hf:bf16")


@pytest.mark.parametrize(
    "damage",
    [cut, turned, integers, doubled, without, alone, of_floats, of_a_norm],
    ids=lambda damage: damage.__name__,
)
def test_scales_that_do_not_fit_are_refused(
    damage: Callable[[Tensors], None], source: Path, tmp_path: Path
) -> None:
    make_fp8(source, tmp_path / "fp8")
    change(tmp_path / "fp8", damage)
    with pytest.raises(ZenError, match=r"down_proj|model\.norm"):
        open_checkpoint(tmp_path / "fp8")


@pytest.mark.parametrize("block", [[128], "128", [128, 0], [128, True], [128, 128, 1], {}])
def test_blocks_that_are_none(block: object, source: Path, tmp_path: Path) -> None:
    make_fp8(source, tmp_path / "fp8")
    with pytest.raises(ZenError, match="weight_block_size"):
        open_checkpoint(change(tmp_path / "fp8", weight_block_size=block))


@pytest.fixture
def widened(source: Path, tmp_path: Path) -> Path:
    """What torch decodes the folder ``fp8`` beside it to, in float32."""
    tensors = make_fp8(source, tmp_path / "fp8")
    shutil.copytree(source, tmp_path / "widened")
    save_file(tensors, tmp_path / "widened" / "model.safetensors")
    return tmp_path / "widened"


def test_statistics_and_solvers_see_its_decoded_numbers(widened: Path, tmp_path: Path) -> None:
    samples = Calibrating(languages=["en"], tokens_per_language=64, context=32)
    for folder in (widened, tmp_path / "fp8"):
        out = tmp_path / f"{folder.name}-gptq"
        convert(folder, out, "gptq:w4g128", calibrating=samples, allow_requantize=True)
    first, second = (
        load_file(tmp_path / f"{name}-gptq" / "model.safetensors") for name in ("widened", "fp8")
    )
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if tensor.dtype == torch.int32 or name.endswith(".scales"):
            assert torch.equal(tensor, second[name]), name


def test_it_is_the_reference_of_a_measurement(widened: Path, tmp_path: Path) -> None:
    convert(tmp_path / "fp8", tmp_path / "out.gguf", "gguf:f32")
    text = tmp_path / "text.txt"
    text.write_text("A short text. " * 20)
    found = verify(tmp_path / "fp8", tmp_path / "out.gguf", text=text, context=32).overall
    assert found.kl_max < 1e-9
    same = verify(widened, tmp_path / "out.gguf", text=text, context=32).overall
    assert same.reference_perplexity == found.reference_perplexity
