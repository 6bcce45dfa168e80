"""Targets: single readers of a folder, without what others read and without planning.

Beside the whole paths of ``targets_folders`` and ``targets_files``: many times as many inputs in
the same time.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.fuzz import models, protobuf, reports
from tests.fuzz.choices import Choices
from tests.fuzz.hostile import damaged, json_bytes, mutated
from tests.fuzz.models import Files
from tests.fuzz.target import Target
from tests.fuzz.targets_files import graph
from tests.fuzz.targets_folders import (
    CONFIG_WORDS,
    PACKED_WORDS,
    WEIGHTS,
    attempt,
    card,
    json_files,
    packed_mutation,
)
from tests.fuzz.targets_texts import parquet_base
from tests.tiny import CONFIGS
from zenconvert import Report, open_checkpoint
from zenconvert.base.source_files import parse_json
from zenconvert.formats import quantization
from zenconvert.formats.gguf import generation
from zenconvert.formats.gguf.general import general_metadata
from zenconvert.formats.gguf.tokenizer import tokenizer_metadata
from zenconvert.formats.gptq import settings
from zenconvert.formats.hf import sentencepiece_model
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.hf.reader import folder_metadata
from zenconvert.formats.hf.towers import tower_config
from zenconvert.formats.onnx.read import container
from zenconvert.formats.onnx.read.protobuf_scan import scan
from zenconvert.formats.onnx.rotary import frequencies
from zenconvert.formats.registry import FORMATS
from zenconvert.inspection import describe
from zenconvert.model.architecture import architectures, for_model_type
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.target import Options
from zenconvert.model.target import Target as Aim
from zenconvert.publication.bom import BOM, bom_digests
from zenconvert.publication.release_report import REPORT, read_record, variants_of
from zenconvert.publication.signing import is_keyless, statement_digests
from zenconvert.texts.parquet_footer import columns, unfolded

_AIMS: Final = tuple(map(Aim.parse, ("gguf:f16", "hf:f32", "onnx:int4", "gptq:w4g32")))


def _only(base: Callable[[], Files], *suffixes: str) -> Callable[[], Files]:
    return lambda: {name: data for name, data in base().items() if name.endswith(suffixes)}


def _folder(family: str = "llama3") -> Callable[[], Files]:
    return lambda: models.files_of(models.folder(family))


def _read_config(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    describe(checkpoint).as_dict()
    for aim in _AIMS:
        attempt(partial(FORMATS[aim.format].facts, checkpoint, aim, Options()))
    attempt(lambda: frequencies(checkpoint.hyperparameters))


@cache
def _model() -> Checkpoint:
    """What the facts of a folder belong to."""
    found = open_checkpoint(models.folder())
    _ = found.tokenizer
    frequencies(found.hyperparameters)  # what it imports is nobody's fault
    return found


@cache
def _tokenizer_keys() -> dict[str, tuple[str, object]]:
    checkpoint = _model()
    return dict(tokenizer_metadata(checkpoint.tokenizer, checkpoint.architecture.in_gguf))


def _read_facts(path: Path) -> None:
    """The card, how to generate text, and what is carried from GGUF; as GGUF writes them."""
    metadata, _ = folder_metadata(path)
    checkpoint = replace(_model(), metadata=metadata)
    attempt(lambda: general_metadata(checkpoint, []))
    attempt(lambda: list(generation.facts(checkpoint, _tokenizer_keys())))


def _packed(kind: str) -> Callable[[], Files]:
    return lambda: models.files_of(models.converted(kind))


def _read_packed(path: Path) -> None:
    describe(open_checkpoint(path)).as_dict()


_FAMILIES: Final = tuple(CONFIGS)


@cache
def _small_graph() -> Files:
    """A graph with data of every kind, and a file with some of it."""
    import onnx
    from onnx import helper, numpy_helper

    def held(name: str, count: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.arange(count, dtype=np.float32), name)

    outside = onnx.TensorProto(name="outside", data_type=1, dims=[4], data_location="EXTERNAL")
    places = {"location": "model.onnx.data", "offset": "16", "length": "16"}
    outside.external_data.extend(
        onnx.StringStringEntryProto(key=key, value=value) for key, value in places.items()
    )
    tensors = [
        held("small", 4), held("large", 400), outside,
        helper.make_tensor("numbers", 7, [2], [1, 2]),
        helper.make_tensor("floats", 1, [2], [1.0, 2.0]),
    ]  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "small"], ["y"], name="/model/a/MatMul"),
        helper.make_node(
            "MatMulNBits", ["y", "large"], ["z"], domain="com.microsoft", bits=4, K=32, N=2
        ),
    ]
    ends = [helper.make_tensor_value_info(name, 1, [1, "n"]) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    return {"model.onnx": model.SerializeToString(), "model.onnx.data": bytes(32)}


def _typed_config(choices: Choices, base: Files) -> Files:
    """A changed config of some family, now and then said to be of another."""
    table = {**CONFIGS[choices.pick(_FAMILIES)], **models.SIZES}
    if choices.chance(4):
        table["model_type"] = choices.pick(tuple(architectures().values())).model_type
    return {"config.json": json_bytes(mutated(table, choices, CONFIG_WORDS), choices)}


def _read_sizes(path: Path) -> None:
    """What a config means, without weights: sizes, and the facts of one target."""
    file, model = path / "config.json", _model()
    config, wrapper = tower_config(read_json(file), file)
    architecture = for_model_type(str(config.get("model_type")), wrapper)
    hp = architecture.sizes(config, where=str(file))
    architecture.check_counts(hp, (t.shape for t in model.tensors.values()), str(file))
    found = replace(model, architecture=architecture, hyperparameters=hp, config=config)
    aim = _AIMS[file.stat().st_size % len(_AIMS)]
    FORMATS[aim.format].facts(found, aim, Options())


def _read_settings(path: Path) -> None:
    """How a folder says that it is quantized."""
    found = quantization.of_folder(path)
    if found is not None:
        settings.stems(found.table)
        settings.parse(path, found.table)


def _settings(choices: Choices, base: Files) -> Files:
    config = models.table(base, "config.json")
    table = mutated(config["quantization_config"], choices, PACKED_WORDS)
    return {"config.json": json_bytes({"quantization_config": table}, choices)}


def _record(choices: Choices, base: Files) -> Files:
    return {REPORT: json_bytes(mutated(models.table(base, REPORT), choices), choices)}


def _read_record(path: Path) -> None:
    variants_of(read_record(path / REPORT), REPORT)


def _release_file(name: str) -> Callable[[], Files]:
    return lambda: {name.rpartition("/")[2]: reports.release()[name]}


def _bom(choices: Choices, base: Files) -> Files:
    return {BOM: json_bytes(mutated(models.table(base, BOM), choices), choices)}


def _read_bom(path: Path) -> None:
    """As a check of a release does."""
    with suppress(KeyError, TypeError, AttributeError):
        bom_digests(parse_json(path / BOM))


_SIGNED: Final[dict[str, Any]] = {
    "predicate": {"resources": [{"name": "a", "digest": "b" * 64, "algorithm": "sha256"}] * 2}
}
_BUNDLE: Final[dict[str, Any]] = {
    "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
    "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
}


def _signature_of(statement: bytes, bundle: Any, choices: Choices) -> bytes:
    payload = b64encode(statement).decode()
    if isinstance(bundle, dict):
        bundle = {**bundle, "dsseEnvelope": {"payload": payload, "signatures": []}}
    return json_bytes(bundle, choices)


def _signed() -> Files:
    statement = json.dumps(_SIGNED).encode()
    return {"model.sig": _signature_of(statement, _BUNDLE, Choices(b""))}


def _signature(choices: Choices, base: Files) -> Files:
    if choices.below(2):
        statement = json_bytes(mutated(_SIGNED, choices), choices)
        return {"model.sig": _signature_of(statement, _BUNDLE, choices)}
    bundle = mutated(_BUNDLE, choices, ("dsseEnvelope", "publicKey", "certificate"))
    return {"model.sig": _signature_of(json.dumps(_SIGNED).encode(), bundle, choices)}


def _read_signature(path: Path) -> None:
    attempt(lambda: statement_digests(path / "model.sig"))
    is_keyless(path / "model.sig")


def _footer(choices: Choices, base: Files) -> Files:
    """A footer with changed bytes, its length put right, or the pages before it."""
    data = base["mine.parquet"]
    size = int.from_bytes(data[-8:-4], "little")
    pages, footer = data[4 : -8 - size], data[-8 - size : -8]
    if choices.below(3):
        footer = damaged(footer, choices)
    else:
        pages = damaged(pages, choices)
    end = len(footer).to_bytes(4, "little") + b"PAR1"
    return {"mine.parquet": b"PAR1" + pages + footer + end}


def _read_footer(path: Path) -> None:
    for column in columns(path / "mine.parquet"):
        unfolded(path / "mine.parquet", column)


def _read_report(path: Path) -> None:
    Report.from_json(path / "report.json")


def _report(choices: Choices, base: Files) -> Files:
    tree = mutated(models.table(base, "report.json"), choices, ("kl.mean", "top1", "en", "ar"))
    return {"report.json": json_bytes(tree, choices)}


def _pieces(choices: Choices, base: Files) -> Files:
    return {"tokenizer.model": protobuf.mutated(base["tokenizer.model"], choices)}


TARGETS: Final = (
    Target(
        "config-facts", _only(_folder(), "config.json", WEIGHTS),
        json_files("config.json", words=CONFIG_WORDS), _read_config,
    ),
    Target(
        "experts-facts", _only(_folder("mixtral"), "config.json", WEIGHTS),
        json_files("config.json", words=CONFIG_WORDS), _read_config,
    ),
    Target("card-facts", _only(_folder(), "README.md"), card, _read_facts, cheap=True),
    Target(
        "generation-facts", _only(_folder(), "generation_config.json", "zenconvert.json"),
        json_files("generation_config.json", "zenconvert.json"), _read_facts, cheap=True,
    ),
    *(
        Target(
            f"{kind}-facts", _only(_packed(f"{kind}:w4g32"), "config.json", WEIGHTS),
            packed_mutation(*PACKED_WORDS), _read_packed,
        )
        for kind in ("gptq", "awq")
    ),
    Target(
        "config-sizes", _only(_folder(), "config.json"), _typed_config, _read_sizes, cheap=True
    ),
    Target(
        "folder-metadata", _only(_folder(), "generation_config.json", "zenconvert.json"),
        json_files("generation_config.json", "zenconvert.json"), folder_metadata, cheap=True,
    ),
    Target(
        "packed-settings", _only(_packed("gptq:w4g32"), "config.json"), _settings, _read_settings,
        cheap=True,
    ),
    Target(
        "onnx-scan", _only(_packed("onnx:int4"), ".onnx"), graph,
        lambda path: scan(path / "model.onnx"),
    ),
    Target(
        "sentencepiece-model", lambda: {"tokenizer.model": models.sentencepiece()}, _pieces,
        lambda path: sentencepiece_model.read(path / "tokenizer.model"), cheap=True,
    ),
    Target(
        "report-file", lambda: {"report.json": reports.report_bytes(("en",))}, _report,
        _read_report,
    ),
    Target("release-record", _release_file(REPORT), _record, _read_record),
    Target("release-bom", _release_file(f"GGUF/{BOM}"), _bom, _read_bom, cheap=True),
    Target("signature", _signed, _signature, _read_signature, cheap=True),
    Target(
        "parquet-footer", parquet_base, _footer, _read_footer, cheap=True,
    ),
    Target(
        "onnx-small", _small_graph, graph, lambda path: container.read(path / "model.onnx"),
        cheap=True,
    ),
    Target(
        "onnx-container", _only(_packed("onnx:int4"), ".onnx", ".data"), graph,
        lambda path: container.read(path / "model.onnx"),
    ),
)  # fmt: skip
