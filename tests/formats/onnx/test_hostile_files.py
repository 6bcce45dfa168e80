"""Files that lie about themselves are refused, by what is wrong with them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.onnx_runs import variant
from zenconvert import convert, open_checkpoint
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    MissingTensor,
    SourceNotFound,
    UnsafePath,
    Unsupported,
    ZenError,
)
from zenconvert.formats.onnx.read import container

Edit = Callable[[Any, Path], None]
DATA = "model.onnx.data"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is as it should be."""
    folder = tmp_path_factory.mktemp("good")
    convert(variant(folder / "source", "qwen2"), folder / "out", "onnx:int4-asym")
    return folder / "out"


@pytest.fixture
def copied(good: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(good, tmp_path / "out"))


def load(folder: Path) -> Any:
    return onnx.load(str(folder / "model.onnx"), load_external_data=False)


def first(model: Any, part: str = "q_proj.codes") -> Any:
    """The first initializer whose name has a part."""
    return next(t for t in model.graph.initializer if part in t.name)


def entry(tensor: Any, key: str) -> Any:
    return next(e for e in tensor.external_data if e.key == key)


def setting(key: str, value: str) -> Edit:
    """Change one entry of the external data of a tensor."""

    def edit(model: Any, folder: Path) -> None:
        entry(first(model), key).value = value

    return edit


def adding(key: str, value: str) -> Edit:
    def edit(model: Any, folder: Path) -> None:
        first(model).external_data.add(key=key, value=value)

    return edit


def linked_outside(model: Any, folder: Path) -> None:
    shutil.move(folder / DATA, folder.parent / "secret")
    (folder / DATA).symlink_to(folder.parent / "secret")


def linked_inside(model: Any, folder: Path) -> None:
    shutil.move(folder / DATA, folder / "other")
    (folder / DATA).symlink_to(folder / "other")


