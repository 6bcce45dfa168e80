"""Layers of several kinds in graphs: heads, caches and rotations of their own, tokens' own inputs,
experts beside a network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.families import FAMILIES
from tests.onnx_runs import (
    SPECIAL,
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
from tests.tiny import raw_model
from zenconvert import Options, convert, open_checkpoint, plan
from zenconvert.errors import PlanError
from zenconvert.formats.onnx import rotary
from zenconvert.model.architecture import for_model_type
from zenconvert.model.layer_heads import layer_heads

E2B, MOE = "gemma 4 e2b", "gemma 4 moe"


@pytest.fixture(scope="module")
def e2b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variant(tmp_path_factory.mktemp("models") / "e2b", E2B)


@pytest.mark.parametrize("share", [0.25, 0.5, None])
@pytest.mark.parametrize("factor", [None, 2.0])
def test_proportional_frequencies_are_those_of_transformers(
    share: float | None, factor: float | None
) -> None:
    config = FAMILIES["gemma4"].config
    given = {"rope_type": "proportional", "rope_theta": 1e6, "factor": factor,
             "partial_rotary_factor": share}  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    kinds = {**config["rope_parameters"], "full_attention": given}
    hp = for_model_type("gemma4_text").sizes({**config, "rope_parameters": kinds}, where="test")
    found, amplitude = rotary.frequencies(rotary.of_full(hp))
    theirs = SimpleNamespace(
        head_dim=32, rope_parameters=given, standardize_rope_params=lambda: None
    )
    expected, factor_of_all = ROPE_INIT_FUNCTIONS["proportional"](theirs, "cpu")
    np.testing.assert_array_equal(found, expected.numpy())
    assert amplitude == factor_of_all == 1


def test_other_families_have_no_such_rotations(tmp_path: Path) -> None:
    given = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    source = variant(tmp_path / "model", "qwen3", rope_parameters=given, rope_theta=None)
    with pytest.raises(PlanError, match="rope_type is 'proportional'"):
        plan(source, "onnx:f32")


def test_caches_have_the_heads_of_their_layers_and_are_there_once(
    e2b: Path, tmp_path: Path
) -> None:
    """The last three layers read keys and values of others, and have none in the cache."""
    hp = open_checkpoint(e2b).hyperparameters
    assert [heads.source for heads in layer_heads(hp)] == [0, 1, 2, 1, 1, 2]
    for kind in ("f32", "f32-standard"):
        convert(e2b, tmp_path / kind, f"onnx:{kind}")
        graph = onnx.load(str(tmp_path / kind / "model.onnx"), load_external_data=False).graph
        shapes = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)[1::2]
            for value in (*graph.input, *graph.output)
            if value.name.startswith(("past", "present"))
        }
        assert shapes == {
            f"{side}.{layer}.{part}": heads
            for side in ("past_key_values", "present")
            for layer, heads in enumerate([(4, 16), (4, 16), (4, 32)])
            for part in ("key", "value")
        }


@pytest.mark.parametrize("name", [E2B, MOE])
def test_genai_generates_what_transformers_does(name: str, tmp_path: Path) -> None:
    source = variant(tmp_path / "model", name)
    convert(source, tmp_path / "out", "onnx:f32")
    prompt = tokens(1, 20)[0].tolist()
    found = genai_tokens(tmp_path / "out", prompt, 12)
    assert found == transformers_tokens(source, prompt, 12)
    assert len(set(found)) > 1


@pytest.mark.parametrize("kind", ["f32", "f32-standard"])
def test_padding_on_the_right_changes_nothing(kind: str, e2b: Path, tmp_path: Path) -> None:
    convert(e2b, tmp_path / "out", f"onnx:{kind}")
    ids, mask = tokens(), np.ones_like(tokens())
    ids[1, 19:], mask[1, 19:] = 0, 0
    running = session(tmp_path / "out" / "model.onnx")
    both, _ = step(running, ids, mask, None)
    alone, _ = step(running, ids[1:, :19], mask[1:, :19], None)
    np.testing.assert_allclose(both[1, :19], alone[0], atol=1e-5, rtol=0)


def test_keys_that_nobody_reads_are_left_out_and_that_is_told(e2b: Path, tmp_path: Path) -> None:
    released = tmp_path / "released"
    released.mkdir()
    (released / "config.json").write_bytes((e2b / "config.json").read_bytes())
    tensors, opened = load_file(e2b / "model.safetensors"), open_checkpoint(e2b)
    for name in opened.architecture.tensor_names(opened.hyperparameters):
        if name.unread:
            tensors[name.hf] = torch.full(name.shape, 7.0, dtype=torch.bfloat16)
    save_file(tensors, released / "model.safetensors", {"format": "pt"})
    done = convert(released, tmp_path / "out", "onnx:f32")
    (told,) = (fact for fact in done.plan.facts if fact.name == "num_kv_shared_layers")
    assert "layers.3.self_attn.k_proj.weight" in told.why
    assert done.plan.exact
    convert(e2b, tmp_path / "bare", "onnx:f32")
    one, two = (tmp_path / name / "model.onnx.data" for name in ("out", "bare"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(("kind", "table"), [("int4-acc0", "int4-g64"), ("int8-standard", "int8")])
def test_both_embeddings_can_be_integers(kind: str, table: str, e2b: Path, tmp_path: Path) -> None:
    options = Options(embedding_type=table, output_type="f32")
    convert(e2b, tmp_path / "out", f"onnx:{kind}", options=options)
    stored = open_checkpoint(tmp_path / "out").tensors
    for name in ("embed.weight", "inputs.embed.weight"):
        assert stored[name].encoding.grouped is not None, name
    found = onnx_logits(session(tmp_path / "out" / "model.onnx", level=0), tokens())
    expected = decoded_logits(tmp_path / "out", tmp_path / "hf", tokens())
    np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)


def test_factors_and_norms_of_routers_are_felt(tmp_path: Path) -> None:
    """Another number for any of them gives other logits: comparisons with transformers tell."""
    source = variant(tmp_path / "model", MOE)
    convert(source, tmp_path / "out", "onnx:f32")
    expected, places = transformers_logits(source, tokens()), {}
    graph = onnx.load(str(tmp_path / "out" / "model.onnx"), load_external_data=False).graph
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            places[tensor.name] = int(entries["offset"])
    data = (tmp_path / "out" / "model.onnx.data").read_bytes()
    layer = "model.layers.1"
    for name in (
        f"{layer}.layer_scalar", f"{layer}.router.scale", f"{layer}.router.per_expert_scale",
        f"{layer}.pre_feedforward_layernorm_2.weight",
        f"{layer}.post_feedforward_layernorm_1.weight",
    ):  # fmt: skip
        changed = bytearray(data)
        changed[places[name] : places[name] + 4] = np.float32(3).tobytes()
        (tmp_path / "out" / "model.onnx.data").write_bytes(changed)
        found = onnx_logits(session(tmp_path / "out" / "model.onnx"), tokens())
        assert np.abs(found - expected).max() > 1e-3, name


@pytest.mark.parametrize("kind", ["f32", "f32-standard"])
def test_texts_past_the_original_context_rotate_as_in_transformers(
    kind: str, tmp_path: Path
) -> None:
    """At once and token by token, on both sides of the border."""
    source = raw_model(tmp_path / "model", FAMILIES["phi_longrope"].config, **SPECIAL)
    convert(source, tmp_path / "out", f"onnx:{kind}")
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
    running = session(tmp_path / "out" / "model.onnx")
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids, ones, cache = tokens(2, 258), np.ones_like(tokens(2, 258)), DynamicCache()
    past = None
    with torch.inference_mode():
        for begin, end in ((0, 40), (40, 255), (255, 256), (256, 257), (257, 258)):
            new = torch.from_numpy(ids[:1, begin:end])
            found, past = step(running, ids[:1, begin:end], ones[:1, :end], past)
            expected = theirs(new, past_key_values=cache).logits.numpy()
            np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)
        for length in (256, 257):
            found, _ = step(running, ids[:, :length], ones[:, :length], None)
            expected = theirs(torch.from_numpy(ids[:, :length])).logits.numpy()
            np.testing.assert_allclose(found, expected, atol=5e-5, rtol=0)
    assert np.abs(found[:, :256] - step(running, ids[:, :256], ones[:, :256], None)[0]).max() > 0.1
