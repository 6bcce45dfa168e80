"""Files that we write are those that llama.cpp's converter and quantizer write, byte for byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from tests.oracles import converter
from tests.oracles.llama_quantize import quantize
from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import convert, open_checkpoint
from zenconvert.formats.gguf import container, mixtures

FAMILIES = ("qwen2", "llama3", "mistral", "mixtral")
PRE = {"llama3": "llama-bpe"}
Family = Callable[[str], Path]
Gguf = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def converted(model: Family, tmp_path_factory: pytest.TempPathFactory) -> Gguf:
    """(family, file type) → the converter's GGUF of that model."""
    made: dict[tuple[str, str], Path] = {}
    folder = tmp_path_factory.mktemp("converted")

    def get(family: str, file_type: str) -> Path:
        if (family, file_type) not in made:
            out = folder / f"{family}-{file_type}.gguf"
            pre = PRE.get(family, family)
            made[family, file_type] = converter.convert(model(family), out, file_type, pre)
        return made[family, file_type]

    return get


def assert_same_file(ours: Path, theirs: Path) -> None:
    """Equal bytes; a difference is shown as the first key or tensor that differs.

    torch's exponential of float32 is off in its last bit here and there, so that of decay may be.
    """
    if ours.read_bytes() == theirs.read_bytes():
        return
    a, b = container.read(ours), container.read(theirs)
    assert list(a.metadata) == list(b.metadata)
    for key, value in a.metadata.items():
        assert repr(value) == repr(b.metadata[key]), key
    assert [(t.name, t.shape, t.type_id) for t in a.tensors.values()] == [
        (t.name, t.shape, t.type_id) for t in b.tensors.values()
    ]
    ours_data, theirs_data = ours.read_bytes(), theirs.read_bytes()
    odd = False
    for name, tensor in a.tensors.items():
        own = ours_data[tensor.offset : tensor.offset + tensor.nbytes]
        at = b.tensors[name].offset
        other = theirs_data[at : at + tensor.nbytes]
        if name.endswith(".ssm_a"):
            gap = np.frombuffer(own, np.int32) - np.frombuffer(other, np.int32)
            assert np.abs(gap).max() <= 1, name
            odd |= bool(gap.any())
        else:
            assert own == other, name
    assert odd, "the files differ in their padding"


@pytest.mark.parametrize("family", FAMILIES)
def test_float_files_are_the_converters(family: str, gguf: Gguf, converted: Gguf) -> None:
    for file_type in ("f16", "bf16") if family == "qwen2" else ("f16",):
        assert_same_file(gguf(family, file_type), converted(family, file_type))


def test_the_bundled_model_converts_as_with_llamacpp(gguf: Gguf, tmp_path: Path) -> None:
    source = open_checkpoint("builtin:zen-nano").path
    theirs = converter.convert(source, tmp_path / "theirs.gguf", "f32")
    assert_same_file(gguf("builtin:zen-nano", "f32"), theirs)


@pytest.mark.parametrize("file_type", ["q4_k_m", "q2_k", "q3_k_l", "iq4_xs", "q5_0", "q8_0"])
@pytest.mark.parametrize("family", ["llama3", "mixtral"])
def test_quantized_files_are_the_quantizers(
    family: str, file_type: str, gguf: Gguf, converted: Gguf, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs.gguf"
    quantize(converted(family, "bf16"), theirs, mixtures.FILE_TYPES[file_type])
    assert_same_file(gguf(family, file_type), theirs)


def test_a_float_gguf_is_quantized_as_by_the_quantizer(gguf: Gguf, tmp_path: Path) -> None:
    source = gguf("qwen2", "f16")
    convert(source, tmp_path / "ours.gguf", "gguf:q4_k_m")
    quantize(source, tmp_path / "theirs.gguf", mixtures.FILE_TYPES["q4_k_m"])
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_shards_and_a_model_card_change_nothing(model: Family, tmp_path: Path) -> None:
    """Experts of a layer spread over files, a card, a name with size and version."""
    folder = tmp_path / "Mixtral-4x1B-Instruct-v0.2"
    convert(model("mixtral"), folder, "hf:bf16")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(model("mixtral") / name, folder / name)
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage: [en, vi]\nbase_model: acme/Base-7B-v2\n"
        "pipeline_tag: text-generation\ntags: [moe]\ndatasets: [acme/texts]\n---\n# Card\n"
    )
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    sharded = tmp_path / "sharded" / folder.name
    sharded.parent.mkdir()
    from zenconvert import Options

    convert(folder, sharded, "hf:bf16", options=Options(split_max_size=1_000_000))
    assert len(list(sharded.glob("*.safetensors"))) > 3
    theirs = converter.convert(sharded, tmp_path / "theirs.gguf", "bf16")
    convert(sharded, tmp_path / "ours.gguf", "gguf:bf16")
    assert_same_file(tmp_path / "ours.gguf", theirs)


