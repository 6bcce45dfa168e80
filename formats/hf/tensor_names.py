"""What tensors are called in HF folders → the names that transformers gives them in memory.

transformers loads more than its own names: a base model without its head's prefix, experts in one
tensor, a tied pair under either name. Those are read here, too. For names that it would not load,
:func:`foreign` says whose they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Final

from zenconvert.errors import CorruptFile, InvalidInput, UnexpectedTensor
from zenconvert.formats.safetensors_container import Entry
from zenconvert.model.architecture import Architecture, TensorName
from zenconvert.model.hyperparameters import Hyperparameters
from zenconvert.model.tensor_names import in_rows, joined_shape, stack_shape

_BLOCK: Final = 1 << 24
_FLOATS: Final = ("f32", "f16", "bf16", "f64")
"""Types of tensors that are stored in one array."""
_VALUE_HEADS: Final = ("v_head.", "value_head.")
"""Heads that training adds to a language model, and that transformers leaves out."""
_WRAPPERS: Final = {
    "_orig_mod.": "that of torch.compile; save the module that was compiled (._orig_mod)",
    "_fsdp_wrapped_module.": "that of FSDP; save a full state dict",
    "_checkpoint_wrapped_module.": "that of activation checkpointing; save the module inside of it",
    "_forward_module.": "that of Lightning; save the module inside of it",
    "module.": "that of DataParallel or DeepSpeed; save the module inside of it (.module)",
    "pretrained_model.": "that of TRL; save the model inside of it (.pretrained_model)",
    "base_model.model.": (
        "that of PEFT: an adapter is in the model; merge it (merge_and_unload()) and save again"
    ),
    "language_model.": (
        "that of the language model in one that sees or hears; config.json should be that of the "
        "whole model"
    ),
}
_ANYWHERE: Final = tuple(prefix for prefix in _WRAPPERS if prefix.startswith("_"))
"""Of single modules, too."""
_ADAPTER: Final = "an adapter is in the model; merge it (merge_and_unload()) and save again"
_PACKED: Final = (
    "weights are packed as GPTQ and AWQ have them, and config.json has no quantization_config; get "
    "the settings of the tool (or its quantize_config.json or quant_config.json), too"
)
_SCALED: Final = "it is of a quantization that is not read; take the original weights"
_JOINED: Final = (
    "modules are joined in one tensor, as other families have them; model_type of config.json is "
    "that of another family, or a tool joined them: save the model with transformers"
)
_OLD_NORM: Final = (
    "it is a norm's name of TensorFlow, or of an own code; save the model with transformers"
)
_PIECES: Final = {
    ".lora_": "it belongs to an adapter (LoRA); merge that into its model and save again",
    ".base_layer.": _ADAPTER,
    ".modules_to_save.": _ADAPTER,
    ".original_module.": _ADAPTER,
    ".absmax": "it is of bitsandbytes' quantization, which is not read; take the original weights",
    ".weight_scale": _SCALED,
    ".weight_packed": _SCALED,
    ".qweight": _PACKED,
    ".qzeros": _PACKED,
    ".g_idx": _PACKED,
    ".k_scale": "it is a scale of an 8-bit cache, which is not read; take the weights without it",
    ".v_scale": "it is a scale of an 8-bit cache, which is not read; take the weights without it",
    ".qkv_proj.": _JOINED,
    ".gate_up_proj.": _JOINED,
    ".W_pack.": _JOINED,
    ".query_key_value.": _JOINED,
    ".gamma": _OLD_NORM,
    ".beta": _OLD_NORM,
    "mtp.": "it predicts further tokens (MTP), which is not read; leave it out",
}
_LAYER: Final = re.compile(r"\blayers\.(\d+)\.")
_HEADS: Final = {
    "score.weight": "a classifier or reward model (…ForSequenceClassification)",
    "classifier.weight": "a classifier (…ForTokenClassification)",
    "qa_outputs.weight": "a question answerer (…ForQuestionAnswering)",
}


class Renaming:
    """Entries of a folder on their way to the names of its architecture."""

    def __init__(
        self,
        entries: Mapping[str, Entry],
        architecture: Architecture,
        hyperparameters: Hyperparameters,
    ) -> None:
        self.entries = dict(entries)
        self.hp = hyperparameters
        self.further = 0
        """Tensors of layers that predict further tokens."""
        self.predicting: dict[str, Entry] = {}
        """Those of layers behind the last."""
        self.untied = False
        """The config ties two matrices that differ."""
        self.beginnings = architecture.further
        self.names = list(architecture.tensor_names(hyperparameters))
        self.warnings: list[str] = []

    def run(self) -> dict[str, Entry]:
        """The entries under their modules' first names. Raises InvalidInput or CorruptFile."""
        self._fix_prefix()
        self._split()
        self._take_first_names()
        self._leave_heads()
        self._leave_further()
        self._look_at_pair()
        return self.entries

    def _rename(self, fresh: Mapping[str, str]) -> None:
        if not fresh:
            return
        renamed: dict[str, Entry] = {}
        for name, entry in self.entries.items():
            new = fresh.get(name, name)
            if new in renamed:
                raise CorruptFile(f"{entry.path}: {new!r} is there under two names")
            renamed[new] = entry
        self.entries = dict(sorted(renamed.items()))

    def _split(self) -> None:
        """Tensors that hold experts or rows of several: an entry for each of these."""
        stacks = by_stack(self.names)
        rows = in_rows(self.names)
        wanted = [stored for stored in (*stacks, *rows) if stored in self.entries]
        wanted = [stored for stored in wanted if self.entries[stored].dtype in _FLOATS]
        for stored in wanted:
            whole = self.entries.pop(stored)
            parts = (
                _slices(whole, stacks[stored]) if stored in stacks else _rows(whole, rows[stored])
            )
            for name, part in parts:
                if name.hf in self.entries:
                    raise CorruptFile(f"{part.path}: {name.hf!r} is in {stored!r} and beside it")
                self.entries[name.hf] = part
        if wanted:
            place = {n.hf: (n.hf_rows, 0) for n in self.names if n.hf_rows is not None}
            stacked = (n for n in self.names if _is_stacked(n))
            place |= {n.hf: (n.hf_stack or "", n.expert or 0) for n in stacked}
            self.entries = dict(
                sorted(self.entries.items(), key=lambda e: (*place.get(e[0], (e[0], 0)), e[0]))
            )

    def _take_first_names(self) -> None:
        """The first of the names that modules may have."""
        first = {_module(n.hf_also): _module(n.hf) for n in self.names if n.hf_also}
        if not first:
            return
        self._rename(
            {
                name: first[module] + name.removeprefix(module)
                for name in self.entries
                if (module := _module(name)) in first
            }
        )

    def _fix_prefix(self) -> None:
        """A base model saved alone lacks the prefix that it has inside of a language model."""
        embed = next(n.hf for n in self.names if n.module.role == "embed")
        prefix = f"{embed.partition('.')[0]}."
        if self.entries.keys() <= {n.hf for n in self.names}:
            return  # they have their names
        texts = (text for n in self.names for text in (n.hf, n.hf_also, n.hf_stack, n.hf_rows))
        modules = {_module(text) for text in texts if text}
        fresh = {}
        for name in self.entries:
            module = _module(name)
            if module.startswith(prefix) and module.removeprefix(prefix) in modules:
                fresh[name] = name.removeprefix(prefix)
            elif prefix + module in modules:
                fresh[name] = prefix + name
        self._rename(fresh)

    def _leave_further(self) -> None:
        """What predicts further tokens: layers behind the last, as many as the config says, or
        what the family's files call otherwise."""
        last = range(self.hp.layers, self.hp.layers + self.hp.further_layers)
        for name in list(self.entries) if last or self.beginnings else ():
            found = None if self.beginnings else _LAYER.search(name)
            if name.startswith(self.beginnings) or (found is not None and int(found[1]) in last):
                left = self.entries.pop(name)
                self.further += 1
                if found is not None:
                    self.predicting[name] = left

    def _leave_heads(self) -> None:
        """Value heads that training added."""
        left = [name for name in self.entries if name.startswith(_VALUE_HEADS)]
        for name in left:
            del self.entries[name]
        if left:
            self.warnings.append(
                f"{left[0]}: a value head is left out, as transformers leaves it out of the model"
            )

    def _look_at_pair(self) -> None:
        """A tied pair that is stored once is the embedding, whatever it is called."""
        if not self.hp.tied:
            return
        roles = {n.module.role: n.hf for n in self.names if n.is_weight}
        embed, head = roles["embed"], roles["head"]
        if head in self.entries and embed not in self.entries:
            self._rename({head: embed})
        elif head in self.entries and not same_data(self.entries[head], self.entries[embed]):
            self.untied = True
            self.warnings.append(
                f"the config ties {head} to {embed}, and both are stored and differ: read as two, "
                "as transformers does"
            )


