"""HF folder → checkpoint.

::

    config.json                        what the model is
    model.safetensors                  all weights, or
    model.safetensors.index.json       {"weight_map": {tensor: file}} and the files it names
    generation_config.json, tokenizer*.json, tokenizer.model, chat_template.jinja, README.md, …

Source: transformers' from_pretrained. A weight map may only name files of the folder itself (which
may be links, as in the Hub cache); side files that are links out of the folder are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from zenconvert.base.escaping import is_plain
from zenconvert.base.source_files import hub_id, is_there, refuse_links_out, size_of
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    MissingTensor,
    Unsupported,
    first_names,
    several,
)
from zenconvert.formats.gguf.container import is_key_value
from zenconvert.formats.hf import spare
from zenconvert.formats.hf.foreign import foreign_warnings, without_foreign
from zenconvert.formats.hf.further import tensors_of
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.hf.side_facts import (
    CARD,
    GENERATION,
    is_carried,
    read_card,
    read_generation,
)
from zenconvert.formats.hf.tensor_names import Renaming, foreign
from zenconvert.formats.hf.tokenizer import read_tokenizer
from zenconvert.formats.hf.tokenizer_files import FURTHER_TEMPLATES
from zenconvert.formats.hf.towers import tower_config, tower_entries
from zenconvert.formats.hf.weights import find_weights
from zenconvert.formats.quantization import QUANTIZATION
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model import architecture as arch
from zenconvert.model.architecture import Architecture, TensorName
from zenconvert.model.checkpoint import Checkpoint, Metadata, StoredTensor, Tensor
from zenconvert.model.encoding import DENSE
from zenconvert.model.hyperparameters import Hyperparameters

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
_OPTIONAL: Final = (CARD, GENERATION)
"""Side files that nothing depends on, whatever they are."""
_UNNAMED: Final = re.compile(r"[0-9a-f]{40}|snapshots|")
"""What a commit is called, and the folder of the Hub cache that has them."""
# buffers that old checkpoints stored and that are computed from the config
_FLOATS: Final = frozenset({"f32", "f16", "bf16", "f64"})
_IGNORED: Final = (
    ".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached",
    ".attention.masked_bias", ".attention.bias", ".self_attn.masked_bias", ".self_attn.bias",
)  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """An HF folder with its config understood and the headers of its weights read."""

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    hyperparameters: Hyperparameters
    files: tuple[Path, ...]
    entries: dict[str, Entry]
    warnings: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    """What the folder holds beside the language model."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Tensors that the index names and no file has → the file that it names."""
    further: int = 0
    """Tensors of layers that predict further tokens."""
    predicting_entries: Mapping[str, Entry] = field(default_factory=dict)
    """Those of layers behind the last, as they are stored."""
    predicting: Mapping[str, Tensor] = field(default_factory=dict)
    """Those that other folders can keep, by their names."""
    predicting_said: Mapping[str, Any] = field(default_factory=dict)
    """What the config says of them."""

    def checkpoint(
        self, format_name: str, tensors: dict[str, Tensor], warnings: Sequence[str] = ()
    ) -> Checkpoint:
        """The checkpoint that the folder holds; its config says nothing of how it is stored."""
        path, vocab = self.path, self.hyperparameters.vocab
        carried = side_files(path)
        metadata, odd = folder_metadata(path)
        config = {k: v for k, v in without_foreign(self.config).items() if k != QUANTIZATION}
        return Checkpoint(
            path=path,
            format=format_name,
            architecture=self.architecture,
            hyperparameters=self.hyperparameters,
            config=config,
            tensors=tensors,
            load_tokenizer=lambda: read_tokenizer(path, vocab_size=vocab),
            metadata=metadata,
            side_files=carried,
            files=self.files,
            beside=self.beside,
            further=self.further,
            predicting=self.predicting,
            predicting_said=self.predicting_said,
            warnings=(
                *self.warnings,
                *warnings,
                *odd,
                *left_out(path),
                *foreign_warnings(path),
            ),
        )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open an HF folder of floats: config and safetensors headers only.

    Raises SourceNotFound, CorruptFile, UnsafePath, MissingTensor, UnexpectedTensor,
    UnknownArchitecture or Unsupported.
    """
    folder = without_spare_biases(open_folder(path))
    return folder.checkpoint("hf", name_tensors(folder))


def without_spare_biases(folder: Folder) -> Folder:
    """The folder without biases that the config does not announce, as transformers loads it."""
    architecture, hp, config = folder.architecture, folder.hyperparameters, folder.config
    spare = {
        name.hf: name.module.bias_flag
        for name in (architecture.tensor_names(hp) if architecture.bias_flags else ())
        if not name.is_weight
        and name.hf in folder.entries
        and not architecture.announces(config, name.module)
    }
    if not spare:
        return folder
    warning = (
        f"{folder.path}: {several(len(spare), 'bias is', 'biases are')} left out, "
        f"{first_names(list(spare))}: {' and '.join(sorted({f for f in spare.values() if f}))} is "
        "not true in config.json, and transformers goes by that"
    )
    entries = {name: entry for name, entry in folder.entries.items() if name not in spare}
    return replace(folder, entries=entries, warnings=(*folder.warnings, warning))


def open_folder(path: Path, stems: Sequence[str] = ("model",)) -> Folder:
    """Read the config and the safetensors headers of a folder. Raises as open_checkpoint.

    ``stems`` are names that the weights may have before ``.safetensors``; the first found is read.
    """
    config, wrapper = tower_config(read_json(path / "config.json"), path / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidInput(f"{path / 'config.json'}: model_type should be a string: {model_type!r}")
    architecture = arch.for_model_type(model_type, wrapper)
    hp = architecture.sizes(config, where=str(path / "config.json"))
    weights = find_weights(path, stems, config.pop("transformers_weights", None))
    named, beside = weights.entries, tuple[str, ...]()
    if wrapper is not None:
        named, beside = tower_entries(named, wrapper)
    architecture.check_counts(hp, (entry.shape for entry in named.values()), str(path))
    renaming = Renaming(named, architecture, hp)
    entries = renaming.run()
    if renaming.untied:
        config, hp = {**config, "tie_word_embeddings": False}, replace(hp, tied=False)
    said: dict[str, Any] = {}
    if renaming.further:
        keys = architecture.keys("further_layers")
        said = {k: v for k, v in config.items() if k in keys}
        config = {k: 0 if k in keys else v for k, v in config.items()}
    warnings = (*weights.warnings, *(f"{path}: {text}" for text in renaming.warnings))
    return Folder(
        path, config, architecture, hp, weights.files, entries, warnings, beside, weights.absent,
        renaming.further, renaming.predicting, tensors_of(renaming.predicting), said,
    )  # fmt: skip


def name_tensors(
    folder: Folder, packed: Mapping[str, Sequence[Tensor]] | None = None
) -> dict[str, Tensor]:
    """Neutral tensors of the folder's entries, in their order; names and shapes checked.

    ``packed`` gives, for every entry that is a piece of grouped tensors, these.
    """
    hp, packed = folder.hyperparameters, packed or {}
    known = {t.hf: t for t in folder.architecture.tensor_names(hp)}
    tensors: dict[str, Tensor] = {}
    entries = {n: e for n, e in folder.entries.items() if n in packed or not n.endswith(_IGNORED)}
    if unknown := [name for name in entries if name not in known and name not in packed]:
        raise foreign(str(folder.path), folder.architecture.id, hp.layers, unknown, known)
    for name, entry in entries.items():
        if name in packed:
            for found in packed[name]:
                if tensors.setdefault(found.name, found) != found:
                    raise CorruptFile(f"{entry.path}: {name} is there beside another of its rows")
            continue
        tensor = known[name]
        if entry.shape != tensor.shape or entry.dtype not in _FLOATS:
            _check_shape(entry, tensor)
        stored = StoredTensor(entry.path, entry.offset, entry.name, entry.stride, entry.turn)
        tensors[tensor.name] = Tensor(tensor.name, entry.shape, DENSE[entry.dtype], stored)
    missing = [t for t in known.values() if t.required and t.name not in tensors]
    if missing:
        hint = ""
        if file := folder.absent.get(missing[0].hf):
            hint = f": the index names {file} for it, which has none; get that file again"
        elif [t.module.role for t in missing] == ["head"]:
            hint = (
                ": tie_word_embeddings of config.json is not true, so it is not the embedding; the "
                "folder holds a base model, and its output head would be random"
            )
        raise MissingTensor(
            f"{folder.path}: {several(len(missing), 'tensor is', 'tensors are')} missing: "
            + first_names([t.hf for t in missing])
            + hint
        )
    return tensors


def _check_shape(entry: Entry, tensor: TensorName) -> None:
    if entry.shape != tensor.shape:
        raise InvalidInput(
            f"{entry.path}: tensor {entry.name!r} has shape {list(entry.shape)}, "
            f"the config calls for {list(tensor.shape)}"
        )
    if entry.dtype not in _FLOATS:
        raise Unsupported(
            f"{entry.path}: tensor {entry.name!r} is stored as {entry.dtype}, and weights are read "
            "as floats of 16 to 64 bits where config.json has no quantization_config that says more"
        )


def side_files(path: Path) -> dict[str, Path]:
    """The small files of a folder that travel with its model.

    Raises UnsafePath for one that is a link out of the folder, InvalidInput for what is no file.
    """
    return {name: file for name, file in _there(path).items() if spare.usable(path, name)}


def left_out(path: Path) -> list[str]:
    """A warning for every small file that does not travel, as it is not what its name says."""
    found = {name: spare.instead(path, name) for name in _there(path)}
    return [f"{path / name}: it is {what}. It is left out" for name, what in found.items() if what]


def _there(path: Path) -> dict[str, Path]:
    found = {name: path / name for name in _SIDE_FILES if is_there(path / name)}
    further = sorted((path / FURTHER_TEMPLATES).glob("*.jinja"))
    found |= {f"{FURTHER_TEMPLATES}/{file.name}": file for file in further}
    for name, file in found.items():
        if not is_plain(name) or "\n" in name:
            raise InvalidInput(
                f"{file}: its name holds signs that a terminal obeys or does not show; rename it"
            )
        refuse_links_out(path, file)
        if name not in _OPTIONAL:
            size_of(file)
    if GENERATION in found and not is_carried(found[GENERATION]):
        del found[GENERATION]
    return {name: file for name, file in found.items() if file.is_file()}


def folder_metadata(path: Path) -> tuple[Metadata, list[str]]:
    """What a folder says of its model beside the config, and what is odd about it."""
    carried = path / CARRIED
    card, odd_card = read_card(path)
    generation, odd_generation = read_generation(path)
    metadata = Metadata(
        label=hub_id(path) or _label(path),
        card=card,
        generation=without_foreign(generation),
        carried=_carried(carried) if carried.is_file() else {},
    )
    return metadata, [*odd_card, *odd_generation]


def _label(path: Path) -> str:
    """The name of a folder, or of the first around it that is called by no commit."""
    place = path.resolve()
    named = (p.name for p in (place, *place.parents) if not _UNNAMED.fullmatch(p.name))
    return next(named, "").replace("___", ".") or place.name  # how ModelScope writes dots


def _carried(path: Path) -> dict[str, tuple[str, Any]]:
    table = read_json(path).get("gguf", {})
    if not isinstance(table, dict) or not all(
        isinstance(v, list) and len(v) == 2 and isinstance(v[0], str) for v in table.values()
    ):
        raise CorruptFile(f"{path}: gguf should map keys to [type, value]")
    for key, (kind, value) in table.items():
        if not is_key_value(key, kind, value):
            raise CorruptFile(
                f"{path}: {key!r:.100} should hold a value of the GGUF type that it names, found "
                f"{kind!r:.40} {value!r:.100}"
            )
    return {key: (kind, value) for key, (kind, value) in table.items()}
