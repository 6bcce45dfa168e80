"""imatrix files: what llama.cpp writes is read as llama.cpp reads it, ours is read by others."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray

from tests.oracles.llama_quantize import load_imatrix
from tests.tiny import CONFIGS
from zenconvert.errors import CorruptFile, InputWarning, InvalidInput, SourceNotFound, UsageError
from zenconvert.formats.gguf.imatrix import (
    ImatrixEntry,
    Sums,
    Texts,
    read_importance,
    write_imatrix,
)
from zenconvert.model.architecture import TensorName, for_model_type


def names(family: str) -> list[TensorName]:
    config = CONFIGS[family]
    architecture = for_model_type(config["model_type"])
    hp = architecture.sizes(config, where="test")
    return [n for n in architecture.tensor_names(hp) if n.is_weight]


def theirs(path: Path, sums: NDArray[np.float32], counts: list[float], name: str) -> Path:
    """A file as llama-imatrix writes it, by gguf-py."""
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["x.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor(f"{name}.in_sum2", sums)
    writer.add_tensor(f"{name}.counts", np.array(counts, dtype=np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_counts_are_rounded_and_idle_experts_weigh_one(tmp_path: Path) -> None:
    sums = np.arange(4 * 256, dtype=np.float32).reshape(4, 256)
    name = "blk.1.ffn_down_exps.weight"
    path = theirs(tmp_path / "x.gguf", sums, [3, 2.5, 0.4, 7.49], name)
    found = read_importance(path, names("mixtral"))
    assert len(found) == 4
    for expert, count in enumerate([3, 3, 0, 7]):
        expected = sums[expert] / np.float32(count) if count else np.ones(256)
        np.testing.assert_array_equal(found[f"layers.1.moe.{expert}.down.weight"], expected)


@pytest.mark.parametrize(
    ("sums", "counts", "error"),
    [
        (np.ones((4, 128)), [1.0] * 4, InvalidInput),
        (np.ones((3, 256)), [1.0] * 3, InvalidInput),
        (np.ones((4, 256)), [1.0] * 3, CorruptFile),
        (np.full((4, 256), -1.0), [1.0] * 4, CorruptFile),
        (np.full((4, 256), np.nan), [1.0] * 4, CorruptFile),
    ],
)
def test_sums_that_do_not_fit_are_refused(
    sums: NDArray[np.float64], counts: list[float], error: type[Exception], tmp_path: Path
) -> None:
    path = theirs(
        tmp_path / "x.gguf", sums.astype(np.float32), counts, "blk.0.ffn_down_exps.weight"
    )
    with pytest.raises(error, match=r"x\.gguf"):
        read_importance(path, names("mixtral"))


def legacy(*entries: tuple[str, int, NDArray[np.float32]]) -> bytes:
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, values.size) + values.tobytes()
    return data + struct.pack("<ii", 5, 5) + b"x.txt"


def test_the_older_format_is_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    dense, stack = (random.random(n).astype(np.float32) for n in (256, 4 * 256))
    path = tmp_path / "imatrix.dat"
    path.write_bytes(
        legacy(("blk.0.attn_q.weight", 7, dense), ("blk.1.ffn_up_exps.weight", 0, stack))
    )
    found = read_importance(path, names("mixtral"))
    assert len(found) == 5
    np.testing.assert_array_equal(found["layers.0.attn.q.weight"], dense / np.float32(7))
    np.testing.assert_array_equal(found["layers.1.moe.2.up.weight"], stack.reshape(4, 256)[2])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        b"# a text file, not an imatrix\n",
        legacy(("blk.0.attn_q.weight", 1, np.ones(256, dtype=np.float32)))[:600],
        struct.pack("<ii", 1, -5) + bytes(64),
        struct.pack("<i", 1) + struct.pack("<i", 1) + b"x" + struct.pack("<ii", 1, 1 << 30),
        legacy(("blk.0.attn_q.weight", 1, np.full(256, np.inf, dtype=np.float32))),
    ],
)
def test_files_that_are_no_imatrix_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=r"imatrix\.dat"):
        read_importance(path, names("mixtral"))
    with pytest.raises(SourceNotFound):
        read_importance(tmp_path / "absent", names("mixtral"))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy(("blk.0.ssm_in.weight", 1, np.ones(256, dtype=np.float32))))
    with pytest.raises(InvalidInput, match="none of its tensors"):
        read_importance(path, names("mixtral"))


def test_others_read_what_we_write(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    parts = {
        language: Sums(random.random((2, 48)).astype(np.float32), np.array([3, 4]))
        for language in ("en", "zh")
    }
    total = Sums(parts["en"].squares + parts["zh"].squares, np.array([6, 0]))
    entry = ImatrixEntry("blk.0.ffn_up_exps.weight", 2, 48, lambda: {"": total, **parts})
    with (tmp_path / "x.gguf").open("wb") as file:
        write_imatrix(file, [entry], ["en", "zh"], Texts(["my.txt"], 3, 2048))
    reader = GGUFReader(tmp_path / "x.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["my.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 3
    assert reader.fields["imatrix.chunk_size"].contents() == 2048
    tensors = {t.name.removeprefix(entry.name): t.data for t in reader.tensors}
    for suffix, sums in {"": total, ".en": parts["en"], ".zh": parts["zh"]}.items():
        np.testing.assert_array_equal(tensors[f".in_sum2{suffix}"], sums.squares)
        np.testing.assert_array_equal(tensors[f".counts{suffix}"].ravel(), sums.counts)
    assert len(tensors) == 6
    (found,) = load_imatrix(tmp_path / "x.gguf").values()
    np.testing.assert_array_equal(found[:48], total.squares[0] / np.float32(6))
    assert (found[48:] == 1).all()


def test_names_that_llamacpp_cannot_hold_are_refused(tmp_path: Path) -> None:
    entry = ImatrixEntry("blk.0.ffn_up_exps.weight", 1, 48, dict)
    with (tmp_path / "x.gguf").open("wb") as file, pytest.raises(UsageError, match="too long"):
        write_imatrix(file, [entry], ["x" * 40], Texts([], 1, 1))


def test_what_a_file_does_not_cover_is_told(tmp_path: Path) -> None:
    path = theirs(tmp_path / "x.gguf", np.ones((1, 256), np.float32), [1.0], "blk.0.attn_q.weight")
    with pytest.warns(InputWarning, match=r"13 of the model's 14 matrices .*: blk\.0\.attn_k"):
        read_importance(path, names("llama3"))
    path = tmp_path / "x.dat"
    values = np.ones(256, np.float32)
    path.write_bytes(legacy(("blk.0.attn_q.weight", 1, values), ("blk.9.attn_q.weight", 1, values)))
    with pytest.warns(InputWarning, match=r"1 of its 2 entries .*: blk\.9\.attn_q"):
        read_importance(path, names("llama3"))
