"""GGUF file(s) → checkpoint: headers only.

A model may be split into ``NAME-00001-of-00003.gguf`` …; the first file has the metadata. Experts
that GGUF stacks into one tensor become one tensor per expert, and rows of several modules in one
tensor a tensor of each; rows that llama.cpp keeps in another order carry that order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    MissingTensor,
    SourceNotFound,
    UnexpectedTensor,
    Unsupported,
    UnsupportedEncoding,
    first_names,
    several,
)
from zenconvert.formats.gguf import container, rope
from zenconvert.formats.gguf.container import GgufFile, KeyValue, TensorInfo
from zenconvert.formats.gguf.generation import settings_of
from zenconvert.formats.gguf.heads import joined
from zenconvert.formats.gguf.key_reader import KeyReader
from zenconvert.formats.gguf.keys import (
    hf_config,
    strange_keys,
    with_full_rotations,
)
from zenconvert.formats.gguf.settling import predicted_kl, settled, without_further
from zenconvert.formats.gguf.tokenizer import (
    carried_keys,
    special_ids,
    tokenizer_from_metadata,
)
from zenconvert.formats.gguf.window_keys import unread_window
from zenconvert.ggml.encoding import encoding_of
from zenconvert.model import architecture as arch
from zenconvert.model.architecture import Architecture, TensorName
from zenconvert.model.checkpoint import Checkpoint, Metadata, StoredTensor, Tensor
from zenconvert.model.gguf_family import GgufFamily
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.operations import ROWS, TILE, change_named, tiling
from zenconvert.model.row_order import RowOrder

SPLIT_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MAX_SPLITS: Final = 99_999
_OTHER_KINDS: Final = {
    "adapter": "an adapter (LoRA) and no model; merge it first (llama-export-lora)",
    "mmproj": "the image encoder of a model (mmproj); only language models are read",
    "clip": "an image encoder (CLIP); only language models are read",
    "imatrix": "an importance matrix and no model; give it with --importance",
    "controlvector": "a control vector and no model",
    "vocab": "a vocabulary and no model",
}
_STACK: Final = "_exps."
_BLOCK: Final = re.compile(r"^blk\.\d+\.")


def detect(path: Path) -> bool:
    """True when the path is a file that begins like GGUF."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == container.MAGIC or path.suffix == ".gguf"


