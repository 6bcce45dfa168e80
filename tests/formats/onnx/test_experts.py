"""Layers of experts in one operator: where it is used, what it computes, and the way back."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.formats.onnx.test_repacking import assert_same_arrays, assert_same_numbers, in_act_order
from tests.onnx_runs import (
    decoded_logits,
    genai_tokens,
    onnx_logits,
    session,
    tokens,
    transformers_tokens,
    variant,
    with_tokenizer,
)
from zenconvert import Options, convert, open_checkpoint
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    MissingTensor,
    UnexpectedTensor,
    Unsupported,
    ZenError,
)

Edit = Callable[[Any], None]
MODEL = "model.onnx"


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in f16, with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "mixtral"
    return with_tokenizer(folder, "mixtral", dtype="f16", torch_dtype="float16")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with zero points whose layers are one operator each."""
    folder = tmp_path_factory.mktemp("good")
    convert(variant(folder / "source", "mixtral"), folder / "out", "onnx:int4-asym")
    return folder / "out"


def load(folder: Path) -> Any:
    return onnx.load(str(folder / MODEL), load_external_data=False)


def layers_in_one(folder: Path) -> list[int]:
    """The layers whose experts are one operator, in a graph that the checker accepts."""
    onnx.checker.check_model(str(folder / MODEL), full_check=True)
    names = [n.name for n in load(folder).graph.node if n.op_type == "QMoE"]
    return [int(name.split("/")[2].removeprefix("layers.")) for name in names]


def assert_computes_its_own_weights(folder: Path, work: Path, atol: float = 1e-5) -> None:
    """A prefill and four steps with the cache, against the decoded weights in transformers."""
    found = onnx_logits(session(folder / MODEL, level=0), tokens())
    expected = decoded_logits(folder, work, tokens())
    assert float(np.abs(expected).max()) > 1
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["mixtral", "mixtral, three of five experts", "qwen2 moe"])
@pytest.mark.parametrize("kind", ["int4-acc0", "int4-asym-acc0", "int4-g256-acc0"])
def test_four_bits_are_one_operator_per_layer(name: str, kind: str, tmp_path: Path) -> None:
    convert(variant(tmp_path / "source", name), tmp_path / "out", f"onnx:{kind}")
    assert layers_in_one(tmp_path / "out") == [0, 1]
    assert_computes_its_own_weights(tmp_path / "out", tmp_path / "hf")


def test_half_precision_is_as_good_as_elsewhere(tmp_path: Path) -> None:
    source = variant(tmp_path / "source", "mixtral, three of five experts")
    convert(source, tmp_path / "out", "onnx:int4-f16-acc0")
    assert layers_in_one(tmp_path / "out") == [0, 1]
    assert_computes_its_own_weights(tmp_path / "out", tmp_path / "hf", atol=1e-2)


@pytest.mark.parametrize("kind", ["int8", "int2", "f16", "int4-standard"])
def test_what_the_operator_does_not_compute_rightly_has_a_graph(
    kind: str, mixtral: Path, tmp_path: Path
) -> None:
    convert(mixtral, tmp_path / "out", f"onnx:{kind}")
    assert layers_in_one(tmp_path / "out") == []


MIXED: dict[str, tuple[tuple[str, str], list[int]]] = {
    "one expert in 8 bits": ((r"layers\.1\..*experts\.3\.w1", "int8"), [0]),
    "one expert in f16": ((r"layers\.0\..*experts\.0\.w2", "f16"), [1]),
    "one expert with zeros": ((r"layers\.0\..*experts\.2\.w3", "int4-asym"), [1]),
    "other blocks in down": ((r"experts\..\.w2", "int4-g64"), []),
    "zeros in down alone": ((r"experts\..\.w2", "int4-asym"), [0, 1]),
    "zeros in gate and up alone": ((r"experts\..\.w[13]", "int4-asym"), [0, 1]),
    "the router in 8 bits": ((r"block_sparse_moe\.gate", "int8"), [0, 1]),
}


