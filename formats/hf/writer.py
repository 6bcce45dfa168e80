"""Checkpoint → HF folder: safetensors of one dtype, config, tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from math import prod
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import CorruptFile, UsageError
from zenconvert.formats import safetensors_container
from zenconvert.formats.fp4_packing import ENCODING, METHOD, StackCodec
from zenconvert.formats.hf.foreign import FILES, foreign_keys, without_foreign
from zenconvert.formats.hf.further import choices_of
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.hf.reader import CARRIED
from zenconvert.formats.hf.spare import what_is
from zenconvert.formats.hf.tokenizer_json import write_tokenizer
from zenconvert.formats.hf.weights import INDEX
from zenconvert.formats.quantization import QUANTIZATION
from zenconvert.formats.safetensors_container import Kind
from zenconvert.model import meaning, sliding
from zenconvert.model.architecture import Architecture, TensorName
from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.model.encoding import BF16, DENSE, F16, F32, Dense, Grouped
from zenconvert.model.grouped import GroupedCodec
from zenconvert.model.layout import Choice, Layout, OutputFile, Slot
from zenconvert.model.meaning import Fact
from zenconvert.model.pieces import Piece
from zenconvert.model.rotations import is_flat, rope_type
from zenconvert.model.target import Options, Target
from zenconvert.model.tensor_names import in_one_tensor, joined_shape, stack_shape

DTYPES: Final[dict[str, Dense]] = {"bf16": BF16, "f16": F16, "f32": F32}
TYPES: Final = (*DTYPES, METHOD)
TORCH_NAMES: Final = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
SHARD_SIZE: Final = 5_000_000_000
"""Default largest weight file, as transformers has it."""

_LOCAL_KEYS: Final = ("quantization_config", "transformers.js_config")


def choose(
    checkpoint: Checkpoint, target: Target, options: Options, *, importance: bool
) -> list[Choice]:
    """Every tensor in the target's dtype, in source order. Raises UsageError."""
    _refuse_foreign_options(options, importance)
    refuse_pre(checkpoint, options)
    in_blocks = target.type == METHOD
    dtype = BF16 if in_blocks else _dtype(target.type or "bf16")
    choices = []
    for stored, names, parts in in_files(checkpoint, stacked=True):
        role = names[0].module.role
        override = options.embedding_type if role == "embed" else None
        override = options.output_type if role == "head" else override
        encoding, why = _override(stored, options) or (dtype, f"{dtype} for every tensor")
        if override is not None:
            encoding, why = _dtype(override), f"{override} was asked for"
        module = names[0].module
        turned = module.hf_turned and stored == names[0].hf_stack
        if in_blocks and turned and names[0].is_weight:
            choices.append(_in_blocks(stored, names, parts))
            continue
        choices.append(
            Choice(
                stored,
                parts,
                joined_shape(names),
                encoding,
                why=why,
                transposed=turned,
                turns=module.hf_stack_part[1] if turned else 1,
            )
        )
    if in_blocks and not any(choice.lines for choice in choices):
        raise UsageError(
            f"hf:{METHOD} is for families whose files have experts in it; choose from "
            f"{', '.join(DTYPES)}"
        )
    return [*choices, *zero_biases(checkpoint, dtype), *choices_of(checkpoint, dtype)]


def _in_blocks(stored: str, names: Sequence[TensorName], parts: tuple[Tensor, ...]) -> Choice:
    """A stack of experts in two arrays of blocks, whose lines are rows of the modules in turn."""
    experts, columns, rows = stack_shape(names)
    if columns % ENCODING.block_size:
        raise UsageError(f"{stored}: rows of {columns} cannot be stored in blocks of {METHOD}")
    return Choice(
        stored,
        parts,
        (experts, rows, columns),
        ENCODING,
        why=f"experts are stored in {METHOD}",
        turns=names[0].module.hf_stack_part[1],
        lines=StackCodec(),
    )