def linked_folder(model: Any, folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    shutil.copy(folder / DATA, folder.parent / "elsewhere")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    entry(first(model), "location").value = f"sub/{DATA}"


def linked_as_if_from_the_hub(model: Any, folder: Path) -> None:
    """Named like the Hub cache, and leading out of it."""
    (folder.parent / "secrets").mkdir()
    shutil.move(folder / DATA, folder.parent / "secrets" / "blobs")
    (folder / DATA).symlink_to(folder.parent / "secrets" / "blobs")


def hard_linked(model: Any, folder: Path) -> None:
    os.link(folder / DATA, folder.parent / "second name")


def a_folder(model: Any, folder: Path) -> None:
    (folder / "sub").mkdir()
    entry(first(model), "location").value = "sub"


def a_pipe(model: Any, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    entry(first(model), "location").value = "pipe"


def overlapping(model: Any, folder: Path) -> None:
    second = first(model, "k_proj.codes")
    at = int(entry(first(model), "offset").value)
    entry(second, "offset").value = str(at + 16)


def truncated(model: Any, folder: Path) -> None:
    os.truncate(folder / DATA, 100_000)


def missing_data(model: Any, folder: Path) -> None:
    (folder / DATA).unlink()


def twice(model: Any, folder: Path) -> None:
    model.graph.initializer.append(first(model))


def nameless(model: Any, folder: Path) -> None:
    first(model).name = ""


def reshaped(*shape: int) -> Edit:
    def edit(model: Any, folder: Path) -> None:
        tensor = first(model)
        del tensor.dims[:]
        tensor.dims.extend(shape)

    return edit


def inside_and_outside(model: Any, folder: Path) -> None:
    first(model).raw_data = b"\0" * 2048


def of_type(kind: int) -> Edit:
    def edit(model: Any, folder: Path) -> None:
        first(model).data_type = kind

    return edit


def with_attribute(name: str, value: int) -> Edit:
    def edit(model: Any, folder: Path) -> None:
        node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
        for attribute in node.attribute:
            if attribute.name == name:
                attribute.i = value

    return edit


def with_a_size_that_is(value: str | float) -> Edit:
    def edit(model: Any, folder: Path) -> None:
        node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
        kept = [a for a in node.attribute if a.name != "block_size"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("block_size", value)])

    return edit


def with_too_few_scales(model: Any, folder: Path) -> None:
    tensor = first(model, "q_proj.scales")
    tensor.dims[0] //= 2
    entry(tensor, "length").value = str(int(entry(tensor, "length").value) // 2)


def without_a_node(model: Any, folder: Path) -> None:
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
    model.graph.node.remove(node)


def with_a_computed_weight(model: Any, folder: Path) -> None:
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
    node.input[1] = "input_ids"


def with_float_zeros(model: Any, folder: Path) -> None:
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
    node.input[3] = node.input[2]


def with_a_foreign_index(model: Any, folder: Path) -> None:
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
    index = np.full(256, 99, dtype=np.int32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(index, "g_idx"))
    node.input.append("g_idx")


def with_an_order_that_is_none(model: Any, folder: Path) -> None:
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
    order = np.zeros(256, dtype=np.int64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(order, "order"))
    gather = helper.make_node("Gather", [node.input[0], "order"], ["gathered"], axis=-1)
    model.graph.node.insert(0, gather)
    node.input[0] = "gathered"


def sparse(model: Any, folder: Path) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def without_a_graph(model: Any, folder: Path) -> None:
    model.ClearField("graph")


def of_another_size(model: Any, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 256', '"hidden_size": 512'))


CASES: dict[str, tuple[Edit, type[ZenError], str]] = {
    "above the folder": (setting("location", "../secret"), UnsafePath, "does not name a file"),
    "above by a detour": (setting("location", "a/../../x"), UnsafePath, "does not name a file"),
    "an absolute path": (setting("location", "/etc/passwd"), UnsafePath, "does not name a file"),
    "a drive": (setting("location", "C:\\x"), UnsafePath, "does not name a file"),
    "a share": (setting("location", "\\\\host\\x"), UnsafePath, "does not name a file"),
    "backslashes": (setting("location", "..\\x"), UnsafePath, "does not name a file"),
    "the folder itself": (setting("location", "."), UnsafePath, "does not name a file"),
    "no location": (setting("location", ""), UnsafePath, "does not name a file"),
    "a zero byte": (setting("location", "model\0.data"), UnsafePath, "does not name a file"),
    "a link to the outside": (linked_outside, UnsafePath, "is a link"),
    "a link inside": (linked_inside, UnsafePath, "is a link"),
    "a linked folder": (linked_folder, UnsafePath, "is a link"),
    "a link to blobs elsewhere": (linked_as_if_from_the_hub, UnsafePath, "is a link"),
    "a hard link": (hard_linked, UnsafePath, "hard-linked"),
    "a folder as data": (a_folder, UnsafePath, "no plain file"),
    "a pipe as data": (a_pipe, UnsafePath, "no plain file"),
    "data that is missing": (missing_data, SourceNotFound, "is missing"),
    "a negative offset": (setting("offset", "-4096"), CorruptFile, "no size"),
    "an offset in words": (setting("offset", "0x10"), CorruptFile, "no size"),
    "an offset beyond numbers": (setting("offset", "9" * 40), CorruptFile, "no size"),
    "an offset past the end": (setting("offset", "999999999"), CorruptFile, "which has"),
    "a negative length": (setting("length", "-1"), CorruptFile, "no size"),
    "a length that is too short": (setting("length", "64"), CorruptFile, "calls for"),
    "a length that is too long": (setting("length", "999999"), CorruptFile, "calls for"),
    "overlapping data": (overlapping, CorruptFile, "overlap"),
    "a truncated file": (truncated, CorruptFile, "which has 100000"),
    "an unknown key": (adding("command", "rm"), CorruptFile, "odd or repeated key"),
    "a repeated key": (adding("offset", "0"), CorruptFile, "odd or repeated key"),
    "two tensors of one name": (twice, CorruptFile, "no name of its own"),
    "a tensor without name": (nameless, CorruptFile, "no name of its own"),
    "a negative dimension": (reshaped(-256, 8, 16), CorruptFile, "impossible shape"),
    "a huge dimension": (reshaped(1 << 40, 1 << 20), CorruptFile, "impossible shape"),
    "too many dimensions": (reshaped(*[1] * 40), CorruptFile, "impossible shape"),
    "another shape": (reshaped(256, 8, 8), CorruptFile, "calls for"),
    "data inside and outside": (inside_and_outside, CorruptFile, "inside and outside"),
    "text as weights": (of_type(TensorProto.STRING), Unsupported, "type 8"),
    "complex weights": (of_type(TensorProto.COMPLEX64), Unsupported, "type 14"),
    "signed codes": (of_type(TensorProto.INT8), CorruptFile, "codes of type i8"),
    "three bits": (with_attribute("bits", 3), CorruptFile, "bits 3"),
    "blocks of 48": (with_attribute("block_size", 48), CorruptFile, "block_size 48"),
    "blocks in words": (with_a_size_that_is("32"), CorruptFile, "should be an integer"),
    "blocks of a float": (with_a_size_that_is(32.0), CorruptFile, "should be an integer"),
    "negative columns": (with_attribute("K", -256), CorruptFile, "K -256"),
    "more columns than codes": (with_attribute("K", 1 << 40), CorruptFile, "calls for"),
    "more rows than codes": (with_attribute("N", 512), CorruptFile, "calls for"),
    "too few scales": (with_too_few_scales, CorruptFile, "calls for"),
    "a weight that is computed": (with_a_computed_weight, Unsupported, "computed"),
    "zeros that are floats": (with_float_zeros, Unsupported, "zero points of type f32"),
    "groups that do not exist": (with_a_foreign_index, CorruptFile, "names groups 99"),
    "an order that is none": (with_an_order_that_is_none, CorruptFile, "is no order"),
    "a missing layer": (without_a_node, MissingTensor, r"q_proj\.weight"),
    "sparse weights": (sparse, Unsupported, "sparse"),
    "no graph": (without_a_graph, CorruptFile, "no graph"),
    "another size than the config": (of_another_size, InvalidInput, "the config calls for"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_files_are_refused(name: str, copied: Path) -> None:
    edit, error, reason = CASES[name]
    model = load(copied)
    edit(model, copied)
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(error, match=reason):
        open_checkpoint(copied)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\x00\x01\x02\x03" * 8, "does not end in its message"),
        (b"\xff" * 64, "number that does not end"),
        (b"\x3a\xff\xff\xff\xff\x07", "does not end in its message"),
        (b"\x3b\x00", "wire type 3"),
        (b"\x08\x0a", "no graph"),
        (b"\x3a\x02\x12\x00" * 2, "one graph"),
        (b"\x3a\x04\x0a\x02\xff\xff", "cannot be parsed"),
        (b'{"not": "an onnx file"}', "wire type|does not end"),
    ],
)
def test_what_is_no_protobuf_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(CorruptFile, match=reason):
        open_checkpoint(tmp_path)


def test_a_tensor_has_its_data_once(tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    for again in (TensorProto(raw_data=b"\0" * 8), TensorProto(raw_data=b"\0" * 4000)):
        body = tensor.SerializeToString() + again.SerializeToString()
        graph = b"\x2a" + varint(len(body)) + body
        (tmp_path / "model.onnx").write_bytes(b"\x3a" + varint(len(graph)) + graph)
        with pytest.raises(CorruptFile, match="data twice"):
            container.read(tmp_path / "model.onnx")


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128, value >> 7]) if value > 127 else bytes([value])


def test_no_damage_escapes_as_another_error(good: Path, tmp_path: Path) -> None:
    """Bytes changed, lost and added at random: a model, or one of our errors."""
    folder = Path(shutil.copytree(good, tmp_path / "out"))
    whole, chance = (good / "model.onnx").read_bytes(), random.Random(7)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        (folder / "model.onnx").write_bytes(bytes(data))
        try:
            open_checkpoint(folder)
        except ZenError:
            refused += 1
    assert refused > 50


def test_the_links_of_the_hub_cache_are_followed(good: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(good.iterdir())):
        shutil.copy(file, repo / "blobs" / f"hash{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash{number}")
    assert open_checkpoint(snapshot).tensors.keys() == open_checkpoint(good).tensors.keys()


def test_weights_inside_the_graph_are_read_where_they_are(good: Path, tmp_path: Path) -> None:
    """The same model with all its data in the protobuf: nothing is copied into memory."""
    folder = Path(shutil.copytree(good, tmp_path / "out"))
    onnx.save(onnx.load(str(good / "model.onnx")), str(folder / "model.onnx"))
    (folder / DATA).unlink()
    found, expected = open_checkpoint(folder), open_checkpoint(good)
    assert found.files == (folder / "model.onnx",)
    for name in ("embed.weight", "norm.weight", "layers.1.ffn.up.weight"):
        from zenconvert.planning.recoding import logical_rows

        ours = logical_rows(expected.tensors[name], 0, expected.tensors[name].rows)
        theirs = logical_rows(found.tensors[name], 0, expected.tensors[name].rows)
        np.testing.assert_array_equal(ours, theirs)
