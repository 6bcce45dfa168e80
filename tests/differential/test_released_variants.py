"""Configs as people have them: what one version of a runtime computes is called exact only where
every version does, and what a file says comes back."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from transformers import GenerationConfig

from tests import tokenizers_for_tests
from tests.differential import runs
from tests.differential.test_gguf_keys import changed
from tests.families import FAMILIES, one_period
from zenconvert import convert, plan
from zenconvert.errors import PlanError
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.container import KeyValue

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": runs.VOCAB,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, **SIZES,
}  # fmt: skip
TEXT = runs.ids(40, 7)
Made = Callable[[dict[str, Any]], Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A folder of random weights for a config."""
    runs.tokenizer(tmp_path / "tokenizer")
    return lambda config: runs.write_model(tmp_path / "source", config, tmp_path / "tokenizer", 3)


OLMO3 = {
    key: value
    for key, value in {**FAMILIES["olmo3"].config, **SIZES, "sliding_window": 8}.items()
    if key != "rope_scaling"
}
_PLAIN = {"rope_type": "default"}


@pytest.mark.parametrize("target", ["gguf:f32", "onnx:f32"])
@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"rope_theta": 5e5}, False),
        ({"rope_theta": 1e4}, True),
        ({"rope_theta": 1e6, "rope_parameters": {"full_attention": _PLAIN}}, True),
        ({"rope_theta": 1e6, "layer_types": ["full_attention"] * 8}, False),
    ],
)
def test_a_base_that_versions_take_for_other_layers_is_named(
    target: str, changes: dict[str, Any], differs: bool, made: Made, tmp_path: Path
) -> None:
    """Of OLMo 3: transformers 4 rotates layers that slide by it, 5 by 500000."""
    source = made({**OLMO3, **changes})
    planned = plan(source, target)
    assert [fact.name for fact in planned.lost] == ["rope_theta"] * differs
    if target == "gguf:f32":
        convert(source, tmp_path / "m.gguf", target)
        found = runs.in_llamacpp(tmp_path / "m.gguf", TEXT)
        off = float(np.abs(found - runs.in_transformers(source, TEXT)).max())
        assert (off > 1e-2) == differs


@pytest.mark.parametrize("context", [32, 64, 128])
def test_factors_of_short_contexts_come_back(context: int, made: Made, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": context,
    }  # fmt: skip
    source = made({**LLAMA, "rope_theta": 5e5, "rope_scaling": scaling})
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    found = runs.in_transformers(tmp_path / "back", TEXT)
    np.testing.assert_allclose(found, runs.in_transformers(source, TEXT), atol=1e-5, rtol=0)


def test_keys_of_released_models_that_nothing_reads(made: Made) -> None:
    """Of SmolLM, Vicuna, DeepSeek LLM and InternLM's Llama."""
    known = {
        "is_llama_config": True, "rope_interleaved": False, "max_sequence_length": 2048,
        "aux_loss_alpha": 0.001, "seq_aux": True, "bias": False, "pretraining_tp": 1,
    }  # fmt: skip
    source = made({**LLAMA, **known})
    assert plan(source, "gguf:f32").exact
    assert plan(source, "onnx:f32").exact


def test_a_name_that_llamacpp_takes_for_phi_3(made: Made, tmp_path: Path) -> None:
    """It then loads no file without Phi-3's tokens."""
    source = made(LLAMA)
    (source / "README.md").write_text("---\nname: my phi3 tune\n---\n")
    with pytest.raises(PlanError, match=r"general.name is 'my phi3 tune'.*</s>, <unk>, <s>"):
        plan(source, "gguf:f32")
    (source / "README.md").write_text("---\nname: my tune\n---\n")
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    assert runs.in_llamacpp(tmp_path / "m.gguf", TEXT).shape == (len(TEXT), runs.VOCAB)