def in_files(
    checkpoint: Checkpoint, *, stacked: bool
) -> Iterator[tuple[str, list[TensorName], tuple[Tensor, ...]]]:
    """What transformers calls every tensor of a file, and the tensors whose rows it holds, in
    source order; a tensor of several stands where the first of these does.

    ``stacked``: experts stand in one tensor in families that have them so.
    """
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    joined, done = in_one_tensor(names, stacked=stacked), set[str]()
    if not joined:
        alone = {n.name: n for n in names}
        for tensor in checkpoint.tensors.values():
            name = alone[tensor.name]
            yield name.hf, [name], (tensor,)
        return
    known = {n.name: (n.hf, [n]) for n in names}
    known |= {part.name: (stored, parts) for stored, parts in joined.items() for part in parts}
    for tensor in checkpoint.tensors.values():
        stored, parts = known[tensor.name]
        if stored not in done:
            done.add(stored)
            yield stored, parts, tuple(checkpoint.tensors[p.name] for p in parts)


def zero_biases(checkpoint: Checkpoint, encoding: Dense) -> list[Choice]:
    """Biases that the config announces for several modules and that some of these have not.

    transformers takes them as zero with a warning, others refuse the folder.
    """
    architecture, found = checkpoint.architecture, []
    for name in architecture.tensor_names(checkpoint.hyperparameters):
        announced = not name.is_weight and architecture.announces(checkpoint.config, name.module)
        if announced and name.name not in checkpoint.tensors:
            why = "zeros, as the config calls for a bias here"
            data = bytes(prod(name.shape) * encoding.numpy.itemsize)
            found.append(Choice(name.hf, (), name.shape, encoding, why=why, derived=data))
    return found


def refuse_pre(checkpoint: Checkpoint, options: Options) -> None:
    """Raise UsageError for a pre-tokenizer where the source's own files say how text is cut."""
    if options.pre_tokenizer is not None and checkpoint.side_files is not None:
        raise UsageError(
            f"--pre makes no sense here: the tokenizer files of {checkpoint.path} travel unchanged "
            "and say themselves how text is cut"
        )


def _override(name: str, options: Options) -> tuple[Dense, str] | None:
    for pattern, kind in options.tensor_types:
        if re.search(pattern, name):
            return _dtype(kind), f"the name matches {pattern!r}"
    return None


def _dtype(name: str) -> Dense:
    if name not in DTYPES:
        raise UsageError(
            f"HF weights cannot be stored as {name!r}; choose from {', '.join(DTYPES)}"
        )
    return DTYPES[name]


def _refuse_foreign_options(options: Options, importance: bool) -> None:
    foreign = {
        "--pure": options.pure,
        "--layout": options.layout is not None,
        "--importance (or --stats)": importance,
    }
    if given := [name for name, on in foreign.items() if on]:
        raise UsageError(f"{', '.join(given)} makes no sense for hf targets")


def lay_out(
    checkpoint: Checkpoint, target: Target, choices: list[Choice], options: Options, name: str
) -> Layout:
    """All files of the folder ``name``; weights are split into shards by size."""
    if target.type == METHOD:
        config = folder_config(checkpoint, "bf16")
        config[QUANTIZATION] = _blocks_settings(checkpoint.architecture)
    else:
        config = folder_config(checkpoint, target.type or "bf16")
    return lay_out_folder(checkpoint, choices, options, {"config.json": config})


def _blocks_settings(architecture: Architecture) -> dict[str, Any]:
    """What a config says of experts in blocks: the method, and which modules are not in it."""
    kept = []
    for module in architecture.modules:
        path = module.hf.replace("{layer}", "*")
        if module.role in {"router", "embed", "head"}:
            kept.append(path)
        elif module.role == "linear" and not module.hf_stacked:
            kept.append(path.rpartition(".")[0])
    inside = [path for path in kept if "*" in path]
    ordered = dict.fromkeys([*inside, *(path for path in kept if path not in inside)])
    return {"modules_to_not_convert": list(ordered), "quant_method": METHOD}