@pytest.mark.parametrize("scaling", ["linear", "yarn", "llama3"])
def test_rope_scaling_is_written_as_the_converter_does(scaling: str, tmp_path: Path) -> None:
    rows = {
        "linear": {"type": "linear", "factor": 4.0},
        "yarn": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096,
        },
        "llama3": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip
    family = "qwen2" if scaling == "yarn" else "llama3"
    folder = tmp_path / "model"
    folder.mkdir()
    vocab = MAKERS[family](folder)
    raw_model(folder, family, vocab_size=vocab, num_hidden_layers=1, rope_scaling=rows[scaling])
    theirs = converter.convert(folder, tmp_path / "theirs.gguf", "bf16", PRE.get(family, family))
    convert(folder, tmp_path / "ours.gguf", "gguf:bf16")
    assert_same_file(tmp_path / "ours.gguf", theirs)
    convert(tmp_path / "ours.gguf", tmp_path / "back", "hf:bf16")
    found = json.loads((tmp_path / "back" / "config.json").read_text())["rope_scaling"]
    kind = found.pop("rope_type", None) or found.pop("type", None)
    assert kind == scaling
    for key, value in rows[scaling].items():
        if key not in {"type", "rope_type"}:
            assert found[key] == pytest.approx(value, rel=1e-5), key


def imatrix(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """An importance matrix as llama-imatrix writes it: Σx² and counts, one row per expert."""
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["test"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, sums in tensors.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.full((len(sums), 1), 16, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("file_type", ["q4_k_m", "q2_k", "iq4_xs"])
def test_importance_weights_reach_every_tensor(
    file_type: str, model: Family, tmp_path: Path
) -> None:
    """Every quantized tensor has libggml's bytes for its own row of the matrix, experts too."""
    from tests.oracles import libggml

    source = model("mixtral")
    convert(source, tmp_path / "f32.gguf", "gguf:f32")
    full = container.read(tmp_path / "f32.gguf")
    random = np.random.default_rng(5)
    sums = {
        name: (random.random((t.shape[0] if len(t.shape) == 3 else 1, t.shape[-1])) * 16)
        .astype(np.float32)
        for name, t in full.tensors.items()
        if len(t.shape) > 1 and "blk" in name and "gate_inp" not in name
    }  # fmt: skip
    convert(
        source,
        tmp_path / "ours.gguf",
        f"gguf:{file_type}",
        importance=imatrix(tmp_path / "imatrix.gguf", sums),
    )
    ours = container.read(tmp_path / "ours.gguf")
    data, full_data = ours.path.read_bytes(), full.path.read_bytes()
    weighted = 0
    for name, rows in sums.items():
        tensor, original = ours.tensors[name], full.tensors[name]
        assert tensor.type is not None
        values = np.frombuffer(
            full_data[original.offset : original.offset + original.nbytes], dtype=np.float32
        ).reshape(len(rows), -1, original.shape[-1])
        expected = b"".join(
            libggml.quantize(tensor.type.name, part, row / np.float32(16)).tobytes()
            for part, row in zip(values, rows, strict=True)
        )
        assert data[tensor.offset : tensor.offset + tensor.nbytes] == expected, name
        plain = b"".join(libggml.quantize(tensor.type.name, p, None).tobytes() for p in values)
        weighted += plain != expected
    assert weighted > len(sums) / 2


@pytest.mark.parametrize(
    ("family", "file_type"),
    [("llama3", "iq1_s"), ("llama3", "iq3_xs"), ("mixtral", "iq2_m"), ("mixtral", "q2_k_s")],
)
def test_files_quantized_with_importance_are_the_quantizers(
    family: str, file_type: str, model: Family, converted: Gguf, tmp_path: Path
) -> None:
    source, random = converted(family, "bf16"), np.random.default_rng(6)
    sums = {
        name: random.random((t.shape[0] if len(t.shape) == 3 else 1, t.shape[-1]), np.float32)
        for name, t in container.read(source).tensors.items()
        if name.startswith("blk.") and len(t.shape) > 1
    }
    weights = {name: values / np.float32(16) for name, values in sums.items()}
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    quantize(source, theirs, mixtures.FILE_TYPES[file_type], importance=weights)
    importance = imatrix(tmp_path / "imatrix.gguf", sums)
    convert(model(family), ours, f"gguf:{file_type}", importance=importance)
    assert_same_file(ours, theirs)