@pytest.mark.parametrize("name", MIXED)
def test_layers_of_several_grids_have_a_graph(name: str, tmp_path: Path) -> None:
    asked, expected = MIXED[name]
    options = Options(tensor_types=(asked,))
    source = variant(tmp_path / "source", "mixtral")
    convert(source, tmp_path / "out", "onnx:int4-acc0", options=options)
    assert layers_in_one(tmp_path / "out") == expected
    if "8 bits" not in name:  # whose products have integer activations at every level
        assert_computes_its_own_weights(tmp_path / "out", tmp_path / "hf")
    convert(tmp_path / "out", tmp_path / "again", "onnx:own-acc0")
    assert layers_in_one(tmp_path / "again") == expected
    assert_same_numbers(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize(
    "target", ["gptq:w4g128", "gptq:w4g32-asym", "awq:w4g64", "awq:w4g128-sym"]
)
def test_grids_of_gptq_and_awq_survive(target: str, mixtral: Path, tmp_path: Path) -> None:
    convert(mixtral, tmp_path / "source", target)
    assert convert(tmp_path / "source", tmp_path / "onnx", "onnx:own-acc0").plan.exact
    assert layers_in_one(tmp_path / "onnx") == [0, 1]
    assert_same_numbers(tmp_path / "source", tmp_path / "onnx")
    assert convert(tmp_path / "onnx", tmp_path / "back", target.partition(":")[0]).plan.exact
    assert_same_arrays(tmp_path / "source", tmp_path / "back")
    assert_computes_its_own_weights(tmp_path / "onnx", tmp_path / "hf")
    assert_same_numbers(tmp_path / "source", tmp_path / "hf")


def test_the_grid_of_gguf_survives(mixtral: Path, tmp_path: Path) -> None:
    """That all bytes come back is asserted for every family in ``test_repacking``."""
    convert(mixtral, tmp_path / "source.gguf", "gguf:q4_0", options=Options(pure=True))
    assert convert(tmp_path / "source.gguf", tmp_path / "onnx", "onnx:own-acc0").plan.exact
    assert layers_in_one(tmp_path / "onnx") == [0, 1]
    assert_same_numbers(tmp_path / "source.gguf", tmp_path / "onnx")


def test_act_order_and_minimums_have_a_graph(mixtral: Path, tmp_path: Path) -> None:
    convert(mixtral, tmp_path / "gptq", "gptq:w4g64")
    in_act_order(tmp_path / "gptq")
    convert(mixtral, tmp_path / "source.gguf", "gguf:q4_1", options=Options(pure=True))
    for source in ("gptq", "source.gguf"):
        out = tmp_path / f"onnx-{source}"
        assert convert(tmp_path / source, out, "onnx:own-acc0").plan.exact
        assert layers_in_one(out) == []
        assert_same_numbers(tmp_path / source, out)


def test_genai_generates_what_transformers_does(mixtral: Path, tmp_path: Path) -> None:
    convert(mixtral, tmp_path / "out", "onnx:int4-asym-acc0")
    assert layers_in_one(tmp_path / "out") == [0, 1]
    convert(tmp_path / "out", tmp_path / "hf", "hf:f32")
    prompt = tokens(1, 20)[0].tolist()
    expected = transformers_tokens(tmp_path / "hf", prompt, 12)
    assert genai_tokens(tmp_path / "out", prompt, 12) == expected


def test_stacks_keep_to_files_of_a_size_and_bytes_to_the_plan(
    mixtral: Path, tmp_path: Path
) -> None:
    options = Options(split_max_size=300_000)
    for name, threads in (("out", 1), ("again", 3)):
        convert(mixtral, tmp_path / name, "onnx:int4-asym", options=options, threads=threads)
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert sum(".data" in name for name in files) > 3
    for name in files:
        ours, theirs = (tmp_path / folder / name for folder in ("out", "again"))
        assert ours.read_bytes() == theirs.read_bytes(), name
    convert(mixtral, tmp_path / "whole", "onnx:int4-asym")
    assert_same_numbers(tmp_path / "out", tmp_path / "whole")


def edited(good: Path, tmp_path: Path, edit: Edit) -> Path:
    """A folder with the same data and another graph."""
    out = tmp_path / "out"
    out.mkdir()
    for file in good.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    model = load(good)
    edit(model)
    (out / MODEL).write_bytes(model.SerializeToString())
    return out


def node_of(model: Any) -> Any:
    return next(n for n in model.graph.node if n.op_type == "QMoE")


def with_attribute(name: str, value: Any) -> Edit:
    """Give an attribute of the first layer another value; None takes it away."""

    def edit(model: Any) -> None:
        node = node_of(model)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        if value is not None:
            node.attribute.append(onnx.helper.make_attribute(name, value))

    return edit


def with_input(place: int, value: str) -> Edit:
    def edit(model: Any) -> None:
        node = node_of(model)
        node.input.extend([""] * (place + 1 - len(node.input)))
        node.input[place] = value

    return edit


def with_bias(place: int, values: np.ndarray[Any, Any]) -> Edit:
    def edit(model: Any) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, f"bias.{place}"))
        with_input(place, f"bias.{place}")(model)

    return edit


def reshaped(part: str, *shape: int) -> Edit:
    def edit(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.name.endswith(part))
        del tensor.dims[:]
        tensor.dims.extend(shape)

    return edit


def nameless(model: Any) -> None:
    node, new = node_of(model), dict[str, str]()
    for place in (2, 3, 5, 6, 11, 12):
        new[node.input[place]] = f"array.{place}"
        node.input[place] = f"array.{place}"
    for tensor in model.graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    node.name = "experts"