def read_files(path: Path) -> list[GgufFile]:
    """The headers of a file and of all files it was split into, first file first.

    Raises SourceNotFound for a missing part and CorruptFile for parts that do not belong together.
    """
    file = container.read(path)
    keys = KeyReader(str(path), file.metadata)
    count = keys.integer("split.count", 0)
    if count <= 1:
        return [file]
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count or count > _MAX_SPLITS:
        raise CorruptFile(
            f"{path}: the file is one of {count} parts and its name should end in -00001-of-"
            f"{count:05d}.gguf"
        )
    files = []
    for number in range(1, count + 1):
        part = path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        if not part.is_file():
            raise SourceNotFound(f"{part}: part {number} of {count} is missing")
        files.append(container.read(part))
    for number, part_file in enumerate(files):
        part_keys = KeyReader(str(part_file.path), part_file.metadata)
        if (part_keys.integer("split.no"), part_keys.integer("split.count")) != (number, count):
            raise CorruptFile(f"{part_file.path}: its split.no should be {number} of {count}")
    return files


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF model: headers only.

    Raises SourceNotFound, CorruptFile, MissingTensor, UnexpectedTensor, InvalidInput,
    UnknownArchitecture or UnsupportedEncoding.
    """
    files = read_files(path)
    infos = _all_tensors(files)
    metadata = files[0].metadata
    keys = KeyReader(str(path), metadata)
    _refuse_other_kinds(path, metadata)
    name = keys.text("general.architecture")
    keys.prefix = f"{name}."
    pre = str(metadata.get("tokenizer.ggml.pre", ("str", ""))[1])
    mixture = keys.integer("expert_count", 0) > 0
    architecture = arch.for_gguf(name, metadata, experts=mixture, pre=pre)
    rows = _embedding(path, infos).shape[0]
    metadata, further = without_further(metadata, name, infos)
    infos = {stored: info for stored, info in infos.items() if stored not in set(further)}
    metadata, odd = settled(metadata, name, architecture.in_gguf, rows)
    keys = KeyReader(str(path), metadata, f"{name}.")
    odd += special_ids(metadata)[1] + unread_window(architecture, keys)
    config, strange = _config(architecture, keys, infos, metadata)
    hp = architecture.sizes(config, where=str(path))
    tensors, warnings = name_tensors(path, architecture, hp, infos)
    return Checkpoint(
        path=path,
        format="gguf",
        architecture=architecture,
        hyperparameters=hp,
        config=config,
        tensors=tensors,
        load_tokenizer=lambda: tokenizer_from_metadata(metadata, where=str(path)),
        metadata=Metadata(
            label=path.stem,
            generation={**_token_ids(metadata), **settings_of(metadata)},
            carried=_carried(metadata, architecture),
            predicted_kl=predicted_kl(metadata),
        ),
        files=tuple(f.path for f in files),
        further=len(further),
        warnings=(*warnings, *(f"{path}: {text}" for text in odd)),
        unexplained={**strange, **strange_keys(architecture, keys, hp)},
    )


def _refuse_other_kinds(path: Path, metadata: Mapping[str, KeyValue]) -> None:
    """Raise Unsupported for GGUF files that hold no model."""
    for key in ("general.type", "general.architecture"):
        _, kind = metadata.get(key, ("", None))
        if isinstance(kind, str) and kind in _OTHER_KINDS:
            raise Unsupported(f"{path}: it is {_OTHER_KINDS[kind]}")


def _all_tensors(files: list[GgufFile]) -> dict[str, TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in file.tensors.items():
            if name in infos:
                raise CorruptFile(
                    f"{file.path}: tensor {name!r} is also in {infos[name].path.name}"
                )
            infos[name] = info
    return infos


def _embedding(path: Path, infos: Mapping[str, TensorInfo]) -> TensorInfo:
    found = infos.get("token_embd.weight")
    if found is None:
        raise MissingTensor(f"{path}: there is no token_embd.weight; is this a vocabulary only?")
    return found


def _config(
    architecture: Architecture,
    keys: KeyReader,
    infos: Mapping[str, TensorInfo],
    metadata: Mapping[str, KeyValue],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config, and what no config can say."""
    scaling, strange = rope.scaling_from_keys(keys, architecture.in_gguf)
    factors = {n: infos[n] for n in (rope.LONG, rope.SHORT) if n in infos}
    if factors:
        scaling, strange = None, {}
    config = hf_config(
        architecture,
        keys,
        vocab=infos["token_embd.weight"].shape[0],
        tied="output.weight" not in infos,
        bias_flags=_bias_flags(architecture, infos),
        rope_scaling=scaling,
        stored=infos,
    )
    if (freqs := infos.get(rope.FREQS)) is not None:
        hp = architecture.sizes(config, where=keys.where)
        of = architecture.in_gguf
        found = None if scaling is not None else _scaling_from_tensor(freqs, hp, of)
        if found is None:
            strange[rope.FREQS] = "factors of rotary frequencies that no config can say"
        else:  # beside sizes that configs have in their scaling
            config["rope_scaling"] = {**(config["rope_scaling"] or {}), **found}
        now = architecture.sizes(config, where=keys.where)
        if hp.score_growth and now.growth_context != hp.growth_context:
            strange[f"{keys.prefix}{rope.ORIGINAL}"] = hp.growth_context
    if factors:
        config["rope_scaling"] = _longrope(architecture, config, keys, factors)
    if (config["rope_scaling"] or {}).get("rope_type") == "yarn":
        hp = architecture.sizes(config, where=keys.where)
        if rope.ends_first(hp):
            strange[f"{keys.prefix}{rope.ORIGINAL}"] = hp.original_context
    return {**with_full_rotations(config), **_token_ids(metadata)}, strange


