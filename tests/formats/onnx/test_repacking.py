"""Grids of GPTQ, AWQ and GGUF in graphs, and back: bit for bit, and computed as planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from tests.onnx_runs import decoded_logits, onnx_logits, session, tokens, with_tokenizer
from tests.tiny import raw_model
from zenconvert import Options, convert, open_checkpoint, plan
from zenconvert.errors import PlanError
from zenconvert.formats.gguf import container
from zenconvert.planning.recoding import logical_rows
from zenconvert.solve.calibration_texts import Calibrating

Model = Callable[[str], Path]
GRIDS = (
    "gptq:w4g128",
    "gptq:w4g32-asym",
    "gptq:w8g128",
    "gptq:w2g64-asym",
    "awq:w4g64",
    "awq:w4g128-sym",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Family → folder of a random model in f16, with a tokenizer."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("models") / family
            made[family] = with_tokenizer(folder, family, dtype="f16", torch_dtype="float16")
        return made[family]

    return get


def weights_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_file(folder / "model.safetensors")
    return found


def assert_same_arrays(first: Path, second: Path) -> None:
    """All arrays are the same; floats may be wider in the second."""
    ours, theirs = weights_of(first), weights_of(second)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        if values.dtype != theirs[name].dtype:
            assert theirs[name].dtype == np.float32, name
            values = values.astype(np.float32)
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def assert_same_numbers(first: Path, second: Path) -> None:
    """Decoded weights are the same, bit for bit."""
    ours, theirs = open_checkpoint(first), open_checkpoint(second)
    assert set(ours.tensors) == set(theirs.tensors)
    for name, tensor in ours.tensors.items():
        found = logical_rows(theirs.tensors[name], 0, tensor.rows)
        np.testing.assert_array_equal(logical_rows(tensor, 0, tensor.rows), found, err_msg=name)


def in_act_order(folder: Path) -> Path:
    """Shuffle the groups of every module of a GPTQ folder; modules of one input share an order."""
    tensors = weights_of(folder)
    random, orders = np.random.default_rng(0), dict[str, Any]()
    for name in [n for n in tensors if n.endswith(".g_idx")]:
        shared = name
        for other, first in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
            shared = shared.replace(other, first)
        order = orders.setdefault(shared, random.permutation(len(tensors[name])))
        tensors[name] = tensors[name][order]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in ("config.json", "quantize_config.json"):
        table = json.loads((folder / file).read_text())
        table.get("quantization_config", table)["desc_act"] = True
        (folder / file).write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize("kind", ["onnx:own-acc0", "onnx:int8-standard-acc0"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_gptq_and_awq_survive_a_graph(
    family: str, grid: str, kind: str, model: Model, tmp_path: Path
) -> None:
    convert(model(family), tmp_path / "source", grid)
    done = convert(tmp_path / "source", tmp_path / "onnx", kind)
    assert done.plan.exact
    assert_same_numbers(tmp_path / "source", tmp_path / "onnx")
    if kind == "onnx:own-acc0":
        back = convert(tmp_path / "onnx", tmp_path / "back", grid.partition(":")[0])
        assert back.plan.exact
        assert_same_arrays(tmp_path / "source", tmp_path / "back")


def test_rounded_activations_are_named(model: Model, tmp_path: Path) -> None:
    """At accuracy level 4 logits are not those of the weights, though every weight is exact."""
    convert(model("qwen2"), tmp_path / "source", "gptq:w4g128")
    expected = decoded_logits(tmp_path / "source", tmp_path / "hf", tokens())
    for kind in ("own", "own-acc0", "own-standard", "own-standard-acc0"):
        done = convert(tmp_path / "source", tmp_path / kind, f"onnx:{kind}")
        found = onnx_logits(session(tmp_path / kind / "model.onnx"), tokens())
        assert all(step.exact for step in done.plan.steps)
        assert done.plan.exact == (np.abs(found - expected).max() < 1e-4) == kind.endswith("-acc0")
    with pytest.raises(PlanError, match=r"accuracy_level is 4: .* -acc0"):
        plan(tmp_path / "source", "onnx", exact=True)


def test_three_bits_become_four(model: Model, tmp_path: Path) -> None:
    convert(model("qwen2"), tmp_path / "source", "gptq:w3g128")
    done = convert(tmp_path / "source", tmp_path / "onnx", "onnx:own-acc0")
    assert done.plan.exact
    assert_same_numbers(tmp_path / "source", tmp_path / "onnx")
    encodings = {str(t.encoding) for t in open_checkpoint(tmp_path / "onnx").tensors.values()}
    assert encodings == {"f32", "w4g128"}


@pytest.mark.parametrize("kind", ["onnx:int4-acc0", "onnx:int4-standard-acc0"])
def test_act_order_is_one_shared_permutation(kind: str, model: Model, tmp_path: Path) -> None:
    convert(model("qwen2"), tmp_path / "source", "gptq:w4g64-asym")
    in_act_order(tmp_path / "source")
    done = convert(tmp_path / "source", tmp_path / "onnx", kind)
    assert done.plan.exact
    graph = onnx.load(str(tmp_path / "onnx" / "model.onnx"), load_external_data=False)
    permuted = [
        n for n in graph.graph.node if n.op_type == "Gather" and n.input[1].endswith("input_order")
    ]
    assert len(permuted) == 2 * 4  # before q, k and v; o; gate and up; down
    assert not any(len(n.input) > 4 for n in graph.graph.node if n.op_type == "MatMulNBits")
    assert_same_numbers(tmp_path / "source", tmp_path / "onnx")
    found = onnx_logits(session(tmp_path / "onnx" / "model.onnx"), tokens())
    expected = decoded_logits(tmp_path / "onnx", tmp_path / "hf", tokens())
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    convert(tmp_path / "onnx", tmp_path / "back", "gptq")
    assert_same_arrays(tmp_path / "source", tmp_path / "back")


def test_groups_that_are_no_power_of_two_split_exactly(tmp_path: Path) -> None:
    raw_model(
        tmp_path / "model", "llama3", hidden_size=192, head_dim=48, intermediate_size=384,
        dtype="f16",
    )  # fmt: skip
    convert(tmp_path / "model", tmp_path / "source", "gptq:w4g96-asym")
    in_act_order(tmp_path / "source")
    for kind in ("onnx:own-acc0", "onnx:int4-standard-acc0"):
        out = tmp_path / kind.replace(":", "-")
        assert convert(tmp_path / "source", out, kind).plan.exact
        assert_same_numbers(tmp_path / "source", out)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
@pytest.mark.parametrize("family", ["builtin:zen-nano", "llama3", "mixtral"])
def test_gguf_survives_a_graph(family: str, kind: str, model: Model, tmp_path: Path) -> None:
    source = family if ":" in family else model(family)
    pure = Options(pure=True)
    convert(source, tmp_path / "first.gguf", f"gguf:{kind}", options=pure)
    done = convert(tmp_path / "first.gguf", tmp_path / "onnx", "onnx:own-acc0")
    assert done.plan.exact
    assert_same_numbers(tmp_path / "first.gguf", tmp_path / "onnx")
    back = convert(tmp_path / "onnx", tmp_path / "second.gguf", f"gguf:{kind}", options=pure)
    assert back.plan.exact
    first, second = (container.read(tmp_path / f"{n}.gguf") for n in ("first", "second"))
    ours, theirs = (file.path.read_bytes() for file in (first, second))
    for name, info in first.tensors.items():
        other = second.tensors[name]
        assert (info.type_id, info.shape) == (other.type_id, other.shape), name
        here = ours[info.offset : info.offset + info.nbytes]
        assert here == theirs[other.offset : other.offset + other.nbytes], name


MIXTURES = ("q4_k_m", "q2_k", "q3_k_s", "q4_1", "q5_0", "q5_1", "iq4_nl", "iq4_xs", "mxfp4_moe")


@pytest.mark.parametrize("file_type", MIXTURES)
def test_every_integer_type_of_gguf_is_exact(file_type: str, model: Model, tmp_path: Path) -> None:
    """Types with a minimum too: the graph adds it as a product with sums of activations."""
    family = "mixtral" if file_type in {"q4_k_m", "q2_k", "mxfp4_moe"} else "llama3"
    convert(model(family), tmp_path / "source.gguf", f"gguf:{file_type}")
    for kind in ("own-acc0", "own-standard-acc0"):
        done = convert(tmp_path / "source.gguf", tmp_path / kind, f"onnx:{kind}")
        assert done.plan.exact
        graph = tmp_path / kind / "model.onnx"
        onnx.checker.check_model(str(graph), full_check=True)
        assert_same_numbers(tmp_path / "source.gguf", tmp_path / kind)
        found = onnx_logits(session(graph), tokens())
        if kind == "own-acc0":
            expected = decoded_logits(tmp_path / kind, tmp_path / "hf", tokens())
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_the_embedding_of_a_mixture_keeps_its_grid(model: Model, tmp_path: Path) -> None:
    """Tied and with minimums: one table serves the lookup and the head."""
    source = with_tokenizer(tmp_path / "tied", "qwen2", tie_word_embeddings=True)
    convert(source, tmp_path / "source.gguf", "gguf:q4_1", options=Options(pure=True))
    for kind in ("own-acc0", "int8-standard-acc0"):
        assert convert(tmp_path / "source.gguf", tmp_path / kind, f"onnx:{kind}").plan.exact
        assert_same_numbers(tmp_path / "source.gguf", tmp_path / kind)
        graph = tmp_path / kind / "model.onnx"
        found = onnx_logits(session(graph), tokens())
        if kind == "own-acc0":
            expected = decoded_logits(tmp_path / kind, tmp_path / "hf", tokens())
            encoding = open_checkpoint(tmp_path / kind).tensors["embed.weight"].encoding
            assert str(encoding) == "w4g32-min"
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_minimums_go_back_to_gguf(model: Model, tmp_path: Path) -> None:
    pure = Options(pure=True)
    convert(model("qwen2"), tmp_path / "first.gguf", "gguf:q4_1", options=pure)
    convert(tmp_path / "first.gguf", tmp_path / "onnx", "onnx")
    back = convert(tmp_path / "onnx", tmp_path / "second.gguf", "gguf:q4_1", options=pure)
    assert back.plan.exact
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()


def test_minimums_are_quantized_again_when_a_grid_is_named(model: Model, tmp_path: Path) -> None:
    convert(model("qwen2"), tmp_path / "source.gguf", "gguf:q4_k_s")
    with pytest.raises(PlanError, match="it is no grid without minimums"):
        convert(tmp_path / "source.gguf", tmp_path / "out", "onnx:int4-asym")
    convert(tmp_path / "source.gguf", tmp_path / "out", "onnx:int4-asym", allow_requantize=True)


def test_plain_int4_is_the_grid_of_q4_0(model: Model, tmp_path: Path) -> None:
    convert(model("qwen2"), tmp_path / "onnx", "onnx:int4")
    back = convert(tmp_path / "onnx", tmp_path / "back.gguf", "gguf:q4_0")
    steps = {s.target: s for s in back.plan.steps}
    assert steps["blk.0.ffn_down.weight"].exact
    assert steps["blk.0.ffn_down.weight"].action == "repack"


def test_a_second_quantization_needs_leave(model: Model, tmp_path: Path) -> None:
    convert(model("qwen2"), tmp_path / "source", "gptq:w8g128")
    with pytest.raises(PlanError, match="its codes have 8 bits"):
        convert(tmp_path / "source", tmp_path / "out", "onnx:int4")
    convert(tmp_path / "source", tmp_path / "out", "onnx:int4", allow_requantize=True)


def test_scales_that_half_precision_cannot_hold_round_within_their_bound(
    model: Model, tmp_path: Path
) -> None:
    """Scales of f32, as other quantizers write them."""
    convert(model("qwen2"), tmp_path / "onnx", "onnx:int4")
    checkpoint = open_checkpoint(tmp_path / "onnx")
    stored = checkpoint.tensors["layers.0.ffn.down.weight"].stored
    place = stored.pieces["scales"]  # type: ignore[union-attr]
    with place.path.open("r+b") as file:
        file.seek(place.offset)
        file.write(np.float32(0.012345678).tobytes())
    with pytest.raises(PlanError, match="scales are f32 and round to f16"):
        convert(tmp_path / "onnx", tmp_path / "gptq", "gptq", exact=True)
    done = convert(tmp_path / "onnx", tmp_path / "gptq", "gptq")
    lossy = [s for s in done.plan.steps if not s.exact]
    assert [s.target for s in lossy] == ["model.layers.0.mlp.down_proj.weight"]
    ours, theirs = open_checkpoint(tmp_path / "onnx"), open_checkpoint(tmp_path / "gptq")
    for name, tensor in ours.tensors.items():
        first = logical_rows(tensor, 0, tensor.rows)
        second = logical_rows(theirs.tensors[name], 0, tensor.rows)
        np.testing.assert_allclose(second, first, rtol=2**-11, atol=0)


@pytest.mark.parametrize("solver", ["gptq", "awq"])
def test_a_solved_grid_is_that_of_the_solver_s_own_format(
    solver: Literal["gptq", "awq"], model: Model, tmp_path: Path
) -> None:
    learnt = Calibrating(languages=["en", "ar"], tokens_per_language=300, context=64)
    own = f"{solver}:w4g32"
    convert(model("llama3"), tmp_path / "own", own, calibrating=learnt)
    target = {"gptq": "onnx:int4", "awq": "onnx:int4-asym"}[solver]
    out = tmp_path / "onnx"
    done = convert(model("llama3"), out, target, calibrating=learnt, solver=solver)
    assert len(done.modules) == 14
    assert {report.method for report in done.modules.values()} == {solver}
    assert_same_numbers(tmp_path / "own", out)
