"""Handcrafted broken GGUF files: each ends in the right error, at once and without allocation."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest

from tests.formats.gguf.raw import RawGguf, key_value, tensor, text
from zenconvert.errors import CorruptFile, SourceNotFound
from zenconvert.formats.gguf import container

U32, F32, BOOL, STR, ARR, U64 = 4, 6, 7, 8, 9, 10
U32_VALUE = struct.pack("<I", 1)


def array(element: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", element, count) + data


def one_kv(value: bytes) -> bytes:
    return RawGguf(key_values=[value]).pack()


def one_tensor(info: bytes, data: bytes = bytes(128)) -> bytes:
    return RawGguf(tensors=[info], data=data).pack()


def two_tensors(first: bytes, second: bytes, data: bytes = bytes(128)) -> bytes:
    return RawGguf(tensors=[first, second], data=data).pack()


VALID = RawGguf(
    key_values=[key_value("a", U32, U32_VALUE), key_value("s", STR, text("hello"))],
    tensors=[tensor("t", (8, 2)), tensor("u", (8,), offset=64)],
    data=bytes(96),
).pack()

CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "three bytes": (b"GGU", "no GGUF file"),
    "header cut": (VALID[:20], "too few"),
    "wrong magic": (RawGguf(magic=b"GGML").pack(), "no GGUF file"),
    "a zip file": (b"PK\3\4" + bytes(60), "zip archive"),
    "version 1": (RawGguf(version=1).pack(), "version 1"),
    "version 99": (RawGguf(version=99).pack(), "version 99"),
    "big-endian": (RawGguf(version=3 << 24).pack(), "gguf-convert-endian"),
    "of August 2023": (RawGguf(version=1).pack(), "convert the model anew"),
    "key/value count 2^40": (RawGguf(kv_count=1 << 40).pack(), "cannot fit"),
    "key/value count 2^63": (RawGguf(kv_count=1 << 63).pack(), "cannot fit"),
    "tensor count 2^40": (RawGguf(tensor_count=1 << 40).pack(), "cannot fit"),
    "tensor count 2^64-1": (RawGguf(tensor_count=(1 << 64) - 1).pack(), "cannot fit"),
    "one key/value too many": (
        RawGguf(key_values=[key_value("a", U32, U32_VALUE)], kv_count=2, data=bytes(64)).pack(),
        "key is empty",
    ),
    "key length 2^62": (one_kv(struct.pack("<Q", 1 << 62) + bytes(40)), "at most"),
    "key length 2^32": (one_kv(struct.pack("<Q", 1 << 32) + bytes(40)), "at most"),
    "key longer than the file": (one_kv(struct.pack("<Q", 500) + bytes(40)), "truncated"),
    "key is no UTF-8": (one_kv(key_value(b"\xff\xfe", U32, U32_VALUE)), "UTF-8"),
    "duplicate key": (
        RawGguf(key_values=[key_value("a", U32, U32_VALUE)] * 2).pack(),
        "'a' appears twice",
    ),
    "value type 13": (one_kv(key_value("a", 13, bytes(8))), "unknown type 13"),
    "value type 99": (one_kv(key_value("a", 99, bytes(8))), "unknown type 99"),
    "value cut": (VALID[: 24 + 8 + 1 + 4 + 2], "truncated|cannot fit"),
    "string value 2^61": (
        one_kv(key_value("a", STR, struct.pack("<Q", 1 << 61) + bytes(16))),
        "at most",
    ),
    "string value is no UTF-8": (one_kv(key_value("a", STR, text(b"\xc3\x28"))), "UTF-8"),
    "bool of 7": (one_kv(key_value("a", BOOL, b"\7")), "bool"),
    "array length 2^40": (one_kv(key_value("a", ARR, array(U32, 1 << 40))), "claims 1099511627776"),
    "array length 2^61 of u64": (
        one_kv(key_value("a", ARR, array(U64, 1 << 61))),
        "claims 2305843009213693952",
    ),
    "array longer than the file": (
        one_kv(key_value("a", ARR, array(U64, 30, bytes(16)))),
        "truncated",
    ),
    "array of arrays": (
        one_kv(key_value("a", ARR, array(ARR, 1, array(U32, 1, U32_VALUE)))),
        "nested arrays",
    ),
    "2000 nested arrays": (
        one_kv(key_value("a", ARR, array(ARR, 1) * 2000)),
        "nested arrays",
    ),
    "array of type 77": (one_kv(key_value("a", ARR, array(77, 1, bytes(8)))), "unknown type 77"),
    "string array 2^50": (one_kv(key_value("a", ARR, array(STR, 1 << 50))), "more than"),
    "string array cut": (
        one_kv(key_value("a", ARR, array(STR, 2, text("x")))),
        "beyond|claims",
    ),
    "string array with a huge string": (
        one_kv(key_value("a", ARR, array(STR, 1, struct.pack("<Q", 1 << 60)))),
        "claims",
    ),
    "string array is no UTF-8": (
        one_kv(key_value("a", ARR, array(STR, 1, text(b"\x80")))),
        "UTF-8",
    ),
    "alignment 0": (one_kv(key_value("general.alignment", U32, struct.pack("<I", 0))), "alignm"),
    "alignment 24": (one_kv(key_value("general.alignment", U32, struct.pack("<I", 24))), "power"),
    "alignment 2^31": (
        one_kv(key_value("general.alignment", U32, struct.pack("<I", 1 << 31))),
        "alignment",
    ),
    "alignment is a string": (one_kv(key_value("general.alignment", STR, text("32"))), "alignm"),
    "tensor info cut": (
        RawGguf(tensors=[tensor("t", (8, 2))[:20], b""], tensor_count=1).pack()[:60],
        "truncated|impossible shape",
    ),
    "tensor name is no UTF-8": (one_tensor(tensor(b"\xff", (8,))), "UTF-8"),
    "tensor name of 2^33 bytes": (
        one_tensor(struct.pack("<Q", 1 << 33) + bytes(40)),
        "at most",
    ),
    "no dimensions": (one_tensor(tensor("t", (), n_dims=0) + bytes(8)), "0 dimensions"),
    "five dimensions": (one_tensor(tensor("t", (1, 1, 1, 1, 1))), "5 dimensions"),
    "10^9 dimensions": (one_tensor(tensor("t", (8,), n_dims=10**9)), "dimensions"),
    "dimension 0": (one_tensor(tensor("t", (8, 0))), "impossible shape"),
    "2^33 x 2^33": (one_tensor(tensor("t", (1 << 33, 1 << 33))), "impossible shape"),
    "dimension 2^64-1": (one_tensor(tensor("t", ((1 << 64) - 1,))), "impossible shape"),
    "removed type 4": (one_tensor(tensor("t", (32,), type_id=4)), "removed"),
    "removed type 33": (one_tensor(tensor("t", (32,), type_id=33)), "removed"),
    "row of 40 in q4_0": (one_tensor(tensor("t", (40, 2), type_id=2)), "multiple of q4_0"),
    "row of 128 in q4_k": (one_tensor(tensor("t", (128, 2), type_id=12)), "multiple of q4_k"),
    "unaligned offset": (one_tensor(tensor("t", (8,), offset=7)), "multiple of 32"),
    "offset beyond the file": (one_tensor(tensor("t", (8,), offset=1 << 20)), "truncated|overlap"),
    "offset 2^64-64": (one_tensor(tensor("t", (8,), offset=(1 << 64) - 64)), "truncated|overlap"),
    "data truncated": (one_tensor(tensor("t", (64, 2))), "truncated"),
    "no data at all": (one_tensor(tensor("t", (8,)), data=b""), "truncated"),
    "same offset": (two_tensors(tensor("t", (8,)), tensor("u", (8,))), "same offset"),
    "overlap": (two_tensors(tensor("t", (16,)), tensor("u", (8,), offset=32)), "overlaps"),
    "overlap, listed backwards": (
        two_tensors(tensor("u", (8,), offset=32), tensor("t", (16,))),
        "overlaps",
    ),
    "duplicate tensor": (
        two_tensors(tensor("t", (8,)), tensor("t", (8,), offset=32)),
        "appears twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_malformed(name: str, tmp_path: Path) -> None:
    data, message = CASES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(CorruptFile, match=message) as caught:
        container.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 4_000_000


def test_the_valid_file_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(VALID)
    file = container.read(path)
    assert file.metadata == {"a": ("u32", 1), "s": ("str", "hello")}
    assert [(t.name, t.shape, t.nbytes) for t in file.tensors.values()] == [
        ("t", (2, 8), 64),
        ("u", (8,), 32),
    ]


@pytest.mark.parametrize("length", range(24, len(VALID), 5))
def test_every_truncation_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(VALID[:length])
    with pytest.raises(CorruptFile):
        container.read(path)


def test_an_unknown_type_is_read_as_raw_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(two_tensors(tensor("t", (8,), type_id=200), tensor("u", (8,), offset=64)))
    info = container.read(path).tensors["t"]
    assert info.type is None
    assert (info.type_id, info.nbytes) == (200, 64)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="absent"):
        container.read(tmp_path / "absent.gguf")
