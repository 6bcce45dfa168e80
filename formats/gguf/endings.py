"""At which tokens llama.cpp ends a text, going by a file's ``tokenizer.*`` key/values.

It knows the token of a role that a key names (end of text, of turn, of message), of three roles of
filling in the middle, and tokens of certain texts whatever any key says. Source:
``llama_vocab::impl::load`` in llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from zenconvert.formats.gguf.container import KeyValue

_PREFIX: Final = "tokenizer.ggml."
_EOS: Final = f"{_PREFIX}eos_token_id"
_BEFORE_EOS: Final = f"{_PREFIX}bos_token_id"
_BY_TEXT: Final = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
        "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
        "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
        "<｜end▁of▁sentence｜>", "[e~[",
    }
)  # fmt: skip
_IN_THE_MIDDLE: Final = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Role → texts that stand for it where no key names its token."""
_SILENT_EOS: Final = {"gpt2": 11, "llama": 2}
"""Model of a tokenizer → what is taken for the end of a text where no key names it."""
SPARE: Final = ("eot", "eom")
"""Roles that may name a further token that ends a text."""


def endings(metadata: Mapping[str, KeyValue]) -> list[int]:
    """Ids of the tokens: those that keys name as ends first, the others by number.

    Where several texts stand for one role of filling in the middle, llama.cpp takes one of them.
    """
    kind, tokens = metadata.get(f"{_PREFIX}tokens", ("", ()))
    if kind != "arr:str":
        return []
    watched = _BY_TEXT.union(*_IN_THE_MIDDLE.values(), {"<|plamo:eos|>"})
    ids = {text: number for number, text in enumerate(tokens) if text in watched}
    found = {number for text, number in ids.items() if text in _BY_TEXT}
    model = str(metadata.get(f"{_PREFIX}model", ("", ""))[1])
    eos = _named(metadata, "eos", tokens)
    if eos is None and _SILENT_EOS.get(model, len(tokens)) < len(tokens):
        eos = _SILENT_EOS[model]
    first = [eos, *(_named(metadata, role, tokens) for role in SPARE)]
    named = list(first)
    for role, texts in _IN_THE_MIDDLE.items():
        own = _named(metadata, role, tokens)
        by_text = [ids[text] for text in texts if text in ids]
        named += [own] if own is not None else by_text[:1]
    found |= {number for number in named if number is not None}
    found -= _taken_back(ids, found)
    ordered = dict.fromkeys([*(number for number in first if number is not None), *sorted(found)])
    return [number for number in ordered if number in found]


def _named(metadata: Mapping[str, KeyValue], role: str, tokens: Sequence[str]) -> int | None:
    """The token that a key gives a role; None where it is none of the vocabulary."""
    value = metadata.get(f"{_PREFIX}{role}_token_id", ("", None))[1]
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(tokens)
    return int(value) if fits else None


def _taken_back(ids: Mapping[str, int], found: set[int]) -> set[int]:
    """Tokens that are none after all beside certain others: of gpt-oss, Solar, Gemma 4, PLaMo."""
    has = {text for text, number in ids.items() if number in found}
    taken = set()
    calls = has & {"<|call|>", "<|calls|>"}
    if calls and has & {"<|return|>", "<|flush|>"} and "<|end|>" in has:
        taken.add(ids["<|end|>"])
    if has & {"<|tool_response>", "<|plamo:eos|>"} and "</s>" in has:
        taken.add(ids["</s>"])
    return taken


def with_endings(
    metadata: Mapping[str, KeyValue], wanted: Sequence[int]
) -> tuple[dict[str, KeyValue], list[int]]:
    """The key/values and those that make llama.cpp end a text at ``wanted``; and the ids for which
    no key is left."""
    kind, tokens = metadata.get(f"{_PREFIX}tokens", ("", ()))
    wanted = [number for number in wanted if kind == "arr:str" and number < len(tokens)]
    keys: dict[str, KeyValue] = {}
    for key, value in metadata.items():
        keys[key] = value
        if key == _BEFORE_EOS and wanted:
            keys[_EOS] = metadata.get(_EOS, ("u32", wanted[0]))
    if wanted:
        keys.setdefault(_EOS, ("u32", wanted[0]))
    known = endings(keys)
    missing = [number for number in dict.fromkeys(wanted) if number not in known]
    for role in SPARE:
        if missing and f"{_PREFIX}{role}_token_id" not in keys:
            keys[f"{_PREFIX}{role}_token_id"] = ("u32", missing.pop(0))
    return keys, missing
