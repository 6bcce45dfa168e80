"""The weights of a folder are those that transformers loads, by its own word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig

from zenconvert import convert, open_checkpoint
from zenconvert.errors import (
    InvalidInput,
    MissingTensor,
    SourceNotFound,
    UnexpectedTensor,
    Unsupported,
    ZenError,
)
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.planning.recoding import logical_rows

Tensors = dict[str, torch.Tensor]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


def llama(folder: Path, seed: int = 0, **config: Any) -> Path:
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**SIZES, **config)).save_pretrained(folder)
    return folder


def mixtral(folder: Path, **saving: Any) -> Path:
    config = MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, **saving)
    return folder


def edit(folder: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Change the tensors of a folder, in place or by returning others."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors = change(tensors) or tensors
    file.unlink()
    save_file({n: t.clone() for n, t in tensors.items()}, file, metadata={"format": "pt"})


def renamed(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: logical_rows(tensor, 0, tensor.rows).reshape(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
    }


def assert_as_transformers(folder: Path) -> Checkpoint:
    """Embedding, head, and what computes logits, are those of the model that transformers loads."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = model.state_dict()
    checkpoint = open_checkpoint(folder)
    found = values(checkpoint)
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    for name in names:
        if name.name not in found:
            assert not name.required or name.hf == HEAD, name.hf
            continue
        wanted = expected.get(name.hf, expected.get(name.hf_also or ""))
        if wanted is None:  # experts: transformers 5 has them in one tensor in memory
            assert name.hf_stack is not None
            part, parts = name.module.hf_stack_part
            stack = expected[name.hf_stack][name.expert or 0]
            wanted = stack.chunk(parts)[part]
        np.testing.assert_array_equal(found[name.name], wanted.numpy(), err_msg=name.hf)
    head = found.get("head.weight", found["embed.weight"])
    np.testing.assert_array_equal(head, expected[HEAD].numpy())
    return checkpoint


# which files


