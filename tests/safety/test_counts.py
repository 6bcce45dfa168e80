"""Counts and sizes that a header claims cost no more than what is stored."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import gguf_shape, models
from tests.fuzz.gguf_shape import Gguf, Key
from tests.tiny import CONFIGS, raw_model
from zenconvert import open_checkpoint, plan
from zenconvert.errors import CorruptFile, InvalidInput, MissingTensor, UsageError, ZenError
from zenconvert.formats.gguf import container
from zenconvert.model.architecture import Architecture, architectures

SECONDS = 20.0
"""Of the processor: expanding what is claimed would take minutes, or never end."""
HUGE = (10**7, 10**9, 2**31 - 1)


@pytest.fixture(autouse=True)
def quick() -> Any:
    """Every test here ends soon, whatever else the machine does."""
    began = time.process_time()
    yield
    assert time.process_time() - began < SECONDS


def changed(key: str, value: Any, experts: int = 0) -> Gguf:
    file = models.gguf(experts)
    kind = "str" if isinstance(value, str) else "u32"
    keys = [k for k in file.keys if k.name != key]
    return Gguf([*keys, Key(key, kind, value)], file.infos, file.data)


def write(path: Path, file: Gguf) -> Path:
    path.write_bytes(gguf_shape.pack(file))
    return path


@pytest.mark.parametrize("count", HUGE)
@pytest.mark.parametrize("key", ["block_count", "expert_count"])
def test_gguf(key: str, count: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", changed(f"llama.{key}", count, experts=2))
    with pytest.raises(MissingTensor, match=rf"{count} .*and \d+ are stored"):
        open_checkpoint(path)


@pytest.mark.parametrize("count", HUGE)
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts"])
def test_hf(key: str, count: int, tmp_path: Path) -> None:
    folder = raw_model(tmp_path / "x", "mixtral", **{**models.SIZES, "num_local_experts": 2})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: count}))
    with pytest.raises(MissingTensor, match=rf"{count} .*and \d+ are stored"):
        open_checkpoint(folder)


@pytest.mark.parametrize("family", architectures())
def test_layers_that_are_told_apart(family: str) -> None:
    """Which of them have experts, or see everything: before anybody counted tensors."""
    architecture = architectures()[family]
    experts = {"num_experts": 4, "moe_intermediate_size": 32, "decoder_sparse_step": 2}
    config = {**CONFIGS["mixtral"], **experts, "model_type": architecture.model_type}
    for more in ({}, {"use_sliding_window": True}, {"mlp_only_layers": [0]}, {"num_experts": 0}):
        claimed = {**config, **more, "num_hidden_layers": 10**9}
        with pytest.raises(ZenError) as told:
            _counted(architecture, claimed)
    if architecture.layers.get("sparse_step"):
        assert "1000000000 layers; at most" in str(told.value)


def _counted(architecture: Architecture, config: dict[str, Any]) -> None:
    hp = architecture.sizes(config, where="config.json")
    architecture.check_counts(hp, [(2, 2)] * 9, "config.json")


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts"])
def test_onnx(key: str, tmp_path: Path) -> None:
    files = models.files_of(models.converted("onnx:f32", "mixtral"))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    config = json.loads(files["config.json"])
    (tmp_path / "config.json").write_text(json.dumps({**config, key: 10**9}))
    with pytest.raises(InvalidInput):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("target", ["onnx:f32", "onnx:int4", "onnx:f16"])
def test_tables_of_two_thousand_million_positions(target: str, tmp_path: Path) -> None:
    sizes = {**models.SIZES, "max_position_embeddings": 2**31 - 1}
    folder = raw_model(tmp_path / "x", "qwen2", **sizes)
    with pytest.raises(UsageError, match=r"max_position_embeddings\) take \d+\.\d GB; lower"):
        plan(folder, target)
    standard = target.replace("f16", "int4") + "-standard"
    if standard == "onnx:int4-standard":
        plan(folder, standard)  # computes them, as the message says


def sparse(path: Path, head: bytes, size: int) -> Path:
    """A file of zeros after its head, of which nothing is stored."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


Claim = Callable[[], Key]
CLAIMS: dict[str, Claim] = {
    "string": lambda: Key("general.name", "str", "", 3 << 30),
    "bytes": lambda: Key("general.x", "arr:u8", [], 3 << 30),
    "doubles": lambda: Key("general.x", "arr:f64", [], 1 << 28),
    "strings": lambda: Key("general.x", "arr:str", [], 1 << 28),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_sparse_gguf_claims_is_not_read(claim: str, tmp_path: Path) -> None:
    head = gguf_shape.pack(Gguf([CLAIMS[claim]()], [], alignment=1))
    path = sparse(tmp_path / "x.gguf", head, 4 << 30)
    with pytest.raises(CorruptFile, match="claims"):
        container.read(path)


def test_many_arrays_that_a_sparse_file_claims(tmp_path: Path) -> None:
    """Each of them is small enough; together they would fill the memory with empty texts."""
    path, at = tmp_path / "x.gguf", 24
    with path.open("wb") as file:
        file.write(gguf_shape.pack(Gguf([], [], key_count=20, alignment=1)))
        for number in range(20):
            head = struct.pack("<Q", 3) + b"k%02d" % number
            head += struct.pack("<IIQ", 9, 8, 3_000_000)
            file.seek(at)
            file.write(head)
            at += len(head) + 8 * 3_000_000
        file.truncate(at)
    with pytest.raises(CorruptFile, match="arrays of the metadata take more than"):
        container.read(path)


def test_a_graph_that_is_large_without_its_weights(tmp_path: Path) -> None:
    head = b"\x08\x08\x12" + b"\x80\x80\x80\x80\x04"  # a text of a gigabyte
    path = sparse(tmp_path / "model.onnx", head, len(head) + (1 << 30))
    with pytest.raises(CorruptFile, match="the graph has more than"):
        open_checkpoint(path)


def test_a_vocabulary_of_two_thousand_million(tmp_path: Path) -> None:
    vocab = 2**31 - 1
    folder = tmp_path / "x"
    raw_model(folder, "qwen2", **models.SIZES)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": vocab}))
    with pytest.raises(InvalidInput, match="a vocabulary of 2147483647"):
        open_checkpoint(folder)


def test_a_message_is_never_longer_than_anybody_reads() -> None:
    error = CorruptFile("x" * 100_000 + "\n" * 5000)
    assert len(str(error)) < 10_000
    assert str(CorruptFile("short\nlines")) == "short\nlines"
