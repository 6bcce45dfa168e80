"""Public vulnerabilities of model files, one test each, named by its number.

What GGUF files do is in :mod:`tests.safety.cves`. Not of files, and so not here: CVE-2026-21869
(llama.cpp's server).
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.fuzz import gguf_shape, models
from tests.safety.cves import GGUF, Case
from zenconvert import convert, open_checkpoint
from zenconvert.errors import CorruptFile, InvalidInput, UnsafePath, Unsupported, ZenError
from zenconvert.formats import safetensors_container
from zenconvert.formats.gguf import container
from zenconvert.formats.hf.tokenizer import TextEncoder
from zenconvert.texts.samples import Message, Sample
from zenconvert.texts.windows import render

PATTERN = b"\x5a\x35"
"""Half of a float16 that every weight of a test holds."""


@pytest.mark.parametrize("number", GGUF)
def test_gguf(number: str, tmp_path: Path) -> None:
    case: Case = GGUF[number]
    with pytest.raises(case.error, match=case.said):
        open_checkpoint(case.build(tmp_path))


def test_cve_2025_49847_and_52566_tokens_longer_than_an_int(tmp_path: Path) -> None:
    """A token whose length does not fit the signed number that it is cast to."""
    whole = models.gguf()
    tokens = ["x" * 70_000, *models.TOKENS[1:]]
    keys = [k if k.name != "tokenizer.ggml.tokens" else _with(k, tokens) for k in whole.keys]
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_shape.pack(gguf_shape.Gguf(keys, whole.infos, whole.data)))
    tokenizer = open_checkpoint(path).tokenizer
    assert len(tokenizer.tokens[0]) == 70_000
    assert isinstance(TextEncoder(tokenizer).encode("a b"), list)


def _with(key: gguf_shape.Key, value: list[str]) -> gguf_shape.Key:
    return gguf_shape.Key(key.name, key.kind, value)


@pytest.mark.parametrize("target", ["gguf:f16", "hf:f16"])
def test_cve_2026_7482_outputs_hold_nothing_but_the_source(target: str, tmp_path: Path) -> None:
    """Memory of the process in an output: every byte is the source's, a scale's or zero."""
    source = tmp_path / "x.gguf"
    whole = models.gguf()
    head = gguf_shape.pack(gguf_shape.Gguf(whole.keys, whole.infos, 0))
    source.write_bytes(head + PATTERN * (whole.data // 2))
    out = tmp_path / ("out.gguf" if target.startswith("gguf") else "out")
    convert(source, out, target)
    for name, begin, size, path in _tensors(out):
        data = path.read_bytes()[begin : begin + size]
        assert set(data) <= set(PATTERN) or "norm" in name, name  # norms are float32 there
    if out.is_file():
        data, end = out.read_bytes(), 0
        for _, begin, size, _ in sorted(_tensors(out), key=lambda row: row[1]):
            assert not end or not any(data[end:begin])
            end = begin + size
        assert not any(data[end:])


def _tensors(out: Path) -> list[tuple[str, int, int, Path]]:
    if out.is_file():
        infos = container.read(out).tensors.values()
        return [(i.name, i.offset, i.nbytes, out) for i in infos if not i.name.startswith("rope")]
    weights = out / "model.safetensors"
    entries = safetensors_container.read(weights).tensors.values()
    return [(e.name, e.offset, e.nbytes, weights) for e in entries]


TEMPLATES = {
    "CVE-2024-34359": (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
    ),
    "CVE-2026-5760": (
        "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch PWNED') }}",
        "{{ lipsum.__globals__['os'].popen('touch PWNED').read() }}",
        "{{ ''|attr('__class__') }}{{ x.__class__.__base__.__subclasses__() }}",
        "{% set a = namespace.__init__.__globals__ %}{{ a.sys.modules.os.system('x') }}",
    ),
}


@pytest.mark.parametrize("number", TEMPLATES)
def test_chat_templates(number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat template that walks from a value to the interpreter."""
    monkeypatch.chdir(tmp_path)
    sample = Sample("x", "en", "chat", None, (Message("user", "hello"),))
    for template in TEMPLATES[number]:
        try:
            text = render(sample, template, {})
        except InvalidInput:
            continue
        assert "function" not in text, template
        assert "class" not in text, template
    assert not any(tmp_path.iterdir())


class _Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("number", ["CVE-2025-32434", "CVE-2026-31214"])
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.safetensors", "tokenizer.json", "tokenizer.model"]
)
def test_pickles(number: str, name: str, tmp_path: Path) -> None:
    """Weights, or what is called so, that run code when they are unpickled."""
    folder = Path(shutil.copytree(models.folder(), tmp_path / "model"))
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
    protocol = 2 if number == "CVE-2025-32434" else 4
    (folder / name).write_bytes(pickle.dumps(_Runs(tmp_path / "PWNED"), protocol))
    with pytest.raises(ZenError):
        _ = open_checkpoint(folder).tokenizer
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("number", ["CVE-2024-5187", "CVE-2024-7776"])
def test_archives_are_never_unpacked(number: str, tmp_path: Path) -> None:
    """An archive whose members lead out of the folder that it is unpacked in."""
    source = tmp_path / ("model.tar.gz" if number == "CVE-2024-5187" else "model.onnx")
    (tmp_path / "x").write_text("x")
    with tarfile.open(source, "w:gz") as archive:
        archive.add(tmp_path / "x", arcname="../../PWNED")
    with pytest.raises(ZenError):
        open_checkpoint(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["x", source.name])


