"""Keys and values that are made of one short row of numbers: two tensors in GGUF, one elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.differential import runs
from tests.families import FAMILIES
from tests.fp8_folders import make_fp8
from tests.oracles.llama_quantize import quantize
from tests.test_llamacpp_parity import assert_same_file
from tests.test_solving import SAMPLES
from zenconvert import calibrate, convert, open_checkpoint, plan
from zenconvert.errors import InputWarning, PlanError
from zenconvert.formats.gguf import mixtures
from zenconvert.formats.gguf.imatrix import ImatrixEntry, Sums, Texts, write_imatrix
from zenconvert.planning.recoding import logical_rows
from zenconvert.solve.importance import load_importance
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.torch_engine import TorchEngine

Made = Callable[[str], Path]
NAME = "deepseek_v3"
CONFIG = FAMILIES[NAME].config
HEADS, RANK = CONFIG["num_attention_heads"], CONFIG["kv_lora_rank"]
KEYS, VALUES = CONFIG["qk_nope_head_dim"], CONFIG["v_head_dim"]
KV_B = "model.layers.1.self_attn.kv_b_proj.weight"


def halves(file: Path) -> dict[str, NDArray[np.float32]]:
    """Both tensors of a layer, as gguf decodes them."""
    return {
        t.name.split(".")[2]: dequantize(t.data, t.tensor_type)
        for t in GGUFReader(file).tensors
        if t.name in ("blk.1.attn_k_b.weight", "blk.1.attn_v_b.weight")
    }


def together(found: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The matrix that they are of."""
    keys = found["attn_k_b"].reshape(HEADS, RANK, KEYS).transpose(0, 2, 1)
    values = found["attn_v_b"].reshape(HEADS, VALUES, RANK)
    return np.concatenate([keys, values], axis=1).reshape(-1, RANK)


@pytest.fixture(scope="module")
def packed(folder: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in four bits, as GPTQ folders have them."""
    out = tmp_path_factory.mktemp("packed") / "gptq"
    convert(folder(NAME), out, "gptq:w4g32")
    return out


@pytest.fixture(scope="module")
def blocks(folder: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in K-quants: rows of its keys are too short for them."""
    out = tmp_path_factory.mktemp("blocks") / "q4_k_m.gguf"
    convert(folder(NAME), out, "gguf:q4_k_m")
    return out


def test_both_tensors_of_a_quantized_file_become_one(blocks: Path, tmp_path: Path) -> None:
    types = {t.name: t.tensor_type.name for t in GGUFReader(blocks).tensors}
    assert types["blk.1.attn_k_b.weight"] != types["blk.1.attn_v_b.weight"]
    convert(blocks, tmp_path / "hf", "hf:f32")
    expected = together(halves(blocks))
    np.testing.assert_array_equal(load_file(tmp_path / "hf" / "model.safetensors")[KV_B], expected)
    tensor = open_checkpoint(blocks).tensors["layers.1.attn.kv_b.weight"]
    np.testing.assert_array_equal(logical_rows(tensor, 71, 333), expected[71:333])
    with pytest.raises(PlanError, match="second time"):
        plan(blocks, "gptq:w4g32")


@pytest.mark.parametrize("file_type", ["q4_k_m", "q8_0"])
def test_files_from_files_are_the_quantizers(
    file_type: str, blocks: Path, folder: Made, tmp_path: Path
) -> None:
    convert(folder(NAME), tmp_path / "bf16.gguf", "gguf:bf16")
    convert(tmp_path / "bf16.gguf", tmp_path / "ours.gguf", f"gguf:{file_type}")
    number = mixtures.FILE_TYPES[file_type]
    quantize(tmp_path / "bf16.gguf", tmp_path / "theirs.gguf", number)
    ours, theirs = (tmp_path / f"{name}.gguf" for name in ("ours", "theirs"))
    assert_same_file(ours, theirs)
    if file_type == "q4_k_m":
        convert(blocks, tmp_path / "again.gguf", "gguf:q4_k_m")
        assert (tmp_path / "again.gguf").read_bytes() == blocks.read_bytes()


def test_values_in_four_bits_keep_their_codes_and_keys_are_decoded(
    packed: Path, tmp_path: Path
) -> None:
    convert(packed, tmp_path / "hf", "hf:f32")
    convert(packed, tmp_path / "f32.gguf", "gguf:f32")
    whole = load_file(tmp_path / "hf" / "model.safetensors")[KV_B]
    np.testing.assert_array_equal(together(halves(tmp_path / "f32.gguf")), whole)
    done = convert(packed, tmp_path / "q4_0.gguf", "gguf:q4_0", allow_requantize=True)
    exact = {step.target: step.exact for step in done.plan.steps}
    assert exact["blk.1.attn_v_b.weight"]
    assert not exact["blk.1.attn_k_b.weight"]
    found = halves(tmp_path / "q4_0.gguf")["attn_v_b"].reshape(HEADS, VALUES, RANK)
    expected = whole.reshape(HEADS, KEYS + VALUES, RANK)[:, KEYS:]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("powers", [True, False])
def test_scales_of_tiles_are_those_of_rows_and_columns(
    powers: bool, folder: Made, tmp_path: Path
) -> None:
    """Tiles of 128 rows, and heads of 160."""
    stored = make_fp8(folder(NAME), tmp_path / "fp8", (128, 128), powers=powers)
    convert(tmp_path / "fp8", tmp_path / "f32.gguf", "gguf:f32")
    np.testing.assert_array_equal(together(halves(tmp_path / "f32.gguf")), stored[KV_B])
    steps = {s.target: s for s in plan(tmp_path / "fp8", "gguf:bf16").steps}
    assert steps["blk.1.attn_k_b.weight"].exact == powers
    assert steps["blk.1.attn_v_b.weight"].exact == powers


def changed(source: Path, out: Path, **values: Any) -> Path:
    """The folder with another config."""
    shutil.copytree(source, out)
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **values}))
    return out


