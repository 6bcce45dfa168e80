"""Checkpoint → GGUF file(s), as llama.cpp's converter and quantizer write them.

Float types follow the converter: derived tensors first, then source order. Quantized types follow
``llama-quantize``: tensors outside blocks by name, then blocks by number and name; quantization
version and file type at the end of the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from zenconvert.errors import UsageError
from zenconvert.formats.gguf import container, generation, mixtures, rope
from zenconvert.formats.gguf.container import KeyValue, TensorInfo
from zenconvert.formats.gguf.endings import with_endings
from zenconvert.formats.gguf.general import general_metadata
from zenconvert.formats.gguf.heads import halves
from zenconvert.formats.gguf.keys import model_keys
from zenconvert.formats.gguf.reader import read_files, stored_form
from zenconvert.formats.gguf.settling import PREDICTED, is_spare_role, settled, without_further
from zenconvert.formats.gguf.tokenizer import known_pre, tokenizer_metadata
from zenconvert.ggml.encoding import encoding_of
from zenconvert.ggml.types import BY_NAME
from zenconvert.model import pretokenizer
from zenconvert.model.allotment import AUTO, Allotted
from zenconvert.model.architecture import TensorName
from zenconvert.model.checkpoint import Checkpoint, Tensor
from zenconvert.model.encoding import F32
from zenconvert.model.generation import end_ids, is_said
from zenconvert.model.layout import Choice, Layout, OutputFile, Slot
from zenconvert.model.sliding import windows
from zenconvert.model.target import Options, Target

DEFAULT_TYPE: Final = "bf16"
FLOAT_TYPES: Final = frozenset({"f32", "f16", "bf16"})
_OWN_KEYS: Final = frozenset(
    {
        "general.architecture", "general.alignment", "general.file_type",
        "general.quantization_version",
    }
)  # fmt: skip
"""Keys that are never carried from another file."""
_PRE: Final = "tokenizer.ggml.pre"
_SOLVER: Final = "quantize.zenconvert.solver"
_TYPES: Final = "quantize.zenconvert.types"
QUANTIZATION_VERSION: Final[KeyValue] = ("u32", 2)


def choose(
    checkpoint: Checkpoint, target: Target, options: Options, *, importance: bool
) -> list[Choice]:
    """The type of every tensor by llama.cpp's mixture rules, in file order.

    Raises UsageError.
    """
    if options.layout is not None:
        raise UsageError("--layout makes no sense for gguf targets")
    file_type, hp = _file_type(target, options), checkpoint.hyperparameters
    stacks = _stacks(checkpoint)
    choices = mixtures.choose(
        file_type,
        _facts(checkpoint, stacks),
        [
            mixtures.TensorFacts(
                name, _shape(*found, hp.experts), _type_of(found[1][0]), _stays(checkpoint, found)
            )
            for name, found in stacks.items()
        ],
        importance=importance,
        pure=options.pure,
        overrides=options.tensor_types,
        output_type=options.output_type,
        embedding_type=options.embedding_type,
        allotted={one.name: mixtures.TypeChoice(one.type, one.why) for one in _allotted(options)},
    )
    result = []
    for name, (first, parts) in stacks.items():
        chosen = choices[name]
        result.append(
            Choice(
                name,
                tuple(parts),
                _shape(first, parts, hp.experts),
                encoding_of(BY_NAME[chosen.type]),
                *stored_form(first, hp),
                chosen.why,
                needs_importance=mixtures.requires_importance(file_type, name, chosen.type),
            )
        )
    result.sort(key=lambda c: not _stays(checkpoint, stacks[c.name]))  # as the converter has it
    result = [*_derived(checkpoint), *result]
    if file_type not in FLOAT_TYPES:
        result.sort(key=lambda c: _quantizer_order(c.name))
    if file_type not in FLOAT_TYPES or checkpoint.format == "gguf":
        result = [replace(c, shape=_without_ones(c.shape)) for c in result]
    return result


def _stays(checkpoint: Checkpoint, stack: tuple[TensorName, list[Tensor]]) -> bool:
    """Whether files of floats keep it in blocks: the converter, where others' files have them."""
    of_ggml = _type_of(stack[1][0]) is not None and stack[1][0].encoding.dense is None
    return checkpoint.format != "gguf" and of_ggml