def without_the_layer(model: Any) -> None:
    model.graph.node.remove(node_of(model))


UP, DOWN = "layers.0.block_sparse_moe.experts.gate_up_proj", "experts.down_proj"
BAD: dict[str, tuple[Edit, type[ZenError], str]] = {
    "prepacked": (with_attribute("weights_prepacked", 1), Unsupported, "weights_prepacked is 1"),
    "prepacked as a device likes": (
        with_attribute("weights_prepacked", None), Unsupported, "weights_prepacked is -1",
    ),
    "gate after up": (with_attribute("swiglu_fusion", 2), Unsupported, "swiglu_fusion is 2"),
    "not fused": (with_attribute("swiglu_fusion", 0), Unsupported, "swiglu_fusion is 0"),
    "fused by default": (with_attribute("swiglu_fusion", None), Unsupported, "swiglu_fusion is 0"),
    "gelu": (with_attribute("activation_type", "geglu"), Unsupported, "activation_type is geglu"),
    "no activation": (with_attribute("activation_type", None), Unsupported, "is relu"),
    "a number for a name": (with_attribute("activation_type", 3), Unsupported, "is 3"),
    "another slope": (with_attribute("activation_alpha", 1.702), Unsupported, "activation_alpha"),
    "a slope that is none": (with_attribute("activation_alpha", nan), Unsupported, "is nan"),
    "a shift": (with_attribute("activation_beta", 1.0), Unsupported, "activation_beta is 1.0"),
    "a limit": (with_attribute("swiglu_limit", 7.0), Unsupported, "swiglu_limit is 7.0"),
    "shares of all": (
        with_attribute("normalize_routing_weights", 0), Unsupported, "normalize_routing_weights",
    ),
    "another mixer": (with_attribute("use_sparse_mixer", 1), Unsupported, "use_sparse_mixer is 1"),
    "floats of four bits": (with_attribute("quant_type", "nvfp4"), Unsupported, "is nvfp4"),
    "three bits": (with_attribute("expert_weight_bits", 3), CorruptFile, "3 bits"),
    "eight bits": (with_attribute("expert_weight_bits", 8), CorruptFile, "calls? for"),
    "eight bits in one": (with_attribute("fc2_expert_weight_bits", 8), CorruptFile, "calls? for"),
    "rows of one scale": (with_attribute("block_size", None), Unsupported, "one scale"),
    "blocks of 48": (with_attribute("block_size", 48), CorruptFile, "blocks of 48"),
    "no blocks": (with_attribute("block_size", 0), CorruptFile, "blocks of 0"),
    "negative blocks": (with_attribute("block_size", -32), CorruptFile, "blocks of -32"),
    "blocks in words": (with_attribute("block_size", "32"), CorruptFile, "should be an integer"),
    "blocks of a float": (with_attribute("block_size", 32.0), CorruptFile, "be an integer"),
    "bits of a float": (with_attribute("expert_weight_bits", 4.0), CorruptFile, "be an integer"),
    "larger blocks": (with_attribute("block_size", 64), CorruptFile, "call for"),
    "blocks beyond rows": (with_attribute("block_size", 512), CorruptFile, "blocks of 512"),
    "more experts of a token": (with_attribute("k", 3), InvalidInput, "uses 3 of 4 experts"),
    "one by default": (with_attribute("k", None), InvalidInput, "uses 1 of 4 experts"),
    "a third product": (with_input(8, f"model.{UP}.codes"), Unsupported, "a third product"),
    "router weights": (with_input(14, "input_ids"), Unsupported, "router weights"),
    "more inputs than there are": (with_input(40, "input_ids"), Unsupported, "not read"),
    "codes that are computed": (with_input(2, "input_ids"), Unsupported, "computed"),
    "no codes": (with_input(5, ""), CorruptFile, "fc2 has no codes"),
    "no scales": (with_input(3, ""), CorruptFile, "fc1 has no codes"),
    "scales as codes": (with_input(2, f"model.{UP}.scales"), CorruptFile, "type f32"),
    "zeros that are floats": (with_input(11, f"model.{UP}.scales"), CorruptFile, "type f32"),
    "codes of down in gate and up": (
        with_input(2, f"model.layers.0.block_sparse_moe.{DOWN}.codes"), CorruptFile, "call for",
    ),
    "two dimensions": (reshaped(f"{UP}.codes", 2048, 128), CorruptFile, "fc1 has no codes"),
    "half the experts": (reshaped(f"{UP}.codes", 2, 1024, 128), CorruptFile, "are no experts"),
    "no experts": (reshaped(f"{UP}.codes", 0, 512, 128), CorruptFile, "calls for 0 bytes"),
    "odd rows": (reshaped(f"{UP}.codes", 2048, 1, 128), CorruptFile, "are no experts"),
    "a bias": (with_bias(4, np.ones((4, 512), np.float32)), UnexpectedTensor, "has no bias"),
    "a bias that is computed": (with_input(7, "input_ids"), Unsupported, "computed"),
    "no name": (nameless, Unsupported, "no name tells which layer"),
    "a missing layer": (without_the_layer, MissingTensor, r"experts\.0\.w1\.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_taken_apart_is_refused(name: str, good: Path, tmp_path: Path) -> None:
    edit, error, reason = BAD[name]
    with pytest.raises(error, match=reason):
        open_checkpoint(edited(good, tmp_path, edit))


def weighed_by(value: str, normalised: int) -> Edit:
    def edit(model: Any) -> None:
        with_input(14, value)(model)
        with_attribute("normalize_routing_weights", normalised)(model)

    return edit


@pytest.mark.parametrize(
    ("edit", "error", "reason"),
    [
        (weighed_by("", 1), InvalidInput, "those that were chosen; models of this kind by that"),
        (weighed_by("input_ids", 0), Unsupported, "only the softmax of the router's logits"),
        (weighed_by("", 0), Unsupported, "normalize_routing_weights is 0 without"),
    ],
)
def test_experts_are_weighed_as_the_family_says(
    edit: Edit, error: type[ZenError], reason: str, tmp_path: Path
) -> None:
    convert(variant(tmp_path / "source", "qwen2 moe"), tmp_path / "good", "onnx:int4")
    open_checkpoint(tmp_path / "good")
    with pytest.raises(error, match=reason):
        open_checkpoint(edited(tmp_path / "good", tmp_path, edit))


def test_no_damage_escapes_as_another_error(good: Path, tmp_path: Path) -> None:
    """Bytes of the nodes changed, lost and added at random: a model, or one of our errors."""
    folder = edited(good, tmp_path, lambda model: None)
    whole, chance = (good / MODEL).read_bytes(), random.Random(3)
    begin = whole.index(b"swiglu") - 1000
    refused = 0
    for _ in range(80):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(begin, begin + 1400)
            data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        (folder / MODEL).write_bytes(bytes(data))
        try:
            open_checkpoint(folder)
        except ZenError:
            refused += 1
    assert refused > 40


def in_the_names_of_genai(model: Any) -> None:
    """As its builder names such layers, with biases of zeros."""
    old = "block_sparse_moe.experts."
    for tensor in model.graph.initializer:
        tensor.name = _genai(tensor.name)
    for node in model.graph.node:
        node.input[:] = [_genai(value) for value in node.input]
        node.name = node.name.replace("block_sparse_moe/gate", "moe/router")
        node.name = node.name.replace("block_sparse_moe", "moe")
    assert not any(old in t.name for t in model.graph.initializer)
    with_bias(4, np.zeros((4, 512), np.float32))(model)
    with_bias(7, np.zeros((4, 256), np.float32))(model)
    with_attribute("swiglu_limit", float("inf"))(model)


def _genai(name: str) -> str:
    for ours, theirs in (
        ("block_sparse_moe.experts", "moe.experts"),
        ("block_sparse_moe.gate.weight_t", "moe.router.MatMul.weight"),
        ("_proj.codes", "_proj.qweight"),
    ):
        name = name.replace(ours, theirs) if name.startswith("model.layers.") else name
    return name


def test_the_names_of_another_exporter_are_known(good: Path, tmp_path: Path) -> None:
    assert_same_numbers(good, edited(good, tmp_path, in_the_names_of_genai))


def test_eight_bits_of_others_are_read(tmp_path: Path) -> None:
    """The codes of four bits in bytes: what an exporter without our restriction writes."""
    convert(variant(tmp_path / "source", "mixtral"), tmp_path / "four", "onnx:int4-asym-acc0")
    out = edited(tmp_path / "four", tmp_path, _in_bytes(tmp_path / "four"))
    tensors = open_checkpoint(out).tensors
    assert str(tensors["layers.0.moe.3.down.weight"].encoding) == "w8g32-asym"
    assert_same_numbers(tmp_path / "four", out)


def _in_bytes(folder: Path) -> Edit:
    def edit(model: Any) -> None:
        onnx.load_external_data_for_model(model, str(folder))
        for tensor in model.graph.initializer:
            if ".experts." in tensor.name and tensor.data_type == onnx.TensorProto.UINT8:
                packed = onnx.numpy_helper.to_array(tensor)
                both = np.stack([packed & 15, packed >> 4], axis=-1)
                wide = both.reshape(*packed.shape[:-1], -1)
                tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "expert_weight_bits":
                    attribute.i = 8

    return edit
