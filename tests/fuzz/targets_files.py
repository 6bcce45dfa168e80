"""Targets: GGUF, importance matrices, ONNX and statistics."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from tests.fuzz import gguf_shape, models, protobuf
from tests.fuzz.choices import Choices
from tests.fuzz.gguf_shape import F32, Gguf, Key
from tests.fuzz.hostile import INTEGERS, damaged, json_bytes, mutated
from tests.fuzz.models import Files
from tests.fuzz.target import Target
from tests.fuzz.targets_folders import planned
from zenconvert import open_checkpoint
from zenconvert.calib.statistics_layout import FORMAT, VERSION, Entry, lay_out
from zenconvert.calib.statistics_reader import open_statistics
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.imatrix import read_importance
from zenconvert.formats.gguf.tokenizer import tokenizer_from_metadata
from zenconvert.inspection import describe
from zenconvert.model import architecture
from zenconvert.model.architecture import TensorName

FILE: Final = "model.gguf"
_PARTS: Final = tuple(f"model-{n:05d}-of-00002.gguf" for n in (1, 2))


def _gguf(experts: int = 0) -> Callable[[Choices, Files], Files]:
    return lambda choices, base: {FILE: gguf_shape.mutated(models.gguf(experts), choices)}


def _one(experts: int = 0) -> Callable[[], Files]:
    return lambda: {FILE: gguf_shape.pack(models.gguf(experts))}


@cache
def _small_gguf() -> Gguf:
    """A file with a key of every kind and a few tensors."""
    numbers = [kind for kind in gguf_shape.KINDS if kind != "str"]
    keys = [Key("general.architecture", "str", "llama"), Key("x.words", "arr:str", ["a", "", "é"])]
    keys += [Key(f"x.{kind}", kind, 1) for kind in numbers]
    keys += [Key(f"x.{kind}s", f"arr:{kind}", [0, 1]) for kind in ("i32", "f32", "bool")]
    shapes = [("a.weight", (32, 2), F32), ("b.weight", (32,), gguf_shape.F16), ("c", (1,), F32)]
    return gguf_shape.with_tensors(keys, shapes)


def _container(choices: Choices, base: Files) -> Files:
    file = models.gguf() if choices.chance(8) else _small_gguf()
    return {FILE: gguf_shape.mutated(file, choices)}


def _open_gguf(path: Path) -> None:
    checkpoint = open_checkpoint(path / FILE)
    describe(checkpoint).as_dict()
    _ = checkpoint.tokenizer
    planned(path / FILE)


@cache
def _halves() -> tuple[Gguf, Gguf]:
    whole = models.gguf()
    split = [Key("split.count", "u16", 2), Key("split.tensors.count", "i32", len(whole.infos))]
    cut = len(whole.infos) // 2
    border = whole.infos[cut].offset
    first = Gguf([*whole.keys, *split, Key("split.no", "u16", 0)], whole.infos[:cut], border)
    rest = [replace(info, offset=info.offset - border) for info in whole.infos[cut:]]
    return first, Gguf([*split, Key("split.no", "u16", 1)], rest, whole.data - border)


def _split_base() -> Files:
    return dict(zip(_PARTS, map(gguf_shape.pack, _halves()), strict=True))


def _split(choices: Choices, base: Files) -> Files:
    number = choices.below(2)
    return {**base, _PARTS[number]: gguf_shape.mutated(_halves()[number], choices)}


@cache
def _vocabulary_file() -> Gguf:
    keys = [key for key in models.gguf().keys if key.name.startswith("tokenizer.")]
    return Gguf(keys, [])


def _vocabulary(choices: Choices, base: Files) -> Files:
    return {FILE: gguf_shape.mutated(_vocabulary_file(), choices)}


def _read_vocabulary(path: Path) -> None:
    tokenizer_from_metadata(container.read(path / FILE).metadata, where=str(path / FILE))


@cache
def _imatrix_file() -> Gguf:
    keys = [
        Key("general.type", "str", "imatrix"), Key("imatrix.datasets", "arr:str", ["a"]),
        Key("imatrix.chunk_count", "u32", 1), Key("imatrix.chunk_size", "u32", 512),
    ]  # fmt: skip
    return gguf_shape.with_tensors(
        keys,
        [
            ("blk.0.attn_q.weight.in_sum2", (32, 1), F32),
            ("blk.0.attn_q.weight.counts", (1, 1), F32),
        ],
    )


def _legacy() -> bytes:
    name = b"blk.0.attn_q.weight"
    values = struct.pack("<32f", *[1.0] * 32)
    return struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 3, 32) + values


def _imatrix(choices: Choices, base: Files) -> Files:
    if choices.below(2):
        return {"imatrix": gguf_shape.mutated(_imatrix_file(), choices)}
    return {"imatrix": damaged(_legacy(), choices)}


def _read_imatrix(path: Path) -> None:
    read_importance(path / "imatrix", _names())


@cache
def _names() -> list[TensorName]:
    """The tensors of the small model."""
    llama = architecture.for_model_type("llama")
    config = {"model_type": "llama", **models.SIZES, "rms_norm_eps": 1e-5}
    return list(llama.tensor_names(llama.sizes(config, where="test")))


ONNX: Final = ("onnx:f32", "onnx:int4", "onnx:int4-standard", "onnx:int8-asym")


def _onnx(target: str, family: str = "llama3", *, config: bool = True) -> Callable[[], Files]:
    def base() -> Files:
        files = models.files_of(models.converted(target, family))
        return {
            n: d for n, d in files.items() if n != "README.md" and (config or n != "config.json")
        }

    return base


def graph(choices: Choices, base: Files) -> Files:
    return {"model.onnx": protobuf.mutated(base["model.onnx"], choices)}


def _genai(choices: Choices, base: Files) -> Files:
    if choices.below(2):
        return {**graph(choices, base), "genai_config.json": base["genai_config.json"]}
    tree = mutated(models.table(base, "genai_config.json"), choices)
    return {"genai_config.json": json_bytes(tree, choices), "model.onnx": base["model.onnx"]}


def statistics_file() -> bytes:
    """Statistics of two languages and two windows."""
    facts = {
        "languages": ["en", "de"], "language_weights": [1.0, 2.0],
        "coverage": [{"tokens": 5}, {"tokens": 6}], "model": {"digest": "a" * 64},
        "inputs": {"layers.0.attn.q": ["layers.0.attn.q", "layers.0.attn.k"]},
    }  # fmt: skip
    metadata = {"format": FORMAT, "version": VERSION} | {k: json.dumps(v) for k, v in facts.items()}
    name = "layers.0.attn.q"
    entries = [
        Entry(f"{name}.tokens", "I64", (2,)), Entry(f"{name}.squares", "F32", (2, 4)),
        Entry(f"{name}.magnitudes", "F32", (2, 4)), Entry(f"{name}.moments", "F32", (10,)),
        Entry("layers.0.moe.routed", "I64", (2, 2)), Entry("states", "F32", (3, 2)),
        Entry("windows.ids", "I32", (3,)), Entry("windows.lengths", "I32", (2,)),
        Entry("windows.languages", "I32", (2,)),
    ]  # fmt: skip
    layout = lay_out(entries, metadata)
    data = bytearray(layout.size)
    data[: len(layout.header)] = layout.header
    lengths = np.array([2, 1], dtype="<i4").tobytes()
    begin = layout.offsets["windows.lengths"]
    data[begin : begin + 8] = lengths
    return bytes(data)


def _statistics(choices: Choices, base: Files) -> Files:
    data = base["x.stats"]
    size = int.from_bytes(data[:8], "little")
    header = models.parsed(data[8 : 8 + size])
    if choices.chance(4):
        numbers = bytearray(data[8 + size :])
        at = choices.below(len(numbers) // 4) * 4
        numbers[at : at + 4] = (choices.pick(INTEGERS) % 2**32).to_bytes(4, "little")
        return {"x.stats": data[: 8 + size] + numbers}
    facts = {k: json.loads(v) if v[:1] in "[{" else v for k, v in header["__metadata__"].items()}
    if choices.chance(3):
        header = mutated(header, choices)
    elif isinstance(facts := mutated(facts, choices), dict):
        texts = {
            k: v if isinstance(v, str) else json_bytes(v, choices).decode("utf-8", "replace")
            for k, v in facts.items()
        }
        header = {**header, "__metadata__": texts}
    text = json_bytes(header, choices)
    whole = len(text).to_bytes(8, "little") + text + data[8 + size :]
    return {"x.stats": damaged(whole, choices) if choices.chance(6) else whole}


def _read_statistics(path: Path) -> None:
    found = open_statistics(path / "x.stats")
    for module in list(found.modules)[:4]:
        found.of(module, moments=found.has_moments).importance()
    found.routed(0)
    for _ in zip(range(4), found.states(), strict=False):
        pass


TARGETS: Final = (
    Target("gguf", _one(), _gguf(), _open_gguf),
    Target("gguf-experts", _one(2), _gguf(2), _open_gguf),
    Target(
        "gguf-container", lambda: {FILE: gguf_shape.pack(_small_gguf())}, _container,
        lambda path: container.read(path / FILE), cheap=True,
    ),
    Target("gguf-split", _split_base, _split, lambda path: open_checkpoint(path / _PARTS[0])),
    Target(
        "vocabulary", lambda: {FILE: gguf_shape.pack(_vocabulary_file())}, _vocabulary,
        _read_vocabulary, cheap=True,
    ),
    Target("imatrix", lambda: {"imatrix": _legacy()}, _imatrix, _read_imatrix, cheap=True),
    *(
        Target(target.replace(":", "-"), _onnx(target), graph, open_checkpoint)
        for target in ONNX
    ),
    Target("onnx-genai", _onnx("onnx:int4", "qwen2", config=False), _genai, open_checkpoint),
    Target("statistics", lambda: {"x.stats": statistics_file()}, _statistics, _read_statistics),
)  # fmt: skip
