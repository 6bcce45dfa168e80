"""HF folder → checkpoint.

::

    config.json                        what the model is
    model.safetensors                  all weights, or
    model.safetensors.index.json       {"weight_map": {tensor: file}} and the files it names
    generation_config.json, tokenizer*.json, tokenizer.model, chat_template.jinja, README.md, …

Source: transformers' from_pretrained. A weight map may only name files of the folder itself (which
may be links, as in the Hub cache). Pickled weights are never opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from zenconvert import architecture as arch
from zenconvert.architecture import Architecture, TensorName
from zenconvert.checkpoint import Checkpoint, Metadata, StoredTensor, Tensor
from zenconvert.encoding import Dense
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    MissingTensor,
    SourceNotFound,
    UnexpectedTensor,
    UnsafePath,
    Unsupported,
    first_names,
    several,
)
from zenconvert.formats import safetensors_container
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.hf.tokenizer import read_tokenizer
from zenconvert.formats.safetensors_container import Entry
from zenconvert.hyperparameters import Hyperparameters, from_config

INDEX: Final = "model.safetensors.index.json"
QUANTIZATION: Final = "quantization_config"
"""Key of config.json that says how weights are quantized."""
CARRIED: Final = "zenconvert.json"
"""Facts of a GGUF source that HF files have no place for."""

_SIDE_FILES: Final = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    CARRIED,
)
# buffers that old checkpoints stored and that are computed from the config
_IGNORED: Final = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")


@dataclass(frozen=True)
class Folder:
    """An HF folder with its config understood and the headers of its weights read."""

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    hyperparameters: Hyperparameters
    files: tuple[Path, ...]
    entries: dict[str, Entry]

    def checkpoint(
        self, format_name: str, tensors: dict[str, Tensor], warnings: Sequence[str] = ()
    ) -> Checkpoint:
        """The checkpoint that the folder holds; its config says nothing of how it is stored."""
        path, vocab = self.path, self.hyperparameters.vocab
        config = {key: value for key, value in self.config.items() if key != QUANTIZATION}
        return Checkpoint(
            path=path,
            format=format_name,
            architecture=self.architecture,
            hyperparameters=self.hyperparameters,
            config=config,
            tensors=tensors,
            load_tokenizer=lambda: read_tokenizer(path, vocab_size=vocab),
            metadata=folder_metadata(path),
            side_files=side_files(path),
            files=self.files,
            warnings=tuple(warnings),
        )


def detect(path: Path) -> bool:
    """True when the path is a folder with a config.json or such a file itself."""
    return (path / "config.json").is_file()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open an HF folder: config and safetensors headers only.

    Raises SourceNotFound, CorruptFile, UnsafePath, MissingTensor, UnexpectedTensor,
    UnknownArchitecture or Unsupported.
    """
    settings = read_json(path / "config.json").get(QUANTIZATION)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise Unsupported(
            f"{path}: weights quantized with {method or 'an unnamed method'} cannot be read"
        )
    folder = open_folder(path)
    return folder.checkpoint("hf", name_tensors(folder))