def _is_stacked(name: TensorName) -> bool:
    """Whether files of the family have it in a tensor of all experts, at the place of that."""
    return name.module.hf_stacked and name.hf_stack is not None


def by_stack(names: Iterable[TensorName]) -> dict[str, list[TensorName]]:
    """HF name of every tensor that holds the experts of a layer → these."""
    found: dict[str, list[TensorName]] = {}
    for name in names:
        if name.hf_stack is not None:
            found.setdefault(name.hf_stack, []).append(name)
    return found


def _slices(stack: Entry, names: Sequence[TensorName]) -> Iterator[tuple[TensorName, Entry]]:
    """The experts of a stack ``[experts, parts · rows, columns]``, or of one of biases."""
    _, parts = names[0].module.hf_stack_part
    turned = names[0].module.hf_turned
    expected = stack_shape(names)
    experts = expected[0]
    if stack.shape != expected:
        raise InvalidInput(
            f"{stack.path}: tensor {stack.name!r} has shape {list(stack.shape)}, the config calls "
            f"for {list(expected)}"
        )
    size = stack.nbytes // (experts * parts)
    for name in names:
        part, _ = name.module.hf_stack_part
        begin = stack.offset + (name.expert or 0) * parts * size
        whole = replace(stack, shape=name.shape, nbytes=size)
        if turned:
            line = parts * size // prod(name.shape[1:])
            yield name, replace(whole, offset=begin, stride=line, turn=(part, parts))
        else:
            yield name, replace(whole, offset=begin + part * size)