@pytest.mark.parametrize("stored", ["as converted", "as quantized by llama.cpp"])
def test_a_mixture_of_one_expert(stored: str, made: Made, tmp_path: Path) -> None:
    """llama.cpp's converter writes its stack with a dimension of one, its quantizer without."""
    own = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    source = made({**LLAMA, **own, "num_local_experts": 1, "num_experts_per_tok": 1})
    expected = runs.in_transformers(source, TEXT)
    file = tmp_path / "m.gguf"
    convert(source, file, "gguf:f32")
    shape = container.read(file).tensors["blk.0.ffn_up_exps.weight"].shape
    assert shape == (1, 96, 64)
    if stored != "as converted":
        tensors = {
            i.name: (i.shape[1:] if i.shape[0] == 1 else i.shape, i.type_id, i.offset, i.nbytes)
            for i in container.read(file).tensors.values()
        }
        rewritten(file, tensors)
    assert_same(runs.in_llamacpp(file, TEXT), expected)
    convert(file, tmp_path / "back", "hf:f32")
    assert_same(runs.in_transformers(tmp_path / "back", TEXT), expected)


def assert_same(found: runs.Logits, expected: runs.Logits) -> None:
    np.testing.assert_allclose(found, expected, atol=3e-4 * float(expected.std()), rtol=0)


def rewritten(file: Path, tensors: dict[str, tuple[tuple[int, ...], int, int, int]]) -> None:
    """A GGUF file with other shapes of its tensors: name → shape, type, offset and bytes."""
    keys, data = container.read(file).metadata, file.read_bytes()
    rows, body = [], b""
    for name, (shape, kind, offset, size) in tensors.items():
        rows.append((name, shape, kind, len(body)))
        body += data[offset : offset + size] + bytes(-size % 32)
    file.write_bytes(container.pack_header(keys, rows) + body)


def test_tokens_that_are_never_drawn_are_those_of_llamacpp(made: Made, tmp_path: Path) -> None:
    source = made(LLAMA)
    settings = {"suppress_tokens": [5, 17, 9999], "begin_suppress_tokens": [3]}
    (source / "generation_config.json").write_text(json.dumps(settings))
    planned = convert(source, tmp_path / "m.gguf", "gguf:f32").plan
    assert [fact.name for fact in planned.lost] == ["generation_config.begin_suppress_tokens"]
    assert never_drawn(tmp_path / "m.gguf") == [5, 17]
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    assert GenerationConfig.from_pretrained(tmp_path / "back").suppress_tokens == [5, 17]
    convert(tmp_path / "back", tmp_path / "again.gguf", "gguf:f32")
    assert never_drawn(tmp_path / "again.gguf") == [5, 17]


def never_drawn(file: Path) -> list[int]:
    """What llama.cpp's sampling asks its vocabulary for."""
    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    ask = llama_cpp.llama_cpp._lib.llama_vocab_get_suppress_tokens
    ask.restype, count = ctypes.POINTER(ctypes.c_int32), ctypes.c_int32()
    ask.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32)]
    found = ask(model._model.vocab, ctypes.byref(count))
    ids = [found[i] for i in range(count.value)]
    model.close()
    return ids


MINISTRAL3 = {
    key: value
    for key, value in {**FAMILIES["ministral3"].config, "vocab_size": runs.VOCAB}.items()
    if not key.startswith("rope_")
}
GROWTH = {"rope_theta": 1e6, "llama_4_scaling_beta": 0.3}


