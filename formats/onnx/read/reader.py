"""ONNX file or folder → checkpoint: our own files and those of other exporters.

Weights are found by the nodes that use them, so that it does not matter what initializers are
called; :mod:`zenconvert.formats.onnx.read.dialects` knows what exporters call modules.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from zenconvert.errors import InvalidInput, SourceNotFound
from zenconvert.formats.hf.foreign import foreign_warnings, without_foreign
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.hf.reader import folder_metadata, left_out, side_files
from zenconvert.formats.hf.tokenizer import read_tokenizer
from zenconvert.formats.onnx.read import container
from zenconvert.formats.onnx.read.assignment import name_tensors
from zenconvert.formats.onnx.read.graph_view import GraphView
from zenconvert.formats.onnx.read.qmoe import check_routing
from zenconvert.formats.onnx.read.recognition import recognise
from zenconvert.formats.onnx.read.source_config import CONFIG, check_rotations, config_of
from zenconvert.model import architecture as arch
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.sliding import windows

SUFFIX: Final = ".onnx"
GRAPH: Final = "model.onnx"
SUBFOLDER: Final = "onnx"
"""Where transformers.js has its graphs."""


def detect(path: Path) -> bool:
    """True for an ONNX file, and for a folder with one and without other weights."""
    if path.is_file():
        return path.suffix == SUFFIX
    others = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
    return bool(_graphs(path)) and not any(any(path.glob(pattern)) for pattern in others)


def _graphs(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}")) or sorted((folder / SUBFOLDER).glob(f"*{SUFFIX}"))


def open_checkpoint(path: Path, config_file: Path | None = None) -> Checkpoint:
    """Open a graph: its nodes and the places of its weights.

    ``config_file`` says what the model is, whatever the graph's own files say.

    Raises CorruptFile, UnsafePath, MissingTensor, UnexpectedTensor, Unsupported,
    UnknownArchitecture and InvalidInput.
    """
    graph = path if path.is_file() else _graph(path)
    folder = _folder(graph)
    file = container.read(graph)
    view = GraphView(file)
    found = list(recognise(view))
    config = read_json(config_file) if config_file else config_of(file, folder, view, found)
    where = config_file or folder / CONFIG
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidInput(f"{where}: model_type should be a string: {model_type!r}")
    architecture = arch.for_model_type(model_type)
    hp = architecture.sizes(config, where=str(where))
    shapes = (array.shape for array in file.initializers.values())
    architecture.check_counts(hp, shapes, str(where))
    check_routing(view, hp, over_all=architecture.block.routes_over_all)
    check_rotations(view, architecture, windows(architecture, config, hp))
    tensors, warnings = name_tensors(view, found, architecture, hp)
    metadata, odd = folder_metadata(folder)
    tied = "head.weight" not in tensors
    if tied != hp.tied:
        config, hp = {**config, "tie_word_embeddings": tied}, replace(hp, tied=tied)
    return Checkpoint(
        path=path,
        format="onnx",
        architecture=architecture,
        hyperparameters=hp,
        config=without_foreign(config),
        tensors=tensors,
        load_tokenizer=lambda: read_tokenizer(folder, vocab_size=hp.vocab),
        metadata=metadata,
        side_files=side_files(folder),
        files=file.files,
        warnings=(*warnings, *odd, *left_out(folder), *foreign_warnings(folder)),
        named_config=config_file,
    )


def _graph(folder: Path) -> Path:
    graphs = _graphs(folder)
    named = [g for g in graphs if g.name == GRAPH] or graphs
    if not named:
        raise SourceNotFound(f"{folder}: there is no {SUFFIX} file in it")
    if len(named) > 1:
        raise InvalidInput(
            f"{folder}: there are several graphs; name one of "
            f"{', '.join(str(g.relative_to(folder)) for g in named)}"
        )
    return named[0]


def _folder(graph: Path) -> Path:
    """The folder of the model: of its config and tokenizer."""
    outer = graph.parent.parent
    inside = graph.parent.name == SUBFOLDER and (outer / CONFIG).is_file()
    return outer if inside and not (graph.parent / CONFIG).is_file() else graph.parent
