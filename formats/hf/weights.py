"""Which files of an HF folder hold its weights, and their headers.

As transformers' ``from_pretrained``: ``model.safetensors`` is loaded where it is there, else the
files that ``model.safetensors.index.json`` names; nothing else is looked at. Pickled weights are
never opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zenconvert.base.source_files import is_there, size_of
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    SourceNotFound,
    UnsafePath,
    Unsupported,
    first_names,
    several,
)
from zenconvert.formats import safetensors_container
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.safetensors_container import Entry

INDEX: Final = "model.safetensors.index.json"
ADAPTER: Final = "adapter_config.json"
_OTHERS: Final = (
    "*.safetensors", "*.safetensors.index*.json", "pytorch_model*", "*.pth", "*.gguf", "*.onnx",
    "onnx/*.onnx", "tf_model*.h5", "flax_model*.msgpack",
)  # fmt: skip
_SHOWN: Final = 3


@dataclass(frozen=True)
class Weights:
    """The weight files of a folder and every tensor in them, in the order of their listing."""

    files: tuple[Path, ...]
    entries: dict[str, Entry]
    warnings: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    """Tensors that the index names and no file has → the file that it names."""


def find_weights(path: Path, stems: Sequence[str] = ("model",), named: object = None) -> Weights:
    """Read the headers of a folder's weights.

    ``stems`` are names that the weights may have before ``.safetensors``; the first found is read.
    ``named`` is the config's ``transformers_weights``, a file or an index that goes before them.
    Of an index the names of its files count, as for transformers, which takes all that is in them.
    Raises SourceNotFound, CorruptFile, UnsafePath or Unsupported.
    """
    if is_there(path / ADAPTER):
        raise adapter_problem(path)
    if isinstance(named, str):
        stems = (_contained(path, path / "config.json", named).name.partition(".safetensors")[0],)
    for stem in stems:
        weights, index = path / f"{stem}.safetensors", path / f"{stem}.safetensors.index.json"
        if is_there(weights):
            files, read, table = [weights], [weights], {}
        elif is_there(index):
            table = _weight_map(index)
            names = sorted(set(map(str, table.values())))
            files = [_contained(path, index, name) for name in names]
            read = [index, *files]
        else:
            continue
        entries = _entries(files)
        absent = {name: str(file) for name, file in table.items() if name not in entries}
        lies = _lies(index, table, entries) if table else ()
        return Weights(tuple(files), entries, (*lies, *_unread(path, read)), absent)
    raise _no_weights(path, stems)


def _unread(path: Path, read: Sequence[Path]) -> Iterable[str]:
    """One line on the weights that are there too."""
    found = {other for pattern in _OTHERS for other in path.glob(pattern)} - set(read)
    if found:
        found_first = sorted(found, key=lambda other: (other.suffix != ".json", other))
        names = [str(other.relative_to(path)) for other in found_first]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield (
            f"{path}: the weights are those of {read[0].name}, which transformers loads; not read: "
            f"{', '.join(names[:_SHOWN])}{more}"
        )


def _weight_map(index: Path) -> dict[str, Any]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"{index}: weight_map should map tensors to files")
    return weight_map


def _contained(folder: Path, index: Path, name: str) -> Path:
    if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise UnsafePath(f"{index}: {name!r} does not name a file of the folder")
    file = folder / name
    if not is_there(file):
        raise SourceNotFound(
            f"{index}: the weight file {name} is missing from {folder}{_half_way(folder)}"
        )
    size_of(file)
    return file


def _half_way(folder: Path) -> str:
    """A hint where a download stopped in the middle."""
    begun = [*folder.glob("*.incomplete"), *folder.glob(".cache/huggingface/download/*.incomplete")]
    return f"; {begun[0].name} is half a download: get the rest of it" if begun else ""


def _entries(files: Iterable[Path]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for file in files:
        # by name, as the safetensors library lists them
        for name, entry in sorted(safetensors_container.read(file).tensors.items()):
            if name in entries:
                raise CorruptFile(f"{file}: tensor {name!r} is also in {entries[name].path.name}")
            entries[name] = entry
    return entries


def _lies(index: Path, table: Mapping[str, Any], entries: Mapping[str, Entry]) -> Iterator[str]:
    """One line for every kind of difference between an index and its files."""
    for names, what in (
        ([n for n in table if n not in entries], "that it names stand in none of its files"),
        (sorted(set(entries) - set(table)), "of its files are not named"),
        (
            [n for n, file in table.items() if n in entries and entries[n].path.name != file],
            "stand in another file than it says",
        ),
    ):
        if names:
            yield (
                f"{index}: {several(len(names), 'tensor', 'tensors')} {what}, "
                f"{first_names(names)}: what the files hold is taken, as transformers does"
            )


def adapter_problem(path: Path) -> InvalidInput | Unsupported:
    """The error for a folder of a fine-tune that changes another model."""
    try:
        base = read_json(path / ADAPTER).get("base_model_name_or_path")
    except InvalidInput:
        base = None
    of = f" of {base}" if isinstance(base, str) and base else ""
    if any(path.glob("model*.safetensors")):
        return InvalidInput(
            f"{path}: there are both model weights and the adapter{of} of {ADAPTER}, and which of "
            f"them is meant cannot be told; move {ADAPTER} elsewhere to convert the weights alone"
        )
    return Unsupported(
        f"{path}: it holds an adapter (LoRA){of} and no model; merge it into that model first "
        "(peft: AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…))"
    )


def _no_weights(path: Path, stems: Sequence[str]) -> Unsupported | SourceNotFound:
    if any(path.glob("pytorch_model*.bin")):
        return Unsupported(
            f"{path}: only pickled weights (pytorch_model*.bin) are there, which may run code when "
            "opened; convert them to safetensors with transformers first"
        )
    if ggufs := sorted(path.glob("*.gguf")):
        names = ", ".join(str(file) for file in ggufs[:_SHOWN])
        return SourceNotFound(f"{path}: its weights are GGUF files; name one of them: {names}")
    for pattern, what in (
        ("*.pth", "the original release of its makers (*.pth, pickled)"),
        ("consolidated*.safetensors", "the original release of its makers (consolidated)"),
        ("tf_model*.h5", "TensorFlow's (tf_model.h5)"),
        ("flax_model*.msgpack", "Flax's (flax_model.msgpack)"),
    ):
        if any(path.glob(pattern)):
            return Unsupported(
                f"{path}: the only weights are {what}, which are not read; get the model as "
                "transformers saves it, with model.safetensors"
            )
    names = " nor ".join(f"{stem}.safetensors[.index.json]" for stem in stems)
    return SourceNotFound(f"{path}: there is no {names}{_what_instead(path)}{_half_way(path)}")


_SHARD: Final = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
_VARIANT: Final = re.compile(r"model\.[\w-]+?(-\d{5}-of-\d{5})?\.safetensors")


def _what_instead(path: Path) -> str:
    """What weights there are that nothing leads to, and what helps."""
    found = sorted(file.name for file in path.glob("*.safetensors"))
    shown = f"; there {'is' if len(found) == 1 else 'are'} {first_names(found)}" if found else ""
    if any(name.startswith("adapter_") for name in found):
        return f"{shown}: an adapter (LoRA), to be merged into its model first"
    if any(_VARIANT.fullmatch(name) for name in found):
        return f"{shown}: a variant; call it model.safetensors, or save the model again without one"
    if any(_SHARD.fullmatch(name) for name in found):
        return f"{shown}: shards without {INDEX}, which says that they belong together; get it, too"
    if found:
        return (
            f"{shown}: call it model.safetensors, or name it in config.json (transformers_weights)"
        )
    if any(path.rglob("*.distcp")):
        return (
            "; there are checkpoints of torch.distributed (*.distcp); `python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch` makes them whole: load that "
            "and save_pretrained(…)"
        )
    if any(path.glob("global_step*")) or (path / "zero_to_fp32.py").is_file():
        return (
            "; there are checkpoints of DeepSpeed (ZeRO): its zero_to_fp32.py writes the weights "
            "(--safe_serialization)"
        )
    return ""
