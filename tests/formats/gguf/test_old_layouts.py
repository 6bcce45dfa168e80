"""GGUF files that older tools wrote, and GGUF files that are no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.formats.gguf.raw import RawGguf, key_value, text
from tests.packed_folders import decoded
from zenconvert import open_checkpoint
from zenconvert.errors import CorruptFile, MissingTensor, UnexpectedTensor, Unsupported
from zenconvert.formats.gguf import container

Model = Callable[[str], Path]
Gguf = Callable[[str, str], Path]
Part = tuple[str, tuple[int, ...], int, bytes]


def unstacked(source: Path, out: Path, change: Callable[[list[Part]], None] | None = None) -> Path:
    """The file with one tensor per expert, as llama.cpp wrote it before April 2024."""
    file, data = container.read(source), source.read_bytes()
    parts: list[Part] = []
    for info in file.tensors.values():
        whole = data[info.offset : info.offset + info.nbytes]
        if "_exps." not in info.name:
            parts.append((info.name, info.shape, info.type_id, whole))
            continue
        size = len(whole) // info.shape[0]
        for number in range(info.shape[0]):
            name = info.name.replace("_exps.", f".{number}.")
            piece = whole[number * size : (number + 1) * size]
            parts.append((name, info.shape[1:], info.type_id, piece))
    if change is not None:
        change(parts)
    body, rows = b"", []
    for name, shape, type_id, piece in parts:
        rows.append((name, shape, type_id, len(body)))
        body += piece + bytes(-len(piece) % 32)
    out.write_bytes(container.pack_header(file.metadata, rows) + body)
    return out


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_experts_one_by_one(kind: str, gguf: Gguf, tmp_path: Path) -> None:
    stacked = gguf("mixtral", kind)
    old = unstacked(stacked, tmp_path / "old.gguf")
    with pytest.warns(UserWarning, match="24 tensors of single experts are read"):
        found = decoded(old)
    expected = decoded(stacked)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_missing_expert_and_one_too_many_are_named(gguf: Gguf, tmp_path: Path) -> None:
    source = gguf("mixtral", "f16")
    name = "blk.1.ffn_up.2.weight"

    def drop(parts: list[Part]) -> None:
        parts[:] = [part for part in parts if part[0] != name]

    def add(parts: list[Part]) -> None:
        parts.append(next((name.replace(".2.", ".7."), *p[1:]) for p in parts if p[0] == name))

    with pytest.raises(MissingTensor, match=r"1 tensor is missing: blk\.1\.ffn_up_exps"):
        open_checkpoint(unstacked(source, tmp_path / "a.gguf", drop))
    with pytest.raises(UnexpectedTensor, match=r"blk\.1\.ffn_up\.7\.weight"):
        open_checkpoint(unstacked(source, tmp_path / "b.gguf", add))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.type", "adapter", r"adapter \(LoRA\)"),
        ("general.type", "mmproj", "image encoder"),
        ("general.type", "imatrix", "--importance"),
        ("general.architecture", "clip", "image encoder"),
        ("general.architecture", "controlvector", "control vector"),
    ],
)
def test_files_without_a_language_model(key: str, value: str, words: str, tmp_path: Path) -> None:
    raw = RawGguf(key_values=[key_value(key, 8, text(value))])
    (tmp_path / "m.gguf").write_bytes(raw.pack())
    with pytest.raises(Unsupported, match=words):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("magic", [b"tjgg", b"lmgg", b"fmgg"])
def test_files_older_than_gguf_are_named(magic: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(magic + bytes(100))
    with pytest.raises(CorruptFile, match="before August 2023"):
        open_checkpoint(tmp_path / "m.gguf")
