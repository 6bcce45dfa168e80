"""HF folders: what is read, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.tiny import raw_model
from zenconvert import Options, convert, open_checkpoint
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    MissingTensor,
    SourceNotFound,
    UnexpectedTensor,
    UnknownArchitecture,
    UnsafePath,
    Unsupported,
    ZenError,
)
from zenconvert.planning.recoding import logical_rows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return raw_model(tmp_path / "model", dtype="f32")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "remove"}))


def shard(folder: Path, parts: int = 2) -> dict[str, str]:
    """Split model.safetensors into shards with an index; returns the weight map."""
    tensors = load_file(folder / "model.safetensors")
    weight_map: dict[str, str] = {}
    for number in range(parts):
        file = f"model-{number + 1:05d}-of-{parts:05d}.safetensors"
        chosen = {n: t for i, (n, t) in enumerate(tensors.items()) if i % parts == number}
        save_file(chosen, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors").unlink()
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_values_are_read(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    expected = load_file(model / "model.safetensors")
    assert checkpoint.architecture.id == "qwen2"
    assert len(checkpoint.tensors) == len(expected)
    for tensor in checkpoint.tensors.values():
        rows = logical_rows(tensor, 0, tensor.rows).reshape(tensor.shape)
        np.testing.assert_array_equal(rows, expected[tensor.stored.name])


def test_shards_are_one_model(model: Path) -> None:
    whole = set(open_checkpoint(model).tensors)
    shard(model)
    checkpoint = open_checkpoint(model)
    assert set(checkpoint.tensors) == whole
    assert len(checkpoint.files) == 2


def test_links_as_in_the_hub_cache_are_followed(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    assert open_checkpoint(snapshot).tensors


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", "a\0b"],
)
def test_the_index_cannot_leave_the_folder(name: str, model: Path) -> None:
    weight_map = shard(model)
    weight_map[next(iter(weight_map))] = name
    write_index(model, weight_map)
    with pytest.raises(UnsafePath):
        open_checkpoint(model)


def test_a_missing_shard_is_named(model: Path) -> None:
    shard(model)
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceNotFound, match="00002-of-00002"):
        open_checkpoint(model)


def test_of_an_index_the_files_count(model: Path) -> None:
    """As for transformers: its tests are in test_weights_of_a_folder."""
    weight_map = shard(model)
    first, *_, second = weight_map
    write_index(model, {**weight_map, first: weight_map[second], second: weight_map[first]})
    assert "2 tensors stand in another file" in "".join(open_checkpoint(model).warnings)
    del weight_map[first]
    write_index(model, weight_map)
    assert "1 tensor of its files are not named" in "".join(open_checkpoint(model).warnings)


@pytest.mark.parametrize("weight_map", [{}, [], None, "x"])
def test_an_index_without_a_map_is_refused(weight_map: Any, model: Path) -> None:
    shard(model)
    write_index(model, weight_map)
    with pytest.raises(CorruptFile, match="weight_map"):
        open_checkpoint(model)


def test_a_tensor_in_two_shards_is_refused(model: Path) -> None:
    weight_map = shard(model)
    first = model / "model-00001-of-00002.safetensors"
    tensors = load_file(first)
    other = load_file(model / "model-00002-of-00002.safetensors")
    save_file(tensors | dict(list(other.items())[:1]), first)
    write_index(model, weight_map)
    with pytest.raises(CorruptFile, match="is also in"):
        open_checkpoint(model)


def test_missing_extra_and_misshapen_tensors_are_named(model: Path, tmp_path: Path) -> None:
    file = model / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, file)
    with pytest.raises(MissingTensor, match=r"layers\.1\.mlp\.up_proj"):
        open_checkpoint(model)
    save_file({**tensors, "model.layers.7.mlp.up_proj.weight": tensors[name]}, file)
    with pytest.raises(UnexpectedTensor, match=r"layers\.7"):
        open_checkpoint(model)
    save_file({**tensors, name: tensors[name][:-1]}, file)
    with pytest.raises(InvalidInput, match="the config calls for"):
        open_checkpoint(model)
    save_file(
        {
            **tensors,
            "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4),
            "model.layers.0.self_attn.masked_bias": np.ones(1),
        },
        file,
    )
    assert len(open_checkpoint(model).tensors) == len(tensors)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model_type": "mamba"}, UnknownArchitecture),
        ({"model_type": "remove"}, InvalidInput),
        ({"model_type": 3}, InvalidInput),
        ({"hidden_size": "remove"}, InvalidInput),
        ({"hidden_size": -256}, InvalidInput),
        ({"hidden_size": "256"}, InvalidInput),
        ({"hidden_size": 1 << 40}, InvalidInput),
        ({"num_hidden_layers": 0}, InvalidInput),
        ({"num_hidden_layers": True}, InvalidInput),
        ({"num_attention_heads": 3}, InvalidInput),
        ({"num_key_value_heads": 3}, InvalidInput),
        ({"rms_norm_eps": 0}, InvalidInput),
        ({"rms_norm_eps": "tiny"}, InvalidInput),
        ({"rope_theta": -1}, InvalidInput),
        ({"rope_scaling": "linear"}, InvalidInput),
        ({"quantization_config": {"quant_method": "fp8"}}, InvalidInput),
        ({"quantization_config": {"quant_method": "hqq"}}, Unsupported),
        ({"quantization_config": {}}, Unsupported),
        ({"quantization_config": "fp8"}, CorruptFile),
    ],
)
def test_bad_configs(changes: dict[str, Any], error: type[ZenError], model: Path) -> None:
    edit_config(model, **changes)
    with pytest.raises(error):
        open_checkpoint(model)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff", "[" * 100_000])
def test_a_config_that_is_no_object(text: str, model: Path) -> None:
    (model / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CorruptFile):
        open_checkpoint(model)


def test_pickles_are_not_opened(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(Unsupported, match="pickled"):
        open_checkpoint(model)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no format"):
        open_checkpoint(tmp_path)
    with pytest.raises(SourceNotFound, match="no such file"):
        open_checkpoint(tmp_path / "absent")


def test_a_hub_id_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceNotFound, match="Hub cannot be reached"):
        open_checkpoint("nobody/no-such-model")


def test_an_index_is_json_as_transformers_writes_it(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", "hf:f32", options=Options(split_max_size=1_000_000))
    text = (tmp_path / "out/model.safetensors.index.json").read_text()
    index = json.loads(text)
    assert text == json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    files = {file.name: load_file(file) for file in (tmp_path / "out").glob("*.safetensors")}
    assert len(files) > 1
    assert index["weight_map"] == {name: file for file, found in files.items() for name in found}
    stored = sum(t.nbytes for found in files.values() for t in found.values())
    assert index["metadata"] == {"total_size": stored}