def _type_of(tensor: Tensor) -> str | None:
    """The ggml type that a tensor has already."""
    name = str(tensor.encoding)
    return name if name in BY_NAME else None


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as ggml has it, and writes it: a matrix of one row is a vector."""
    first = next((at for at, size in enumerate(shape[:-1]) if size > 1), len(shape) - 1)
    return shape[first:]


def file_type_of(target: Target) -> str:
    """The canonical file type of a target. Raises UsageError for an unknown one."""
    name = mixtures.ALIASES.get(target.type, target.type) or DEFAULT_TYPE
    if name not in mixtures.FILE_TYPES:
        raise UsageError(
            f"GGUF has no file type {target.type!r}; known are {', '.join(mixtures.FILE_TYPES)}"
        )
    return name


def _file_type(target: Target, options: Options) -> str:
    """The file type that a file says it is. Raises UsageError."""
    if target.is_auto and options.allotment is not None:
        return file_type_of(replace(target, type=options.allotment.common))
    return file_type_of(target)


def _allotted(options: Options) -> tuple[Allotted, ...]:
    return options.allotment.tensors if options.allotment is not None else ()


def _stacks(checkpoint: Checkpoint) -> dict[str, tuple[TensorName, list[Tensor]]]:
    """GGUF name → its neutral tensors; experts of a layer share one name, and so do modules whose
    rows are in one tensor.

    The stacks of a layer come together where the last of its experts is met, as the converter has
    it.
    """
    names = {n.name: n for n in checkpoint.architecture.tensor_names(checkpoint.hyperparameters)}
    stacks: dict[str, tuple[TensorName, list[Tensor]]] = {}
    complete: dict[str, int] = {}
    for at, tensor in enumerate(checkpoint.tensors.values()):
        name = names[tensor.name]
        complete[_stack_group(name)] = at
        if name.gguf_values is not None:
            parts = halves(name, tensor, checkpoint.hyperparameters)
            stacks |= {stored: (name, [half]) for stored, half in parts.items()}
            continue
        stacks.setdefault(name.gguf, (name, []))[1].append(tensor)
    place = {name: at for at, name in enumerate(names)}
    for _, together in stacks.values():
        if len(together) > 1:
            of = [names[part.name] for part in together]
            places = {n.name: (n.expert or 0, n.gguf_place, place[n.name]) for n in of}
            together.sort(key=lambda part: places[part.name])
    by_hf = sorted(names.values(), key=_in_file)
    order = {stored: i for i, n in enumerate(by_hf) for stored in n.gguf_files}
    return dict(
        sorted(stacks.items(), key=lambda s: (complete[_stack_group(s[1][0])], order[s[0]]))
    )


def _stack_group(name: TensorName) -> str:
    """``blk.3`` for all experts of that layer, or the tensor that files have them in; a name of its
    own for any other."""
    if name.module.hf_stacked and name.hf_stack is not None:
        return name.hf_stack
    return name.gguf if name.expert is None else ".".join(name.gguf.split(".")[:2])


def _shape(first: TensorName, parts: Sequence[Tensor], experts: int) -> tuple[int, ...]:
    """Stored shape of a tensor, of a stack of experts, or of the rows of several modules."""
    rows = sum(part.shape[0] for part in parts)
    if first.expert is not None:
        return (experts, rows // experts, *parts[0].shape[1:])
    found = parts[0].shape if len(parts) == 1 else (rows, *parts[0].shape[1:])
    return tuple(n for n in found if n > 1) if first.module.gguf_flat else found


def _facts(
    checkpoint: Checkpoint, stacks: dict[str, tuple[TensorName, list[Tensor]]]
) -> mixtures.ModelFacts:
    hp = checkpoint.hyperparameters
    first = hp.full_kv_heads if 0 in hp.full_layers else 0  # all that the quantizer asks
    return mixtures.ModelFacts(
        layers=hp.layers,
        heads=hp.heads,
        kv_heads=first or hp.kv_heads,
        experts=hp.experts,
        tied="output.weight" not in stacks,
        is_70b=checkpoint.architecture.in_gguf.is_70b(hp.layers, hp.heads, hp.kv_heads),
    )


def _derived(checkpoint: Checkpoint) -> list[Choice]:
    """Factors of rotary frequencies: those of the file, or what the config makes of them."""
    if checkpoint.format == "gguf":
        tensors = (t for file in read_files(checkpoint.path) for t in file.tensors.values())
        found = [info for info in tensors if info.name in rope.DERIVED]
        return [
            Choice(info.name, (), info.shape, F32, why="as in the source", derived=_read(info))
            for info in found
        ]
    hp, family = checkpoint.hyperparameters, checkpoint.architecture.in_gguf
    factors = rope.long_factors(hp)
    if (frequencies := rope.frequency_factors(hp, family)) is not None:
        factors[rope.FREQS] = frequencies
    why = "computed from the config's rope_scaling"
    return [
        Choice(name, (), values.shape, F32, why=why, derived=values.astype("<f4").tobytes())
        for name, values in factors.items()
    ]


def _read(info: TensorInfo) -> bytes:
    with info.path.open("rb") as file:
        file.seek(info.offset)
        return file.read(info.nbytes)


def _in_file(name: TensorName) -> str:
    """What the converter's order goes by: names in HF files, but for stacks that it makes at once
    in an order of its own."""
    if not name.module.gguf_order:
        return name.hf
    before = name.hf.rpartition(f".{name.expert}.")[0]
    return f"{before}.{name.expert}.{name.module.gguf_order}"


def _quantizer_order(name: str) -> tuple[int, str]:
    """``weight_name_comparer`` of llama.cpp: block number (none first), then name."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