def test_a_single_file_goes_before_an_older_index(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", seed=1)
    old = llama(tmp_path / "old", seed=2)
    model = LlamaForCausalLM.from_pretrained(old)
    model.save_pretrained(old, max_shard_size="20KB")
    for file in old.glob("model*"):
        shutil.copy(file, folder)
    with pytest.warns(UserWarning, match=r"model\.safetensors, which transformers loads; not read"):
        checkpoint = assert_as_transformers(folder)
    assert "model.safetensors.index.json" in " ".join(checkpoint.warnings)
    assert checkpoint.files == (folder / "model.safetensors",)


def test_shards_that_no_index_names_are_told(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m")
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shutil.copy(next(folder.glob("model-00001-of-*")), folder / "model-00001-of-00099.safetensors")
    with pytest.warns(UserWarning, match=r"index\.json, which .*not read: model-00001-of-00099"):
        assert_as_transformers(folder)


@pytest.mark.parametrize(
    "other", ["consolidated.safetensors", "pytorch_model.bin", "model.gguf", "onnx/model.onnx"]
)
def test_other_weights_beside_them_are_told(other: str, tmp_path: Path) -> None:
    folder = llama(tmp_path / "m")
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_bytes(b"something")
    with pytest.warns(UserWarning, match=f"not read: {other}"):
        assert_as_transformers(folder)


def test_weights_that_the_config_names(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", seed=1)
    shutil.copy(llama(tmp_path / "n", seed=2) / "model.safetensors", folder / "new.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "new.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"new\.safetensors, which"):
        assert_as_transformers(folder)


def test_of_an_index_the_files_count(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", tie_word_embeddings=True)
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    names = table["weight_map"]
    [norm] = [name for name in names if name == "model.norm.weight"]
    other = next(file for file in names.values() if file != names[norm])
    first = next(iter(names.values()))
    told = {
        "named in vain": {**names, HEAD: first, "x.rotary_emb.inv_freq": first},
        "elsewhere": {**names, norm: other},
        "not named": {name: file for name, file in names.items() if name != norm},
    }
    for words, changed in told.items():
        index.write_text(json.dumps({**table, "weight_map": changed}))
        with pytest.warns(UserWarning, match=r"what the files hold is taken"):
            assert_as_transformers(folder)
        assert words
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    index.write_text(json.dumps({**table, "weight_map": told["named in vain"]}))
    with pytest.raises(MissingTensor, match=r"lm_head\.weight: the index names"):
        open_checkpoint(folder)


def test_what_the_config_names_is_not_named_in_outputs(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "new.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "transformers_weights": "new.safetensors"})
    )
    expected = LlamaForCausalLM.from_pretrained(folder).state_dict()[HEAD]
    convert(folder, tmp_path / "out", "hf:f32")
    found = LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()[HEAD]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), Unsupported, "merge"),
        (("consolidated.00.pth", "params.json"), Unsupported, "original release"),
        (("tf_model.h5",), Unsupported, "TensorFlow"),
        (("model-q8_0.gguf",), SourceNotFound, r"name one of them: .*model-q8_0\.gguf"),
        (("model.safetensors.incomplete",), SourceNotFound, "half a download"),
        (("model-00001-of-00002.safetensors",), SourceNotFound, "shards without"),
        (("model.fp16.safetensors",), SourceNotFound, "a variant"),
        (("adapter_model.safetensors",), SourceNotFound, r"an adapter \(LoRA\)"),
        (("Model.safetensors",), SourceNotFound, "is Model.safetensors: call it"),
        (("__0_0.distcp",), SourceNotFound, "dcp_to_torch"),
        (("zero_to_fp32.py",), SourceNotFound, "safe_serialization"),
    ],
)
def test_folders_without_weights_say_what_they_are(
    files: tuple[str, ...], error: type[ZenError], words: str, tmp_path: Path
) -> None:
    folder = llama(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    for name in files:
        (folder / name).write_text('{"base_model_name_or_path": "acme/base"}')
    with pytest.raises(error, match=words):
        open_checkpoint(folder)


def test_an_adapter_alone_and_beside_weights(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "acme/base"}')
    with pytest.raises(InvalidInput, match=r"both model weights and the adapter of acme/base"):
        open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(Unsupported, match=r"adapter \(LoRA\) of acme/base.*merge"):
        open_checkpoint(folder)


# which names


@pytest.mark.parametrize("shards", [False, True])
def test_a_tied_pair_under_the_head_s_name(shards: bool, tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", tie_word_embeddings=True)
    edit(folder, renamed(lambda name: HEAD if name == EMBED else name))
    if shards:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        index = {
            "metadata": {},
            "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors"),
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = assert_as_transformers(folder)
    assert "head.weight" not in checkpoint.tensors


@pytest.mark.parametrize("same", [False, True])
def test_a_tied_pair_that_is_stored_twice(same: bool, tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", tie_word_embeddings=True)
    edit(folder, lambda t: t.update({HEAD: t[EMBED] if same else t[EMBED] * 2}))
    checkpoint = assert_as_transformers(folder)
    assert checkpoint.hyperparameters.tied == same
    assert bool(checkpoint.config["tie_word_embeddings"]) == same
    assert [("differ" in text) for text in checkpoint.warnings] == ([] if same else [True])


def test_a_base_model_lacks_the_prefix(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", tie_word_embeddings=True)
    edit(folder, renamed(lambda name: name.removeprefix("model.")))
    assert_as_transformers(folder)
    folder = llama(tmp_path / "untied")
    edit(folder, lambda t: {n.removeprefix("model."): v for n, v in t.items() if n != HEAD})
    with pytest.raises(MissingTensor, match=r"1 tensor is missing: lm_head\.weight: .*base model"):
        open_checkpoint(folder)


def test_a_missing_head_says_what_decides(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m")
    edit(folder, lambda tensors: {n: t for n, t in tensors.items() if n != HEAD})
    with pytest.raises(MissingTensor, match=r"tie_word_embeddings of config\.json.*base model"):
        open_checkpoint(folder)


def test_a_head_with_one_prefix_too_many(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m")
    edit(folder, renamed(lambda name: f"model.{name}" if name == HEAD else name))
    assert_as_transformers(folder)


def test_a_value_head_is_left_out(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m")
    edit(folder, lambda t: t.update({"v_head.summary.weight": torch.ones(1, 32)}))
    checkpoint = assert_as_transformers(folder)
    assert "value head" in checkpoint.warnings[0]


@pytest.mark.parametrize("original", [False, True])
def test_experts_in_one_tensor(original: bool, tmp_path: Path) -> None:
    folder = mixtral(tmp_path / "m", save_original_format=original)
    names = load_file(folder / "model.safetensors")
    assert any(name.endswith("experts.gate_up_proj") for name in names) != original
    assert_as_transformers(folder)


@pytest.mark.parametrize(
    ("prefix", "advice"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DataParallel"),
        ("base_model.model.", r"merge_and_unload"),
        ("pretrained_model.", "TRL"),
        ("model._orig_mod.", "torch.compile"),
        ("_forward_module.", "Lightning"),
        ("language_model.", "sees or hears"),
        ("model.language_model.", "sees or hears"),
        ("student.net.", "'student.net.' stands before the model's own names"),
    ],
)
def test_prefixes_of_trainers_are_named(prefix: str, advice: str, tmp_path: Path) -> None:
    folder = llama(tmp_path / "m")
    edit(folder, renamed(lambda name: prefix + name))
    with pytest.raises(UnexpectedTensor, match=f"{prefix}.*more: .*{advice}"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", r"adapter \(LoRA\)"),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", "merge_and_unload"),
        ("score.weight", "ForSequenceClassification"),
        ("lm_head.modules_to_save.default.weight", "merge_and_unload"),
        ("model.layers.0._checkpoint_wrapped_module.x.weight", "activation checkpointing"),
        ("model.layers.0.self_attn.q_proj.qweight", "no quantization_config"),
        ("model.layers.0.self_attn.k_scale", "8-bit cache"),
        ("model.layers.7.mlp.up_proj.weight", "of layer 7, counted from 0"),
        ("mtp.fc.weight", "predicts further tokens"),
        ("model.layers.0.self_attn.qkv_proj.weight", "joined in one tensor"),
        ("model.layers.0.input_layernorm.gamma", "norm's name"),
    ],
)
def test_foreign_tensors_are_explained(name: str, advice: str, tmp_path: Path) -> None:
    folder = llama(tmp_path / "m")
    edit(folder, lambda t: t.update({name: torch.ones(2, 32)}))
    with pytest.raises(UnexpectedTensor, match=advice):
        open_checkpoint(folder)