Edit = Callable[[onnx.ModelProto, Path], None]


def _entry(model: onnx.ModelProto, key: str) -> Any:
    tensor = next(t for t in model.graph.initializer if len(t.external_data))
    return next(e for e in tensor.external_data if e.key == key)


def _located(location: str) -> Edit:
    def edit(model: onnx.ModelProto, folder: Path) -> None:
        _entry(model, "location").value = location

    return edit


def _linked(model: onnx.ModelProto, folder: Path) -> None:
    data = folder / "model.onnx.data"
    data.rename(folder.parent / "secret")
    data.symlink_to(folder.parent / "secret")


def _hard_linked(model: onnx.ModelProto, folder: Path) -> None:
    os.link(folder / "model.onnx.data", folder.parent / "elsewhere")


def _set(key: str, value: str) -> Edit:
    def edit(model: onnx.ModelProto, folder: Path) -> None:
        _entry(model, key).value = value

    return edit


def _added(key: str, value: str) -> Edit:
    def edit(model: onnx.ModelProto, folder: Path) -> None:
        tensor = next(t for t in model.graph.initializer if len(t.external_data))
        tensor.external_data.add(key=key, value=value)

    return edit


ONNX: dict[str, tuple[Edit, type[ZenError]]] = {
    "CVE-2022-25882 data outside of the folder by dots": (_located("../../etc/passwd"), UnsafePath),
    "CVE-2024-27318 the same behind a name": (_located("x/../../secret"), UnsafePath),
    "CVE-2026-27489 the same by an absolute path": (_located("/etc/passwd"), UnsafePath),
    "CVE-2026-27489 the same with other strokes": (_located("..\\secret"), UnsafePath),
    "CVE-2026-34446 data that is hard-linked elsewhere": (_hard_linked, UnsafePath),
    "CVE-2026-34447 data that is a link": (_linked, UnsafePath),
    "GHSA-538c-55jv-c5g9 a key that is an attribute": (_added("__class__", "x"), CorruptFile),
    "GHSA-538c-55jv-c5g9 a negative offset": (_set("offset", "-1"), CorruptFile),
    "GHSA-538c-55jv-c5g9 a negative length": (_set("length", "-1"), CorruptFile),
}


@pytest.mark.parametrize("number", ONNX)
def test_onnx_external_data(number: str, tmp_path: Path) -> None:
    edit, error = ONNX[number]
    folder = Path(shutil.copytree(models.converted("onnx:f32"), tmp_path / "model"))
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    edit(model, folder)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(error):
        open_checkpoint(folder)


def _header(text: str, data: int = 0, claimed: int | None = None) -> bytes:
    size = len(text.encode()) if claimed is None else claimed
    return struct.pack("<Q", size) + text.encode() + bytes(data)


def _row(begin: int, end: int, shape: str = "[2]") -> str:
    return f'{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}'


SAFETENSORS = {
    "polyglot: a hole that holds another file": _header(f'{{"a":{_row(16, 24)}}}', 24),
    "polyglot: bytes after the last tensor": _header(f'{{"a":{_row(0, 8)}}}', 90),
    "overlap": _header(f'{{"a":{_row(0, 8)},"b":{_row(4, 12)}}}', 12),
    "twice": _header(f'{{"a":{_row(0, 8)},"a":{_row(8, 16)}}}', 16),
    "header of 2⁶⁴ - 1 bytes": _header("{}", 0, (1 << 64) - 1),
    "header of more than 100 MB": _header("{}", 0, 100_000_001),
    "shape that wraps around": _header(f'{{"a":{_row(0, 8, "[4611686018427387904,4]")}}}', 8),
    "NaN for a size": _header(f'{{"a":{_row(0, 8, "[NaN]")}}}', 8),
    "infinity for a size": _header(f'{{"a":{_row(0, 8, "[1e999]")}}}', 8),
    "negative size": _header(f'{{"a":{_row(0, 8, "[-2]")}}}', 8),
    "deep nesting": _header("[" * 100_000),
    "4400 digits": _header(f'{{"a":{_row(0, 8, "[" + "9" * 4400 + "]")}}}', 8),
}


@pytest.mark.parametrize("mechanism", SAFETENSORS)
def test_safetensors_headers(mechanism: str, tmp_path: Path) -> None:
    """What the audit of 2023 and the fuzzing of 2026 looked for."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[mechanism])
    with pytest.raises(CorruptFile):
        safetensors_container.read(path)


def test_unsupported_remote_code(tmp_path: Path) -> None:
    """A folder whose config asks for code of its own is never asked what that code says."""
    folder = Path(shutil.copytree(models.folder(), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')")
    with pytest.raises(Unsupported):
        open_checkpoint(folder)
    assert not (tmp_path / "PWNED").exists()