@pytest.mark.parametrize(
    "kind",
    [{"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}],
    ids=["plain", "linear"],
)
def test_scores_that_grow_whatever_scales_rotations(
    kind: dict[str, Any], made: Made, tmp_path: Path
) -> None:
    """The original context of Ministral 3 counts without YaRN, too."""
    rotations = {**kind, **GROWTH, "original_max_position_embeddings": 16}
    source = made({**MINISTRAL3, "rope_parameters": rotations})
    expected = runs.in_transformers(source, TEXT)
    assert convert(source, tmp_path / "m.gguf", "gguf:f32").plan.exact
    assert_same(runs.in_llamacpp(tmp_path / "m.gguf", TEXT), expected)
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    assert_same(runs.in_transformers(tmp_path / "back", TEXT), expected)
    convert(source, tmp_path / "onnx", "onnx:f32")
    assert_same(runs.in_onnxruntime(tmp_path / "onnx", TEXT), expected)


def test_yarn_that_would_end_before_it_begins_is_named(made: Made, tmp_path: Path) -> None:
    rotations = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4}
    source = made({**MINISTRAL3, "rope_parameters": {**GROWTH, **rotations}})
    expected = runs.in_transformers(source, TEXT)
    planned = convert(source, tmp_path / "m.gguf", "gguf:f32").plan
    [lost] = planned.lost
    assert lost.name == "rope_scaling.original_max_position_embeddings"
    found = runs.in_llamacpp(tmp_path / "m.gguf", TEXT)
    assert np.abs(found - expected).max() > expected.std()
    with pytest.raises(PlanError, match=r"rope\.scaling\.original_context_length is 4"):
        plan(tmp_path / "m.gguf", "hf:f32")
    convert(source, tmp_path / "onnx", "onnx:f32")
    assert_same(runs.in_onnxruntime(tmp_path / "onnx", TEXT), expected)


def with_keys(made: Made, name: str, tmp_path: Path, **keys: KeyValue | None) -> Path:
    """A GGUF file of a family, with other keys; __ stands for a dot, None takes a key away."""
    convert(
        made({**FAMILIES[name].config, "vocab_size": runs.VOCAB}), tmp_path / "m.gguf", "gguf:f32"
    )
    prefix = container.read(tmp_path / "m.gguf").metadata["general.architecture"][1]
    full = {f"{prefix}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return changed(tmp_path / "m.gguf", tmp_path / "odd.gguf", full)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("glm4", "rope__dimension_count", None),
        ("cohere", "logit_scale", None),
        ("cohere2", "logit_scale", ("f32", 0.0)),
        ("gemma3", "final_logit_softcapping", ("f32", 0.0)),
        ("granite", "attention__scale", ("f32", 0.0)),
        ("granite", "embedding_scale", ("f32", 0.0)),
        ("granite", "residual_scale", ("f32", 0.0)),
        ("granite", "rope__scaling__finetuned", ("bool", True)),
        ("glm4_moe", "expert_weights_scale", ("f32", 0.0)),
        ("gpt_oss", "attention__sliding_window_pattern", ("u32", 0)),
    ],
)
def test_keys_without_which_a_silent_config_computes_otherwise(
    name: str, key: str, value: KeyValue | None, made: Made, tmp_path: Path
) -> None:
    """llama.cpp rotates all of a head and scales no logits; GLM-4's and Command R's configs do. It
    computes without a factor or a cap of 0, and every layer slides in patterns of 0."""
    odd = with_keys(made, name, tmp_path, **{key: value})
    expected = runs.in_llamacpp(odd, TEXT)
    convert(odd, tmp_path / "back", "hf:f32")
    found = runs.in_transformers(tmp_path / "back", TEXT)
    assert np.abs(found - expected).max() < FAMILIES[name].llamacpp * expected.std()


@pytest.mark.parametrize(
    ("name", "key", "value", "told"),
    [
        ("gpt_oss", "rope__scaling__type", ("str", "none"), r"rope\.scaling\.type is 'none'"),
        ("glm4_moe", "expert_weights_norm", None, r"expert_weights_norm is False"),
        ("granite", "rope__scaling__finetuned", ("bool", False), r"finetuned is False"),
        ("granitemoe", "rope__scaling__finetuned", ("bool", False), r"finetuned is False"),
    ],
)
def test_what_no_config_says_is_refused(
    name: str, key: str, value: KeyValue | None, told: str, made: Made, tmp_path: Path
) -> None:
    """Layers that slide go by a factor that the others leave away; experts are not weighed without
    a flag that says so; Granite's rotations have a switch."""
    odd = with_keys(made, name, tmp_path, **{key: value})
    with pytest.raises(PlanError, match=told):
        plan(odd, "hf:f32")