def lay_out(
    checkpoint: Checkpoint, target: Target, choices: list[Choice], options: Options, name: str
) -> Layout:
    """One file, or several where ``split_max_size`` asks for it."""
    metadata = _metadata(checkpoint, _file_type(target, options), choices, options)
    groups = _split(choices, options.split_max_size)
    if len(groups) == 1:
        return Layout((_file(name, metadata, choices),), is_folder=False)
    stem = name.removesuffix(".gguf")
    files = []
    for number, group in enumerate(groups):
        split: dict[str, KeyValue] = {
            "split.no": ("u16", number),
            "split.count": ("u16", len(groups)),
            "split.tensors.count": ("i32", len(choices)),
        }
        file_name = f"{stem}-{number + 1:05d}-of-{len(groups):05d}.gguf"
        files.append(_file(file_name, {**metadata, **split} if number == 0 else split, group))
    return Layout(tuple(files), is_folder=False)


def _split(choices: list[Choice], limit: int | None) -> list[list[Choice]]:
    groups: list[list[Choice]] = [[]]
    filled = 0
    for choice in choices:
        if limit is not None and groups[-1] and filled + choice.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(choice)
        filled += _padded(choice.nbytes)
    return groups


def _padded(size: int) -> int:
    return -(-size // container.DEFAULT_ALIGNMENT) * container.DEFAULT_ALIGNMENT


def _file(name: str, metadata: dict[str, KeyValue], choices: list[Choice]) -> OutputFile:
    infos, at = [], 0
    for choice in choices:
        infos.append((choice.name, choice.shape, BY_NAME[str(choice.encoding)].id, at))
        at += _padded(choice.nbytes)
    header = container.pack_header(metadata, infos)
    slots = tuple(
        Slot(choice, len(header) + info[3]) for choice, info in zip(choices, infos, strict=True)
    )
    derived = [(s.offset, s.choice.derived) for s in slots if s.choice.derived is not None]
    return OutputFile(name, len(header) + at, ((0, header), *derived), slots)


def _metadata(
    checkpoint: Checkpoint, file_type: str, choices: list[Choice], options: Options
) -> dict[str, KeyValue]:
    code: KeyValue = ("u32", mixtures.FILE_TYPES[file_type])
    if file_type in FLOAT_TYPES and (kept := _kept_blocks(choices)):
        code = ("u32", mixtures.FILE_TYPES[kept])
    if checkpoint.format == "gguf":
        metadata = _source_metadata(checkpoint)
        if options.pre_tokenizer is not None:
            metadata[_PRE] = ("str", known_pre(options.pre_tokenizer))
        quantized = True
    else:
        metadata = _converted_metadata(checkpoint, code, choices, options)
        quantized = file_type not in FLOAT_TYPES
    if quantized:  # llama-quantize moves these two to the end
        for key in ("general.quantization_version", "general.file_type"):
            metadata.pop(key, None)
        metadata["general.quantization_version"] = QUANTIZATION_VERSION
        metadata["general.file_type"] = code
    if checkpoint.solver is not None:
        metadata[_SOLVER] = ("str", checkpoint.solver)
    if options.allotment is not None:
        metadata[_TYPES] = ("str", AUTO)
        metadata[PREDICTED] = ("f32", options.allotment.predicted)
    return metadata


def _kept_blocks(choices: list[Choice]) -> str | None:
    """The file type that the converter names for files of floats whose experts are in blocks."""
    kinds = {str(c.encoding) for c in choices if c.encoding.dense is None}
    return next((t for kind in kinds if (t := mixtures.ALIASES.get(kind)) is not None), None)


def _source_metadata(checkpoint: Checkpoint) -> dict[str, KeyValue]:
    """As in the file, and in the types that llama.cpp reads."""
    dropped, architecture = ("split.", "quantize."), checkpoint.architecture
    files = read_files(checkpoint.path)
    tensors = [name for file in files for name in file.tensors]
    metadata, _ = without_further(files[0].metadata, architecture.gguf, tensors)
    metadata.pop("general.alignment", None)
    rows = checkpoint.hyperparameters.vocab
    found, _ = settled(metadata, architecture.gguf, architecture.in_gguf, rows)
    return {
        key: (kind, value)
        for key, (kind, value) in found.items()
        if not key.startswith(dropped) and not is_spare_role(key, kind)
    }


def _converted_metadata(
    checkpoint: Checkpoint, code: KeyValue, choices: list[Choice], options: Options
) -> dict[str, KeyValue]:
    architecture, hp = checkpoint.architecture, checkpoint.hyperparameters
    slides = [size is not None for size in windows(architecture, checkpoint.config, hp)]
    carried = {k: v for k, v in checkpoint.metadata.carried.items() if k not in _OWN_KEYS}
    general = {k: v for k, v in carried.items() if k.startswith("general.")}
    if not general:
        general = general_metadata(checkpoint, choices)
    tokenizer = tokenizer_metadata(
        checkpoint.tokenizer, architecture.in_gguf, pre_tokenizer=options.pre_tokenizer
    )
    if is_said(checkpoint):
        tokenizer, _ = with_endings(tokenizer, end_ids(checkpoint))
    tokenizer |= generation.suppressed_keys(checkpoint)
    own = {
        "general.architecture": ("str", architecture.gguf),
        **{f"{architecture.gguf}.{k}": v for k, v in rope.first_keys(hp).items()},
        **general,
        **model_keys(architecture, hp, code, slides),
        "general.quantization_version": QUANTIZATION_VERSION,
        **tokenizer,
    }
    if options.pre_tokenizer is None and _names_one_rule(carried.get(_PRE), own.get(_PRE)):
        own[_PRE] = carried[_PRE]
    return own | {k: v for k, v in carried.items() if k not in own}


def _names_one_rule(carried: KeyValue | None, own: KeyValue | None) -> bool:
    """Whether a carried pre-tokenizer is another name of the one that the tokenizer has."""
    if carried is None or own is None or carried[0] != "str":
        return False
    rule = pretokenizer.by_name(carried[1])
    return rule is not None and rule.name == own[1]