def open_folder(path: Path, stems: Sequence[str] = ("model",)) -> Folder:
    """Read the config and the safetensors headers of a folder. Raises as open_checkpoint.

    ``stems`` are names that the weights may have before ``.safetensors``; the first found is read.
    """
    config = read_json(path / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidInput(f"{path / 'config.json'}: model_type should be a string: {model_type!r}")
    architecture = arch.for_model_type(model_type)
    defaults = architecture.defaults_for(model_type)
    hp = from_config(config, defaults, where=str(path / "config.json"))
    for stem in stems:
        weights, index = path / f"{stem}.safetensors", path / f"{stem}.safetensors.index.json"
        if index.is_file():
            files = _indexed_files(path, index)
            entries = _entries(files)
            _check_index(index, entries)
        elif weights.is_file():
            files = [weights]
            entries = _entries(files)
        else:
            continue
        shapes = (entry.shape for entry in entries.values())
        architecture.check_counts(hp, shapes, str(path))
        entries = _with_first_names(entries, architecture.tensor_names(hp))
        return Folder(path, config, architecture, hp, tuple(files), entries)
    raise _no_weights(path, stems)


def _with_first_names(entries: dict[str, Entry], names: Iterable[TensorName]) -> dict[str, Entry]:
    """Entries under the first of the names that their modules may have."""
    first = {
        n.hf_also.removesuffix("weight"): n.hf.removesuffix("weight") for n in names if n.hf_also
    }
    if not any(name[: name.rfind(".") + 1] in first for name in entries):
        return entries
    renamed: dict[str, Entry] = {}
    for name, entry in entries.items():
        module = name[: name.rfind(".") + 1]
        fresh = first.get(module, module) + name.removeprefix(module)
        if fresh in renamed:
            raise CorruptFile(f"{entry.path}: {fresh!r} is there under two names")
        renamed[fresh] = entry
    return dict(sorted(renamed.items()))


def _indexed_files(path: Path, index: Path) -> list[Path]:
    """The safetensors files of an index in the order in which tensors are listed."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"{index}: weight_map should map tensors to files")
    return [_contained(path, index, name) for name in sorted(set(map(str, weight_map.values())))]


def _no_weights(path: Path, stems: Sequence[str]) -> Unsupported | SourceNotFound:
    if any(path.glob("pytorch_model*.bin")):
        return Unsupported(
            f"{path}: only pickled weights (pytorch_model*.bin) are there, which may run code when "
            "opened; convert them to safetensors with transformers first"
        )
    names = " nor ".join(f"{stem}.safetensors[.index.json]" for stem in stems)
    return SourceNotFound(f"{path}: there is no {names}")


def _contained(folder: Path, index: Path, name: str) -> Path:
    if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise UnsafePath(f"{index}: {name!r} does not name a file of the folder")
    file = folder / name
    if not file.is_file():
        raise SourceNotFound(f"{index}: the weight file {name} is missing from {folder}")
    return file


def _entries(files: Iterable[Path]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for file in files:
        # by name, as the safetensors library lists them
        for name, entry in sorted(safetensors_container.read(file).tensors.items()):
            if name in entries:
                raise CorruptFile(f"{file}: tensor {name!r} is also in {entries[name].path.name}")
            entries[name] = entry
    return entries


def _check_index(index: Path, entries: Mapping[str, Entry]) -> None:
    weight_map: dict[str, str] = read_json(index)["weight_map"]
    for name, file in weight_map.items():
        if name not in entries or entries[name].path.name != file:
            raise MissingTensor(f"{index}: tensor {name!r} should be in {file} and is not")
    if extra := sorted(set(entries) - set(weight_map)):
        raise UnexpectedTensor(
            f"{index}: tensors {extra[:5]} are in the files and not in the index"
        )


def name_tensors(folder: Folder, packed: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Neutral tensors of the folder's entries, in their order; names and shapes checked.

    ``packed`` gives, for every entry that is a piece of a grouped tensor, that tensor.
    """
    hp, packed = folder.hyperparameters, packed or {}
    known = {t.hf: t for t in folder.architecture.tensor_names(hp)}
    tensors: dict[str, Tensor] = {}
    for name, entry in folder.entries.items():
        if name in packed:
            tensors[packed[name].name] = packed[name]
            continue
        if name.endswith(_IGNORED):
            continue
        if name not in known:
            raise UnexpectedTensor(
                f"{entry.path}: {folder.architecture.id} models of {hp.layers} layers have no "
                f"tensor named {name!r}"
            )
        tensor = known[name]
        _check_shape(entry, tensor)
        stored = StoredTensor(entry.path, entry.offset, name)
        tensors[tensor.name] = Tensor(tensor.name, entry.shape, Dense(entry.dtype), stored)
    missing = [t.hf for t in known.values() if t.required and t.name not in tensors]
    if missing:
        raise MissingTensor(
            f"{folder.path}: {several(len(missing), 'tensor is', 'tensors are')} missing: "
            f"{first_names(missing)}"
        )
    return tensors


def _check_shape(entry: Entry, tensor: TensorName) -> None:
    if entry.shape != tensor.shape:
        raise InvalidInput(
            f"{entry.path}: tensor {entry.name!r} has shape {list(entry.shape)}, "
            f"the config calls for {list(tensor.shape)}"
        )
    if entry.dtype not in {"f32", "f16", "bf16", "f64"}:
        raise Unsupported(f"{entry.path}: tensor {entry.name!r} is stored as {entry.dtype}")


def side_files(path: Path) -> dict[str, Path]:
    """The small files of a folder that travel with its model."""
    return {name: path / name for name in _SIDE_FILES if (path / name).is_file()}


def folder_metadata(path: Path) -> Metadata:
    """What a folder says of its model beside the config."""
    generation = path / "generation_config.json"
    carried = path / CARRIED
    return Metadata(
        label=path.resolve().name,
        card=_card(path / "README.md"),
        generation=read_json(generation) if generation.is_file() else {},
        carried=_carried(carried) if carried.is_file() else {},
    )


def _card(path: Path) -> dict[str, Any]:
    """The YAML front matter of a model card, {} where there is none."""
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if not lines or lines[0].rstrip() != "---" or "---" not in (s.rstrip() for s in lines[1:]):
            return {}
        end = next(i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---")
        card = yaml.safe_load("\n".join(lines[1:end]))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CorruptFile(f"{path}: the model card cannot be read: {error}") from error
    return card if isinstance(card, dict) else {}


def _carried(path: Path) -> dict[str, tuple[str, Any]]:
    table = read_json(path).get("gguf", {})
    if not isinstance(table, dict) or not all(
        isinstance(v, list) and len(v) == 2 and isinstance(v[0], str) for v in table.values()
    ):
        raise CorruptFile(f"{path}: gguf should map keys to [type, value]")
    return {key: (kind, value) for key, (kind, value) in table.items()}