def lay_out_folder(
    checkpoint: Checkpoint,
    choices: list[Choice],
    options: Options,
    tables: Mapping[str, Mapping[str, Any]],
) -> Layout:
    """Weights in shards by size, JSON files from ``tables``, and what travels with the model."""
    config = tables["config.json"]
    said = {k: v for k, v in checkpoint.predicting_said.items() if checkpoint.predicting}
    tables = {**tables, "config.json": {**config, **said}}
    files = [OutputFile.of_bytes(name, json_bytes(table)) for name, table in tables.items()]
    files += _weights(choices, options.split_max_size or SHARD_SIZE)
    files += side_files(checkpoint)
    return Layout(tuple(files), is_folder=True)


def facts(checkpoint: Checkpoint, target: Target, options: Options) -> list[Fact]:
    """Facts of a folder whose config goes along: only what no config can say is refused."""
    del target  # all types say the same
    return meaning.carried(checkpoint, options.ignored_keys)


def folder_config(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """``config.json`` of an output whose floats are of ``dtype``, without what holds elsewhere."""
    config = without_foreign(checkpoint.config)
    kept = {k: v for k, v in config.items() if k not in _LOCAL_KEYS}
    key = "dtype" if "dtype" in kept else "torch_dtype"
    return {**kept, **_older_rotations(kept, checkpoint.architecture), key: TORCH_NAMES[dtype]}


def _older_rotations(config: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` of a config that has ``rope_parameters`` alone.

    transformers before 5, mlx-lm and mistral.rs look for these, and some of them take plain
    rotations of base 10000 without a word where they find nothing.
    """
    found, beside = config.get("rope_parameters"), dict[str, Any]()
    if not isinstance(found, Mapping) or "rope_scaling" in config:
        return {}
    if architecture.has_rotations_by_kind:
        full, slides = (found.get(kind) for kind in (sliding.FULL, sliding.SLIDES))
        key = architecture.older_key("sliding_theta")
        if key is None or not isinstance(full, Mapping) or not isinstance(slides, Mapping):
            return {}
        own = slides.get("rope_theta")
        if rope_type(slides) != "default" or own is None:
            return {}
        if key == "rope_theta" and own != full.get("rope_theta"):
            return {}  # nothing but rope_parameters can say it
        found, beside = full, {key: own}
    elif not is_flat(config):
        return {}
    scaling = {k: v for k, v in found.items() if k != "rope_theta"}
    theta = found.get("rope_theta")  # which transformers takes before one of the config itself
    theta = config.get("rope_theta") if theta is None and not beside else theta
    if theta is not None:
        beside["rope_theta"] = theta
    plain = rope_type(scaling) == "default"
    return {**beside, "rope_scaling": None if plain else scaling}


def float_name(choices: Sequence[Choice]) -> str:
    """The dtype that most floats of the output have, which its config names.

    bfloat16 stays: float16 does not hold all its numbers, and activations of models of bfloat16 may
    leave float16. A runtime that loses by computing in bfloat16 (vLLM on a CPU: a divergence of
    4e-3 where float16 has 7e-6) has an option of its own for that (``--dtype float16``).
    """
    dtypes = [str(c.encoding) for c in choices if not c.encoding.is_quantized]
    return max((d for d in dtypes if d in TORCH_NAMES), key=dtypes.count, default="f16")


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A JSON file as transformers writes it: two spaces, key order kept, a final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _weights(choices: list[Choice], limit: int) -> list[OutputFile]:
    shards: list[list[_Stored]] = [[]]
    filled = total = 0
    for choice in choices:
        size = choice.nbytes
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append((choice, size, *_arrays(choice)))
        filled += size
        total += size
    if len(shards) == 1:
        return [_shard("model.safetensors", shards[0])]
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = [_shard(n, shard) for n, shard in zip(names, shards, strict=True)]
    return [*files, OutputFile.of_bytes(INDEX, _index(total, zip(names, shards, strict=True)))]


def _index(total: int, shards: Iterable[tuple[str, Sequence[_Stored]]]) -> bytes:
    """The index file, as :func:`json_bytes` would have it in ten times the time."""
    empty = json_bytes({"metadata": {"total_size": total}, "weight_map": {}}).decode()
    rows, ends = [], dict[int, list[str]]()  # arrays of one kind are one tuple
    for file, shard in shards:
        place = encode_basestring(file)
        for _, _, name, arrays in shard:
            begin, kind = encode_basestring(name)[:-1], id(arrays)
            if kind not in ends:
                ends[kind] = [encode_basestring(end)[1:] for end, _, _ in arrays]
            rows += [f"{begin}{end}: {place}" for end in ends[kind]]
    table = ",\n    ".join(rows)
    return empty.replace("{}", f"{{\n    {table}\n  }}").encode()


def _shard(file: str, rows: Sequence[_Stored]) -> OutputFile:
    groups = [(name, arrays) for _, _, name, arrays in rows]
    header, offsets = safetensors_container.pack_groups(groups, {"format": "pt"})
    slots, at = [], 0
    for choice, _, _, own in rows:
        places = tuple(offsets[at : at + len(own)])
        slots.append(Slot(choice, places[0], places if choice.pieces else ()))
        at += len(own)
    derived = [(s.offset, s.choice.derived) for s in slots if s.choice.derived is not None]
    size = len(header) + sum(size for _, size, _, _ in rows)
    return OutputFile(file, size, ((0, header), *derived), tuple(slots))


_Stored = tuple[Choice, int, str, tuple[Kind, ...]]
"""A choice, its bytes, and the arrays that hold it: what their names begin with, and they."""


def _arrays(choice: Choice) -> tuple[str, tuple[Kind, ...]]:
    """What a choice puts into the file: the beginning of names, and what they end with."""
    if choice.lines is not None:
        return choice.name.removesuffix(".weight"), tuple(_kinds(choice.pieces, choice.lines.mark))
    if choice.encoding.dense is not None:
        return choice.name, _alone(choice.encoding.dense, choice.shape)
    grid, codec = choice.encoding.grouped, choice.codec
    assert grid is not None  # what is neither has lines
    assert codec is not None
    return choice.name.removesuffix(".weight"), _of_grid(codec, grid, choice.shape)


@lru_cache(maxsize=256)  # a model has few kinds of tensors, and as many as it likes of each
def _alone(numbers: Dense, shape: tuple[int, ...]) -> tuple[Kind, ...]:
    return (("", numbers, shape),)


@lru_cache(maxsize=256)
def _of_grid(codec: GroupedCodec, grid: Grouped, shape: tuple[int, ...]) -> tuple[Kind, ...]:
    return tuple(_kinds(codec.pieces(grid, shape), "."))


def _kinds(pieces: Iterable[Piece], mark: str) -> Iterator[Kind]:
    return ((mark + piece.name, DENSE[piece.dtype], piece.shape) for piece in pieces)


def side_files(checkpoint: Checkpoint) -> list[OutputFile]:
    """What travels with a model: copies from a folder, or files written from what is known."""
    if checkpoint.side_files is not None:
        return [_side_file(name, path) for name, path in checkpoint.side_files.items()]
    files = dict(write_tokenizer(checkpoint.tokenizer))
    if checkpoint.metadata.generation:
        files["generation_config.json"] = json_bytes(checkpoint.metadata.generation)
    if carried := checkpoint.metadata.carried:
        table = {key: [kind, _plain(value)] for key, (kind, value) in carried.items()}
        files[CARRIED] = json_bytes({"gguf": table})
    return [OutputFile.of_bytes(name, data) for name, data in files.items()]


def _side_file(name: str, path: Path) -> OutputFile:
    """A copy, or what is left of a file that names code. Raises CorruptFile for what is no such
    file but a pointer to one, or empty."""
    if (other := what_is(path)) is not None:
        raise CorruptFile(f"{path}: it is {other}")
    if name in FILES and foreign_keys(table := read_json(path)):
        return OutputFile.of_bytes(name, json_bytes(without_foreign(table)))
    return OutputFile.of_copy(name, path)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
