"""What a ``tokenizer.json`` does to text, as far as GGUF has words for it.

llama.cpp knows byte-level BPE whose pre-tokenizer it has by name, and SentencePiece BPE with byte
fallback, with or without a space before the text. Every other part of the file is told as a loss
or as the reason why GGUF cannot hold the tokenizer. Nothing here stops other formats, whose
consumers read the file itself.

Source: the JSON form of the tokenizers library, ``src/llama-vocab.cpp`` of llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zenconvert.model import pretokenizer
from zenconvert.model.pretokenizer import DIGITS, GPT2
from zenconvert.model.tokenizer import Kind

SPACE: Final = "▁"
_MODELS: Final = ("BPE", "Unigram", "WordLevel", "WordPiece")


@dataclass(frozen=True, slots=True)
class Structure:
    """How a tokenizer.json cuts text."""

    kind: Kind
    problem: str = ""
    """Why GGUF cannot hold it; empty where it can."""
    rule: str | None = None
    """Name of the pre-tokenizer rule, ``bpe`` only."""
    rule_problem: str = ""
    space_prefix: bool | None = None
    """Whether a space is put before the text, ``spm`` only."""
    losses: tuple[str, ...] = ()
    """What llama.cpp does otherwise."""


def understand(definition: Mapping[str, Any]) -> Structure:
    """The structure of a parsed tokenizer.json that the tokenizers library has accepted."""
    model = _mapping(definition.get("model"))
    kind = model_type(model)
    if kind == "Unigram":
        problem = "it is a Unigram model, which llama.cpp's decoder-only models do not have"
        return Structure("unigram", problem)
    if kind != "BPE":
        return Structure("other", f"it is a {kind} model; GGUF holds BPE and SentencePiece BPE")
    if affix := next((k for k in _AFFIXES if model.get(k)), None):
        return Structure("other", f"its BPE model has a {affix}, which llama.cpp does not know")
    losses = [f"its model drops merges at random (dropout {model.get('dropout')})"] * bool(
        model.get("dropout")
    )
    if model.get("byte_fallback"):
        return _byte_fallback(definition, model, losses)
    rule, problem = rule_of(definition)
    return Structure("bpe", "", rule, problem, None, tuple(losses))


_AFFIXES: Final = ("continuing_subword_prefix", "end_of_word_suffix")


def model_type(model: Mapping[str, Any]) -> str:
    """The type of a model, which files of old do not name."""
    found = model.get("type")
    if isinstance(found, str):
        return found if found in _MODELS else repr(found)
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def rule_of(definition: Mapping[str, Any]) -> tuple[str | None, str]:
    """Name of the pre-tokenizer rule of a tokenizer.json, else None and what stands in the way."""
    normalizer = _normal_form(definition.get("normalizer"))
    steps = _steps(definition.get("pre_tokenizer"))
    ignore_merges = bool(_mapping(definition.get("model")).get("ignore_merges", False))
    if normalizer is None:
        return None, f"normalizer {_short(definition.get('normalizer'))}"
    if steps is None:
        return None, f"pre_tokenizer {_short(definition.get('pre_tokenizer'))}"
    rule = pretokenizer.by_structure(normalizer, steps, ignore_merges=ignore_merges)
    if rule is not None:
        return rule.name, ""
    return None, (
        f"normalizer {normalizer or 'none'}, ignore_merges {ignore_merges} and the expressions "
        f"{' then '.join(steps)}"
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}…"


def parts_of(value: object, key: str) -> Iterator[Mapping[str, Any]]:
    """The parts of a normalizer, pre-tokenizer, …, sequences unfolded; ``key`` names their list."""
    if isinstance(value, Mapping):
        inner = value.get(key)
        if value.get("type") == "Sequence" and isinstance(inner, Sequence):
            for part in inner:
                yield from parts_of(part, key)
        else:
            yield value


def _normal_form(value: object) -> str | None:
    """Name of the normal form, "" for none, None for anything else."""
    kinds = [part.get("type") for part in parts_of(value, "normalizers")]
    if not kinds:
        return ""
    return "NFC" if kinds == ["NFC"] else None


def _steps(value: object) -> tuple[str, ...] | None:
    """The isolating expressions of a byte-level pre-tokenizer, None for anything else."""
    parts = list(parts_of(value, "pretokenizers"))
    if not parts or parts[-1].get("type") != "ByteLevel":
        return None
    steps = [_step(part) for part in parts]
    return None if any(s is None for s in steps) else tuple(s for s in steps if s)


def _step(part: Mapping[str, Any]) -> str | None:
    """One expression, "" for a step that cuts nothing, None for one that is not known."""
    kind = part.get("type")
    if kind == "ByteLevel":
        if part.get("add_prefix_space"):
            return None
        return GPT2 if part.get("use_regex", True) else ""
    if kind == "Digits":
        return DIGITS if part.get("individual_digits") else None
    if kind == "Split":
        # matches cover the whole text: to isolate them and to keep nothing else is the same
        how = (part.get("behavior"), bool(part.get("invert")))
        expression = _mapping(part.get("pattern")).get("Regex")
        known = how in {("Isolated", False), ("Removed", True)}
        return expression if known and isinstance(expression, str) else None
    return None


def _byte_fallback(
    definition: Mapping[str, Any], model: Mapping[str, Any], losses: list[str]
) -> Structure:
    """SentencePiece BPE: what its normalizers and pre-tokenizers do to spaces."""
    vocab = _mapping(model.get("vocab"))
    missing = [b for b in range(256) if f"<0x{b:02X}>" not in vocab]
    if missing:
        problem = f"{len(missing)} of the 256 byte tokens are missing, which llama.cpp needs"
        return Structure("spm", problem, space_prefix=True)
    escapes, prefix = False, False
    for part in parts_of(definition.get("normalizer"), "normalizers"):
        if part.get("type") == "Prepend" and part.get("prepend") == SPACE:
            prefix = True
        elif _is_escape(part):
            escapes = True
        else:
            losses.append(f"the normalizer {_short(part)} is not applied")
    for part in parts_of(definition.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace" and part.get("replacement") == SPACE:
            scheme = _scheme(part)
            escapes, prefix = True, prefix or scheme != "never"
            losses += _metaspace_losses(part, scheme, vocab)
        elif not (escapes and _mapping(part.get("pattern")).get("String") == " "):
            losses.append(f"the pre-tokenizer {_short(part)} is not applied")
    problem = "" if escapes else "its spaces are not written as ▁, as llama.cpp has it"
    return Structure("spm", problem, space_prefix=prefix, losses=tuple(losses))


def _is_escape(part: Mapping[str, Any]) -> bool:
    pattern = _mapping(part.get("pattern")).get("String")
    return part.get("type") == "Replace" and pattern == " " and part.get("content") == SPACE


def _scheme(part: Mapping[str, Any]) -> str:
    """Of a Metaspace; files of old have a flag."""
    scheme = part.get("prepend_scheme")
    if isinstance(scheme, str):
        return scheme
    return "always" if part.get("add_prefix_space", True) else "never"


def _metaspace_losses(
    part: Mapping[str, Any], scheme: str, vocab: Mapping[str, Any]
) -> Iterator[str]:
    if scheme == "first":
        yield "a text after a special token gets a space, not the first alone"
    if scheme != "never":
        yield "a text that begins with a space gets another one"
    if part.get("split", True) and any(SPACE in text[1:] for text in vocab):
        yield "tokens may span words, which the pre-tokenizer Metaspace keeps apart"
