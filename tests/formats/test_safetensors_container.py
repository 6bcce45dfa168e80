"""The safetensors container against the reference library, and handcrafted broken files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from zenconvert.errors import CorruptFile, UnsupportedEncoding
from zenconvert.formats import safetensors_container as container
from zenconvert.model.encoding import BF16, F32


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def row(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


E8 = bytes(8)
CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "four bytes": (b"\0\0\0\0", "truncated"),
    "header length beyond the file": (packed({}, length=1 << 40), "truncated"),
    "header length 2^63": (packed({}, length=1 << 63), "truncated"),
    "header is no JSON": (packed(b"{nonsense"), "JSON"),
    "header is no UTF-8": (packed(b'{"\xff": 1}'), "UTF-8"),
    "header is a list": (packed(b"[1, 2]"), "object"),
    "header is nested deeply": (packed(b"[" * 100_000), "nested|JSON"),
    "duplicate name": (
        packed(b'{"a":%s,"a":%s}' % ((json.dumps(row()).encode(),) * 2), E8),
        "twice",
    ),
    "a size of many digits": (packed(b'{"a": {"shape": [%s]}}' % (b"7" * 4400)), "JSON"),
    "sixty thousand names twice": (
        packed(b"{%s}" % b",".join(b'"n%d":0' % (i // 2) for i in range(60_000))),
        "30000 of 30000 names twice, the first: 'n0', 'n1', 'n10'",
    ),
    "metadata is no object": (packed({"__metadata__": 3}), "strings"),
    "metadata holds numbers": (packed({"__metadata__": {"a": 1}}), "strings"),
    "a tensor without offsets": (packed({"a": {"dtype": "F32", "shape": [2]}}, E8), "expected"),
    "a tensor that is a number": (packed({"a": 5}, E8), "expected"),
    "an extra field": (packed({"a": {**row(), "x": 1}}, E8), "expected"),
    "negative size": (packed({"a": row(shape=[-2])}, E8), "no list of sizes"),
    "a float size": (packed({"a": row(shape=[2.0])}, E8), "no list of sizes"),
    "a bool size": (packed({"a": row(shape=[True])}, E8), "no list of sizes"),
    "a shape that is a string": (packed({"a": row(shape="2")}, E8), "no list of sizes"),
    "a hundred dimensions": (packed({"a": row(shape=[1] * 100)}, E8), "no list of sizes"),
    "huge shape": (packed({"a": row(shape=[1 << 40, 1 << 40])}, E8), "takes"),
    "size 2^70": (packed({"a": row(shape=[1 << 70])}, E8), "no list of sizes"),
    "offsets of one": (packed({"a": row(offsets=[0])}, E8), "pair"),
    "negative offsets": (packed({"a": row(offsets=[-8, 0])}, E8), "pair"),
    "offsets backwards": (packed({"a": row(offsets=[8, 0])}, E8), "span"),
    "offsets too short": (packed({"a": row(offsets=[0, 4])}, E8), "span"),
    "beyond the file": (packed({"a": row(offsets=[8, 16])}, E8), "truncated"),
    "data truncated": (packed({"a": row()}, E8[:5]), "truncated"),
    "a hole": (packed({"a": row(offsets=[8, 16])}, bytes(16)), "hole"),
    "an overlap": (
        packed({"a": row(), "b": row(offsets=[4, 12])}, bytes(12)),
        "overlaps",
    ),
    "bytes at the end": (packed({"a": row()}, bytes(12)), "belong to no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_malformed(name: str, tmp_path: Path) -> None:
    data, message = CASES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=message) as caught:
        container.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", ["F4", "int4", 7, None])
def test_an_unknown_dtype_is_refused(dtype: object, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed({"a": row(dtype=dtype)}, E8))
    with pytest.raises(UnsupportedEncoding, match="not known"):
        container.read(path)


def test_files_of_the_reference_library_are_read(tmp_path: Path) -> None:
    tensors: dict[str, NDArray[Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(4, dtype=np.float16),
        "empty": np.zeros((0, 3), dtype=np.float32),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    file = container.read(path)
    assert file.metadata == {"format": "pt"}
    data = path.read_bytes()
    for name, expected in tensors.items():
        entry = file.tensors[name]
        assert entry.shape == expected.shape
        assert data[entry.offset : entry.offset + entry.nbytes] == expected.tobytes()


def test_the_reference_library_reads_any_name(tmp_path: Path) -> None:
    """Those that JSON has to escape, too."""
    names = ['a "b"', "a\\b", "a\nb\x01", "größe/层", "\U0001f600"]
    path = tmp_path / "model.safetensors"
    header, _ = container.pack_header([(n, F32, (1,)) for n in names], {'"': "\n"})
    path.write_bytes(header + np.arange(len(names), dtype=np.float32).tobytes())
    with safe_open(path, "np") as file:
        assert file.metadata() == {'"': "\n"}
        assert [file.get_tensor(name).tolist() for name in names] == [[n] for n in range(5)]


def test_the_reference_library_reads_our_header(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    header, offsets = container.pack_header(
        [("x", F32, (2, 3)), ("y", BF16, (4,))], {"format": "pt"}
    )
    path = tmp_path / "model.safetensors"
    path.write_bytes(header + values.tobytes() + bytes(8))
    assert offsets == [len(header), len(header) + 24]
    assert len(header) % 8 == 0
    import torch
    from safetensors.torch import load_file as load_torch

    loaded = load_torch(path)
    assert torch.equal(loaded["x"], torch.from_numpy(values))
    assert loaded["y"].dtype == torch.bfloat16
