"""Graphs against transformers, the checker and onnxruntime-genai."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.onnx_runs import (
    VARIANTS,
    decoded_logits,
    genai_tokens,
    onnx_logits,
    session,
    step,
    tokens,
    transformers_logits,
    transformers_tokens,
    variant,
)
from zenconvert import Options, convert, open_checkpoint
from zenconvert.errors import InvalidInput, PlanError, Unsupported, UsageError
from zenconvert.formats.onnx.write.writer import check_family
from zenconvert.model.architecture_table import BLOCK_KEYS

Model = Callable[[str], Path]
FAMILIES = ("qwen2", "llama 3", "mistral", "mixtral", "qwen3", "qwen3 moe", "smollm3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Variant → folder of a random model."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("models") / re.sub(r"\W+", "-", name)
            made[name] = variant(folder, name)
        return made[name]

    return get


def written(source: Path, out: Path, kind: str, **options: str) -> Path:
    """The graph of a conversion, which the checker accepts."""
    convert(source, out, f"onnx:{kind}", options=Options(**options))  # type: ignore[arg-type]
    onnx.checker.check_model(str(out / "model.onnx"), full_check=True)
    return out / "model.onnx"


@pytest.mark.parametrize("kind", ["f32", "f32-standard"])
@pytest.mark.parametrize("name", VARIANTS)
def test_f32_graphs_give_the_logits_of_transformers(
    name: str, kind: str, model: Model, tmp_path: Path
) -> None:
    graph = written(model(name), tmp_path / "out", kind)
    found = onnx_logits(session(graph), tokens())
    expected = transformers_logits(model(name), tokens())
    np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", ["f16", "f16-standard"])
@pytest.mark.parametrize("name", FAMILIES)
def test_f16_graphs_stay_within_half_precision(
    name: str, kind: str, model: Model, tmp_path: Path
) -> None:
    graph = written(model(name), tmp_path / "out", kind)
    found = onnx_logits(session(graph), tokens())
    expected = transformers_logits(model(name), tokens())
    assert float(np.abs(expected).max()) > 1
    np.testing.assert_allclose(found, expected, atol=1e-2, rtol=0)


INTEGERS = (
    "int4-acc0",
    "int4-asym-g64-acc0",
    "int8-acc0",
    "int2-asym-acc0",
    "int4-standard",
    "int4-asym-standard",
    "int8-standard",
    "int2-standard",
)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", ["qwen2", "mixtral", "qwen3", "qwen3 moe"])
def test_integer_graphs_compute_with_their_own_weights(
    name: str, kind: str, model: Model, tmp_path: Path
) -> None:
    graph = written(model(name), tmp_path / "out", kind)
    found = onnx_logits(session(graph, level=0), tokens())
    expected = decoded_logits(tmp_path / "out", tmp_path / "hf", tokens())
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "embedding", "head"),
    [
        ("f32-acc0", "int8", "int8"),
        ("int4-acc0", "int4-g64", None),
        ("int4-acc0", "f16", "int4"),
        ("int4-standard", "int8", "int8"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_have_the_type_that_was_named(
    kind: str, embedding: str, head: str | None, tied: bool, model: Model, tmp_path: Path
) -> None:
    source = model("qwen2, tied" if tied else "qwen2")
    options = {"embedding_type": embedding} | ({"output_type": head} if head else {})
    graph = written(source, tmp_path / "out", kind, **options)
    tensors = open_checkpoint(tmp_path / "out").tensors
    assert ("head.weight" in tensors) == (not tied or head is not None)
    found = onnx_logits(session(graph, level=0), tokens())
    expected = decoded_logits(tmp_path / "out", tmp_path / "hf", tokens())
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def test_nothing_but_linear_weights_becomes_integers_unasked(model: Model, tmp_path: Path) -> None:
    convert(model("qwen2"), tmp_path / "out", "onnx:int4")
    encodings = {n: str(t.encoding) for n, t in open_checkpoint(tmp_path / "out").tensors.items()}
    assert encodings["embed.weight"] == encodings["head.weight"] == "f32"
    assert encodings["layers.0.ffn.down.weight"] == "w4g32"


def test_a_tied_head_takes_no_room(model: Model, tmp_path: Path) -> None:
    for kind in ("f32", "f32-standard"):
        done = convert(model("qwen2, tied"), tmp_path / kind, f"onnx:{kind}")
        tensors = {s.target for s in done.plan.steps}
        assert "lm_head.weight" not in tensors
        assert json.loads((tmp_path / kind / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("kind", ["f32", "f32-standard"])
def test_padding_on_the_right_changes_nothing(kind: str, model: Model, tmp_path: Path) -> None:
    graph = written(model("mistral"), tmp_path / "out", kind)
    ids, mask = tokens(), np.ones_like(tokens())
    ids[1, 11:], mask[1, 11:] = 0, 0
    running = session(graph)
    both, _ = step(running, ids, mask, None)
    alone, _ = step(running, ids[1:, :11], mask[1:, :11], None)
    np.testing.assert_allclose(both[1, :11], alone[0], atol=1e-5, rtol=0)


def test_padding_on_the_left_changes_nothing_in_standard_graphs(
    model: Model, tmp_path: Path
) -> None:
    graph = written(model("mistral"), tmp_path / "out", "f32-standard")
    ids, mask = tokens(), np.ones_like(tokens())
    ids[1, :9], mask[1, :9] = 0, 0
    running = session(graph)
    both, past = step(running, ids, mask, None)
    alone, own = step(running, ids[1:, 9:], mask[1:, 9:], None)
    np.testing.assert_allclose(both[1, 9:], alone[0], atol=1e-5, rtol=0)
    one = np.ones((2, 1), dtype=np.int64)
    both, _ = step(running, 5 * one, np.concatenate([mask, one], axis=1), past)
    alone, _ = step(running, 5 * one[:1], np.ones((1, 20), dtype=np.int64), own)
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5, rtol=0)


def test_standard_graphs_have_no_other_operators(model: Model, tmp_path: Path) -> None:
    for name, kind in (("mixtral", "int4-standard"), ("qwen2, tied", "f16-standard")):
        graph = onnx.load(
            str(written(model(name), tmp_path / kind, kind)), load_external_data=False
        )
        assert {node.domain for node in graph.graph.node} == {""}
        assert [o.domain for o in graph.opset_import] == [""]
        assert graph.opset_import[0].version >= 24


@pytest.mark.parametrize("kind", ["f32", "f16-standard", "int4-acc0"])
@pytest.mark.parametrize("name", FAMILIES)
def test_genai_generates_what_transformers_does(
    name: str, kind: str, model: Model, tmp_path: Path
) -> None:
    convert(model(name), tmp_path / "out", f"onnx:{kind}")
    convert(tmp_path / "out", tmp_path / "hf", "hf:f32")
    prompt = tokens(1, 20)[0].tolist()
    found = genai_tokens(tmp_path / "out", prompt, 12)
    assert found == transformers_tokens(tmp_path / "hf", prompt, 12)


def test_the_same_plan_gives_the_same_bytes(model: Model, tmp_path: Path) -> None:
    for at, threads in (("first", 1), ("second", 3)):
        convert(model("mixtral"), tmp_path / at, "onnx:int4", threads=threads)
    for file in sorted((tmp_path / "first").iterdir()):
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


def test_no_file_speaks_of_where_it_was_made(model: Model, tmp_path: Path) -> None:
    convert(model("llama 3"), tmp_path / "out", "onnx:f16")
    for file in (tmp_path / "out").iterdir():
        if file.suffix in {".json", ".onnx"}:
            assert str(tmp_path.parent).encode() not in file.read_bytes(), file.name


def test_arrays_begin_at_pages_and_the_graph_has_no_weights(model: Model, tmp_path: Path) -> None:
    done = convert(model("qwen2"), tmp_path / "out", "onnx:int4-asym")
    graph = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    for tensor in graph.graph.initializer:
        places = {e.key: e.value for e in tensor.external_data}
        assert int(places.get("offset", 0)) % 4096 == 0
        assert places or len(tensor.raw_data) < 256, tensor.name
    assert sum(f.size for f in done.plan.layout.files) == done.plan.output_bytes


def test_weights_split_into_files_of_a_size(model: Model, tmp_path: Path) -> None:
    options = Options(split_max_size=1_500_000)
    convert(model("qwen2"), tmp_path / "out", "onnx:f32", options=options)
    names = sorted(p.name for p in (tmp_path / "out").iterdir() if ".data" in p.name)
    assert len(names) > 2
    assert names[:2] == ["model.onnx.data", "model.onnx.data_1"]
    found = onnx_logits(session(tmp_path / "out" / "model.onnx"), tokens())
    expected = transformers_logits(model("qwen2"), tokens())
    np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)
    assert len(open_checkpoint(tmp_path / "out").files) == 1 + len(names)


@pytest.mark.parametrize(
    ("kind", "name", "dtype"),
    [
        ("f32", "model.onnx", "fp32"),
        ("f16", "model_fp16.onnx", "fp16"),
        ("int4", "model_q4.onnx", "q4"),
        ("int4-f16", "model_q4f16.onnx", "q4f16"),
        ("int8", "model_int8.onnx", "int8"),
    ],
)
def test_the_layout_of_transformers_js(
    kind: str, name: str, dtype: str, model: Model, tmp_path: Path
) -> None:
    options = Options(layout="transformers.js", split_max_size=1_000_000)
    convert(model("qwen2"), tmp_path / "out", f"onnx:{kind}", options=options)
    files = sorted(p.name for p in (tmp_path / "out" / "onnx").iterdir())
    data = [f for f in files if f != name]
    expected = [f"{name}_data", *(f"{name}_data_{i}" for i in range(1, len(data)))]
    assert sorted(data) == sorted(expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["transformers.js_config"]
    assert config["use_external_data_format"] == {name: len(data)}
    assert config["dtype"] == dtype
    assert config.get("kv_cache_dtype") == ({dtype: "float16"} if "f16" in kind else None)
    found = onnx_logits(session(tmp_path / "out" / "onnx" / name), tokens())
    assert np.isfinite(found).all()
    checkpoint = open_checkpoint(tmp_path / "out")
    assert set(checkpoint.tensors) == set(open_checkpoint(model("qwen2")).tensors)
    convert(tmp_path / "out", tmp_path / "hf", "hf:f32")
    assert "transformers.js" not in (tmp_path / "hf" / "config.json").read_text()


def test_layouts_are_refused_where_there_are_none(model: Model, tmp_path: Path) -> None:
    for target, reason in (
        ("onnx:f32", "no layout 'tflite'"),
        ("hf:f32", "--layout"),
        ("gguf:f16", "--layout"),
        ("gptq", "--layout"),
    ):
        with pytest.raises(UsageError, match=reason):
            convert(model("qwen2"), tmp_path / "out", target, options=Options(layout="tflite"))
    options = Options(layout="transformers.js")
    with pytest.raises(UsageError, match="no name for 8 bits with f16"):
        convert(model("qwen2"), tmp_path / "out", "onnx:int8-f16", options=options)
    with pytest.raises(PlanError, match=r"model_type is 'mixtral': transformers\.js has no such"):
        convert(model("mixtral"), tmp_path / "out", "onnx:f32", options=options)


def test_the_metadata_says_what_became_of_every_tensor(model: Model, tmp_path: Path) -> None:
    done = convert(model("qwen2"), tmp_path / "out", "onnx:int4")
    graph = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False)
    facts = {p.key: p.value for p in graph.metadata_props}
    steps = json.loads(facts["zenconvert.steps"])
    for planned in done.plan.steps:
        if planned.from_ is not None:
            (found,) = steps[planned.target]
            assert found["exact"] == planned.exact
            assert found["why"] in planned.why


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("int3", "no type 'int3'"),
        ("f32-g32", "only refines integer types"),
        ("int4-g48", "power of two"),
        ("int4-sym-asym", "no suffix"),
        ("int4-acc7", "no suffix"),
        ("bf16", "no type 'bf16'"),
    ],
)
def test_types_that_make_no_sense_are_refused(
    kind: str, reason: str, model: Model, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        convert(model("qwen2"), tmp_path / "out", f"onnx:{kind}")


def test_an_integer_embedding_cannot_be_the_head_in_standard_operators(
    model: Model, tmp_path: Path
) -> None:
    options = Options(embedding_type="int8")
    with pytest.raises(UsageError, match="--output-type"):
        convert(model("qwen2, tied"), tmp_path / "out", "onnx:f32-standard", options=options)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mistral", "mistral"),
        ("qwen2", "qwen2"),
        ("mixtral", "decoder"),
        ("qwen3", "qwen3"),
        ("qwen3 moe", "decoder"),
        ("smollm3", "smollm3"),
    ],
)
def test_genai_is_told_a_type_that_it_knows(
    name: str, kind: str, model: Model, tmp_path: Path
) -> None:
    convert(model(name), tmp_path / "out", "onnx:f32")
    assert json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["type"] == kind


@pytest.mark.parametrize("kind", ["f32", "f32-standard"])
@pytest.mark.parametrize("name", ["qwen3", "smollm3"])
def test_norms_of_heads_and_layers_without_rotation_are_felt(
    name: str, kind: str, model: Model, tmp_path: Path
) -> None:
    """Graphs without them give other logits: the comparison with transformers would tell."""
    graph = written(model(name), tmp_path / "out", kind)
    file = onnx.load(str(graph), load_external_data=False)
    nodes = file.graph.node
    if name == "qwen3":
        (node,) = (n for n in nodes if n.name == "/model/layers.0/self_attn/q_norm/Reshape_1")
        (first,) = (n for n in nodes if n.name == "/model/layers.0/self_attn/q_norm/Reshape")
        node.input[0] = first.output[0]
    elif kind == "f32":
        for node in nodes:
            if node.op_type == "GroupQueryAttention":
                if len(node.input) > 7:
                    tables = node.input[7:9]
                else:
                    node.input.extend(tables)
                next(a for a in node.attribute if a.name == "do_rotary").i = 1
    else:
        rotated = [n.name for n in nodes if n.op_type == "RotaryEmbedding"]
        assert len(rotated) == 2 * 4
        return
    (tmp_path / "out" / "other.onnx").write_bytes(file.SerializeToString())
    found = onnx_logits(session(tmp_path / "out" / "other.onnx"), tokens())
    gap = np.abs(found - transformers_logits(model(name), tokens())).max()
    assert gap > 1e-2


def test_graphs_that_rotate_other_layers_are_refused(model: Model, tmp_path: Path) -> None:
    graph = written(model("smollm3"), tmp_path / "out", "f32")
    file = onnx.load(str(graph), load_external_data=False)
    for node in file.graph.node:
        for attribute in node.attribute:
            if attribute.name == "do_rotary":
                attribute.i = 1
    graph.write_bytes(file.SerializeToString())
    with pytest.raises(InvalidInput, match=r"in 4 of them, the graph in 5 .* layers \[3\]"):
        open_checkpoint(tmp_path / "out")


def test_the_graph_interprets_every_feature_of_a_block() -> None:
    """A feature that tables get has to be computed here, or refused, before it is listed here."""
    features = {key for key in BLOCK_KEYS if not key.startswith(("gguf_", "genai_"))}
    assert features == {
        *("windows", "window_period", "rotates", "head_norms"),
        *("norm_weights", "embedding_scale", "activation", "activation_module"),  # by modules
        *("rotary", "norms", "halves", "routing", "value_norms", "scores", "clamped"),
        "latent_eps",  # of modules that are refused
    }


def test_families_with_other_modules_are_refused_by_name(model: Model) -> None:
    checkpoint = open_checkpoint(model("qwen2"))
    module = replace(checkpoint.architecture.modules[3], name="layers.{layer}.attn.gate")
    modules = (*checkpoint.architecture.modules, module)
    odd = replace(checkpoint, architecture=replace(checkpoint.architecture, modules=modules))
    with pytest.raises(Unsupported, match=r"no attn\.gate in its layers"):
        check_family(odd, sinks=True)