def test_groups_that_llamacpp_does_not_take_are_refused(folder: Made, tmp_path: Path) -> None:
    for number, groups in enumerate(({"topk_group": 4}, {"n_group": 8, "topk_group": 4})):
        source = changed(folder(NAME), tmp_path / str(number), **groups)
        with pytest.raises(PlanError, match="n_group"):
            plan(source, "gguf:f32")
        plan(source, "gptq:w4g32")


def test_what_llamacpp_takes_otherwise_is_lost_by_name(folder: Made, tmp_path: Path) -> None:
    scaling = {**CONFIG["rope_scaling"], "mscale": 0.5}
    source = changed(folder(NAME), tmp_path / "a", rope_scaling=scaling, rms_norm_eps=1e-5)
    lost = {fact.name for fact in plan(source, "gguf:f32").lost}
    assert lost == {"rope_scaling.mscale", "rms_norm_eps"}


def test_an_unrotated_half_alone_is_refused(folder: Made, tmp_path: Path) -> None:
    source = changed(folder(NAME), tmp_path / "a", rope_interleave=False)
    with pytest.raises(PlanError, match="rope_interleave"):
        plan(source, "gguf:f32")


def test_kimi_is_the_same_by_another_name(folder: Made, tmp_path: Path) -> None:
    """Its experts are in one group, and transformers knows the type from code of its own alone."""
    groups = {"n_group": 1, "topk_group": 1}
    ids = runs.ids(24, 5)
    expected = changed(folder(NAME), tmp_path / "theirs", **groups)
    kimi = changed(folder(NAME), tmp_path / "kimi", model_type="kimi_k2", **groups)
    window = [Window("a", "en", tuple(ids))]
    engine = TorchEngine(open_checkpoint(kimi), window, device="cpu", progress=lambda *_: None)
    logits = runs.in_transformers(expected, ids)
    np.testing.assert_allclose(engine.logits(0, 0, len(ids)), logits, atol=1e-4, rtol=0)
    convert(kimi, tmp_path / "kimi.gguf", "gguf:f32")
    gap = np.abs(runs.in_llamacpp(tmp_path / "kimi.gguf", ids) - logits).max() / logits.std()
    assert gap < 1e-3, gap


@pytest.fixture(scope="module")
def measured(folder: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Statistics of the model, and its importance matrix."""
    place = tmp_path_factory.mktemp("statistics")
    out, imatrix = place / "model.stats", place / "imatrix.gguf"
    calibrate(folder(NAME), out, purposes=["gptq"], imatrix=imatrix, **SAMPLES)
    return out, imatrix


def test_a_solver_leaves_the_halves_to_rounding(
    measured: tuple[Path, Path], folder: Made, blocks: Path, tmp_path: Path
) -> None:
    """Keys lie turned in the file: what was chosen for their rows would be rounded again."""
    solved = convert(
        folder(NAME), tmp_path / "solved.gguf", "gguf:q4_k_m", statistics=measured[0],
        solver="gptq",
    )  # fmt: skip
    names = {name.split(".")[-2] for name in solved.modules}
    assert "kv_b" not in names
    assert {"q_a", "q_b", "kv_a", "o"} <= names
    plainly = halves(blocks)
    for name, values in halves(tmp_path / "solved.gguf").items():
        np.testing.assert_array_equal(values, plainly[name])
    packed = convert(
        folder(NAME), tmp_path / "gptq", "gptq:w4g32", statistics=measured[0], solver="gptq"
    )
    assert "layers.1.attn.kv_b.weight" in packed.modules


def test_weights_that_differ_by_head_are_neither_written_nor_read(
    measured: tuple[Path, Path], folder: Made, tmp_path: Path
) -> None:
    names = {t.name for t in GGUFReader(measured[1]).tensors}
    assert "blk.1.attn_q_b.weight.in_sum2" in names
    assert not [name for name in names if "attn_k_b" in name or "attn_v_b" in name]
    sums = Sums(np.ones((HEADS, RANK), np.float32), np.full(HEADS, 9))
    theirs = ImatrixEntry("blk.1.attn_v_b.weight", HEADS, RANK, lambda: {"": sums})
    sums_q = Sums(np.ones((1, 256), np.float32), np.full(1, 9))
    of_q = ImatrixEntry("blk.1.attn_q_b.weight", 1, 256, lambda: {"": sums_q})
    with (tmp_path / "theirs.gguf").open("wb") as file:
        write_imatrix(file, [theirs, of_q], [], Texts(["a"], 1, 64))
    with pytest.warns(InputWarning, match=r"heads have weights of their own.*attn_v_b"):
        found = load_importance(tmp_path / "theirs.gguf", open_checkpoint(folder(NAME)))
    assert list(found) == ["layers.1.attn.q_b.weight"]