def _longrope(
    architecture: Architecture,
    config: Mapping[str, Any],
    keys: KeyReader,
    infos: Mapping[str, TensorInfo],
) -> dict[str, Any]:
    """The scaling that a file's two tensors of factors are. Raises InvalidInput, CorruptFile."""
    hp = architecture.sizes(config, where=keys.where)
    if rope.LONGROPE not in architecture.in_gguf.scalings or len(infos) < 2:
        raise UnexpectedTensor(
            f"{keys.where}: {architecture.id} models have no {' and '.join(infos)} alone"
        )
    factors = {name: _factors(info, hp.rotary_dim // 2) for name, info in infos.items()}
    return rope.longrope_from_file(keys, factors, hp)


def _factors(info: TensorInfo, count: int) -> NDArray[np.float32]:
    """Factors of rotary frequencies, f32[count]. Raises InvalidInput."""
    if info.type is None or info.type.name != "f32" or info.shape != (count,):
        raise InvalidInput(f"{info.path}: {info.name} should be f32 [{count}], found {info.shape}")
    with info.path.open("rb") as file:
        file.seek(info.offset)
        return np.frombuffer(file.read(info.nbytes), dtype="<f4")


def _bias_flags(architecture: Architecture, infos: Mapping[str, TensorInfo]) -> set[str]:
    """Config keys that have to be set for the biases that are there to be used."""
    optional = [m for m in architecture.modules if m.bias_flag is not None]
    flags = {text: m.bias_flag for m in optional for text in (m.gguf, m.gguf_rows) if text}
    found = {flags.get(_BLOCK.sub("blk.{layer}.", n.removesuffix(".bias"))) for n in infos
             if n.endswith(".bias")}  # fmt: skip
    return {flag for flag in found if flag is not None}


def _token_ids(metadata: Mapping[str, KeyValue]) -> dict[str, int]:
    found = special_ids(metadata)[0]
    return {f"{role}_token_id": found[role] for role in ("bos", "eos", "pad") if role in found}


def _scaling_from_tensor(
    info: TensorInfo, hp: Hyperparameters, family: GgufFamily
) -> dict[str, Any] | None:
    """Scaling of a file's factors; None for factors that are of none that the family has."""
    factors = _factors(info, (hp.full_head_dim or hp.head_dim) // 2)
    if rope.PROPORTIONAL in family.scalings:
        return rope.share_from_factors(factors)
    found = rope.scaling_from_factors(factors, hp.rope_theta, hp.head_dim)
    if found is None and bool((factors == 1).all()):
        return {"rope_type": "default"}
    return found


def name_tensors(
    path: Path, architecture: Architecture, hp: Hyperparameters, infos: Mapping[str, TensorInfo]
) -> tuple[dict[str, Tensor], list[str]]:
    """Neutral tensors of GGUF tensors, in file order, and what is odd about them.

    Names, types and shapes are checked.
    """
    architecture.check_counts(hp, (info.shape for info in infos.values()), str(path))
    known: dict[str, list[TensorName]] = {}
    for name in architecture.tensor_names(hp):
        for stored in name.gguf_files:
            known.setdefault(stored, []).append(name)
        if name.gguf_rows is not None and name.gguf_rows in infos:
            known.setdefault(name.gguf_rows, []).append(name)
    single = _single_experts(known) if any(n not in known for n in infos) else {}
    unknown = [n for n in infos if n not in known and n not in single and n not in rope.DERIVED]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UnexpectedTensor(
            f"{infos[unknown[0]].path}: {architecture.id} models of {hp.layers} layers have no "
            f"tensor named {unknown[0]!r}{more}{_layout_hint(unknown)}"
        )
    tensors: dict[str, Tensor] = {}
    for info in infos.values():
        if info.name not in rope.DERIVED:
            names = known[info.name] if info.name in known else [single[info.name]]
            if names[0].gguf_values == info.name:
                continue  # it comes with the other half
            halved = names[0].gguf_values is not None
            parts = [joined(names[0], infos, hp)] if halved else _split(info, names, hp)
            for tensor in parts:
                if tensor.name in tensors:
                    raise CorruptFile(f"{info.path}: the data of {info.name!r} is there twice")
                tensors[tensor.name] = tensor
    missing = [
        n.gguf for names in known.values() for n in names if n.required and n.name not in tensors
    ]
    if missing:
        raise MissingTensor(
            f"{path}: {several(len(missing), 'tensor is', 'tensors are')} missing: "
            f"{first_names(list(dict.fromkeys(missing)))}"
        )
    old = sum(name in single for name in infos)
    text = f"{path}: {old} tensors of single experts are read, as files before April 2024 have them"
    return tensors, [text] if old else []


def _single_experts(known: Mapping[str, list[TensorName]]) -> dict[str, TensorName]:
    """``blk.0.ffn_up.3.weight`` …: the tensors of experts before llama.cpp stacked them."""
    return {
        _single(name): name
        for names in known.values()
        for name in names
        if name.expert is not None and _STACK in name.gguf
    }


def _layout_hint(names: Sequence[str]) -> str:
    """What layout tensors belong to that is known and not read."""
    for piece, what in (
        (".attn_qkv.", "q, k and v are kept in one tensor"),
        (".attn_kv_b.", "keys and values are made of one tensor, as in files before April 2025"),
        ("_exps.", "it has experts, and the metadata count none"),
        (".lora_", "an adapter (LoRA) is in the file; merge it first"),
        ("v.blk.", "an image encoder is in the file"),
        (".nextn.", "layers that predict further tokens (MTP) are in the file"),
    ):
        if any(piece in name for name in names):
            return f": {what}, which is not read"
    return ""


def _split(info: TensorInfo, names: list[TensorName], hp: Hyperparameters) -> Iterator[Tensor]:
    """One tensor, or one per expert of a stack and for the rows of every module."""
    experts = {name.expert for name in names} if info.name != _single(names[0]) else {None}
    rows = sum(name.shape[0] for name in names) // len(experts)
    expected = (rows, *names[0].shape[1:])
    if names[0].module.gguf_flat:
        expected = tuple(size for size in expected if size > 1)
    if rows == 1 and len(info.shape) == 1:
        expected = expected[-1:]  # ggml does not tell a matrix of one row from a vector
    if experts != {None} and not (len(experts) == 1 and info.shape == expected):
        expected = (len(experts), *expected)  # of one alone the same holds
    if info.shape != expected:
        raise InvalidInput(
            f"{info.path}: tensor {info.name!r} has shape {list(info.shape)}, "
            f"the metadata calls for {list(expected)}"
        )
    if info.type is None:
        raise UnsupportedEncoding(
            f"{info.path}: tensor {info.name!r} has the unknown ggml type {info.type_id}"
        )
    encoding, begin = encoding_of(info.type), info.offset
    for name in sorted(names, key=lambda name: (name.expert or 0, name.gguf_place)):
        order, change = stored_form(name, hp)
        tensor = Tensor(
            name.name,
            name.shape,
            encoding,
            StoredTensor(info.path, begin, info.name),
            order.inverse() if order is not None else None,
            change_named(change).undone_by if change is not None else None,
        )
        yield tensor
        begin += tensor.nbytes


def _single(name: TensorName) -> str:
    """The tensor of one expert, before llama.cpp stacked them."""
    return name.gguf.replace(_STACK, f".{name.expert}.")


def stored_form(name: TensorName, hp: Hyperparameters) -> tuple[RowOrder | None, str | None]:
    """The order in which GGUF stores the rows of a tensor, and what it does to their numbers; None
    where they are the logical ones."""
    moved = name.module.gguf_rows_moved
    change = tiling(hp) if name.module.gguf_change == TILE else name.module.gguf_change
    return None if moved is None else ROWS[moved](hp), change


def _carried(metadata: Mapping[str, KeyValue], architecture: Architecture) -> dict[str, KeyValue]:
    """Key/values that neither the config nor the tokenizer holds."""
    modelled = (f"{architecture.gguf}.", "tokenizer.", "split.", "quantize.")
    own = {
        "general.architecture", "general.file_type", "general.quantization_version",
        "general.alignment",
    }  # fmt: skip
    rest = {k: v for k, v in metadata.items() if k not in own and not k.startswith(modelled)}
    return {**rest, **carried_keys(metadata)}