@pytest.mark.parametrize("cap", [None, 3.0])
def test_a_cap_of_logits_that_llamacpp_has_without_a_key(cap: float | None, tmp_path: Path) -> None:
    """Gemma 4's graph caps at 30 where a file is silent; its configs cap nothing then."""
    (tmp_path / "tokenizer").mkdir()
    size = tokenizers_for_tests.gemma4(tmp_path / "tokenizer")
    config = {**one_period(FAMILIES["gemma4"].config), "final_logit_softcapping": cap}
    config |= {"vocab_size": size, "vocab_size_per_layer_input": size}
    source = runs.write_model(tmp_path / "source", config, tmp_path / "tokenizer", 3)
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    expected = runs.in_transformers(source, TEXT)
    found = runs.in_llamacpp(tmp_path / "m.gguf", TEXT)
    assert np.abs(found - expected).max() < 0.01 * expected.std()
    silent: dict[str, KeyValue | None] = {"gemma4.final_logit_softcapping": None}
    odd = changed(tmp_path / "m.gguf", tmp_path / "odd.gguf", silent)
    for file in (tmp_path / "m.gguf", odd):
        convert(file, tmp_path / f"{file.stem}-back", "hf:f32")
        found = runs.in_transformers(tmp_path / f"{file.stem}-back", TEXT)
        expected = runs.in_llamacpp(file, TEXT)
        assert np.abs(found - expected).max() < 0.01 * expected.std()


def test_scalings_that_a_family_of_configs_has_not(made: Made, tmp_path: Path) -> None:
    """Of Phi-3, for which transformers takes longrope alone."""
    odd = with_keys(made, "phi", tmp_path, rope__scaling__factor=("f32", 2.0))
    runs.in_llamacpp(odd, TEXT)
    with pytest.raises(PlanError, match=r"phi3\.rope\.scaling\.type is 'linear'"):
        plan(odd, "hf:f32")
    assert plan(odd, "gguf:q8_0")


def test_transformers_is_told_the_size_of_heads_that_rotations_are_scaled_by(
    made: Made, tmp_path: Path
) -> None:
    """Mixtral's configs leave it empty, and YaRN multiplies by it."""
    scaling: dict[str, KeyValue | None] = {
        "rope__scaling__type": ("str", "yarn"),
        "rope__scaling__factor": ("f32", 4.0),
        "rope__scaling__original_context_length": ("u32", 16),
    }
    odd = with_keys(made, "mixtral", tmp_path, **scaling)
    convert(odd, tmp_path / "back", "hf:f32")
    found = runs.in_transformers(tmp_path / "back", TEXT)
    assert_same(found, runs.in_llamacpp(odd, TEXT))


def test_factors_of_rotations_leave_what_else_configs_have_in_their_scaling(
    made: Made, tmp_path: Path
) -> None:
    llama3 = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    source = made({**MINISTRAL3, "rope_parameters": {**llama3, **GROWTH}})
    expected = runs.in_transformers(source, TEXT)
    convert(source, tmp_path / "m.gguf", "gguf:f32")
    assert_same(runs.in_llamacpp(tmp_path / "m.gguf", TEXT), expected)
    convert(tmp_path / "m.gguf", tmp_path / "back", "hf:f32")
    assert_same(runs.in_transformers(tmp_path / "back", TEXT), expected)


def test_a_window_that_llamacpp_does_not_apply_is_told(made: Made, tmp_path: Path) -> None:
    odd = with_keys(made, "phi", tmp_path, attention__sliding_window=("u32", 8))
    [told] = plan(odd, "hf:f32").warnings
    assert "attention.sliding_window is 8: llama.cpp applies no window" in told