def _rows(stored: Entry, names: Sequence[TensorName]) -> Iterator[tuple[TensorName, Entry]]:
    """The parts of a tensor that holds the rows of several, one after the other."""
    expected = joined_shape(names)
    if stored.shape != expected:
        raise InvalidInput(
            f"{stored.path}: tensor {stored.name!r} has shape {list(stored.shape)}, the config "
            f"calls for {list(expected)}"
        )
    row, begin = stored.nbytes // expected[0], stored.offset
    for name in names:
        size = name.shape[0] * row
        yield name, replace(stored, shape=name.shape, offset=begin, nbytes=size)
        begin += size


def _module(name: str) -> str:
    """Module of a tensor, with the dot."""
    return name[: name.rfind(".") + 1]


def same_data(a: Entry, b: Entry) -> bool:
    """Whether two entries hold the same bytes."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with a.path.open("rb") as first, b.path.open("rb") as second:
        first.seek(a.offset)
        second.seek(b.offset)
        for at in range(0, a.nbytes, _BLOCK):
            count = min(_BLOCK, a.nbytes - at)
            if first.read(count) != second.read(count):
                return False
    return True


def foreign(
    folder: str,
    architecture: str,
    layers: int,
    names: Sequence[str],
    known: Collection[str] = (),
) -> UnexpectedTensor:
    """The error for tensors that an architecture does not have, and whose they are.

    ``known`` are the names that it has.
    """
    first = names[0]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    text = (
        f"{folder}: {architecture} models of {layers} layers have no tensor named {first!r}{more}"
    )
    for name in names:
        for piece, advice in _PIECES.items():
            if piece in name:
                return UnexpectedTensor(f"{text}: {advice}")
        for prefix, advice in _WRAPPERS.items():
            if name.startswith((prefix, f"model.{prefix}")) or (
                prefix in _ANYWHERE and f".{prefix}" in name
            ):
                return UnexpectedTensor(f"{text}: the prefix {prefix!r} is {advice}")
        if name in _HEADS:
            return UnexpectedTensor(f"{text}: the model is {_HEADS[name]} and writes no text")
    if (wrapper := _unknown_wrapper(first, known)) is not None:
        return UnexpectedTensor(
            f"{text}: {wrapper!r} stands before the model's own names: it was saved inside of "
            "something else; save the model alone, or rename its tensors"
        )
    if (found := _LAYER.search(first)) is not None and int(found[1]) >= layers:
        return UnexpectedTensor(
            f"{text}: it is of layer {found[1]}, counted from 0; num_hidden_layers of config.json "
            "is too small, or such layers predict further tokens (MTP) and are to be left out"
        )
    return UnexpectedTensor(text)


def _unknown_wrapper(name: str, known: Collection[str]) -> str | None:
    """What stands before one of the known names."""
    cuts = (i + 1 for i, sign in enumerate(name) if sign == ".")
    return next((name[:cut] for cut in cuts if name[cut:] in known), None)
