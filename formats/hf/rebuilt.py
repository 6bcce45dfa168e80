"""Where ``AutoTokenizer`` of transformers 5 does not take a folder's files as they are.

Some classes have a normalizer and a pre-tokenizer of their own: of ``tokenizer.json`` they take the
vocabulary, the merges, the added tokens and the post-processor. What the files say is right here,
as for the tokenizers library, llama.cpp and other runtimes; where the class differs, a warning says
so.

Source: ``LlamaTokenizer``, ``Qwen2Tokenizer``, ``GemmaTokenizer`` and ``GPT2Tokenizer`` of
transformers 5, ``AutoTokenizer.from_pretrained``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from zenconvert.formats.hf.tokenizer_structure import parts_of, understand
from zenconvert.model import pretokenizer

_CLASSES: Final[dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("tokenizer_classes.toml").read_text(encoding="utf-8")
)
_BYTE_LEVEL: Final = {"Qwen2Tokenizer": ("qwen2", "NFC"), "GPT2Tokenizer": ("gpt-2", None)}
"""Class → the rule by which it cuts text, and its normalizer."""
_LLAMA, _GEMMA = "LlamaTokenizer", "GemmaTokenizer"
_TAKEN_AS_THEY_ARE: Final = frozenset(_CLASSES["taken_as_they_are"])
_OF_TYPE: Final[dict[str, str]] = _CLASSES["of_type"]
_WHATEVER_IS_NAMED: Final = frozenset(_CLASSES["whatever_is_named"])


def rebuilt(
    definition: Mapping[str, Any] | None, settings: Mapping[str, Any], model_type: object
) -> Iterator[str]:
    """What the class does otherwise than a ``tokenizer.json``, or than a lone tokenizer.model.

    ``settings`` is tokenizer_config.json.
    """
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    if definition is None:
        yield (
            "there is no tokenizer.json: tokenizer.model is read as SentencePiece and llama.cpp "
            "read it. transformers 5 makes a tokenizer of its own of it, which may put no space "
            "before a text and normalizes otherwise"
        )
        if settings.get("add_bos_token") is None:
            yield (
                "nothing says whether BOS begins a text: there is neither a tokenizer.json nor "
                "add_bos_token in tokenizer_config.json. None does, as transformers 5 has it "
                "(transformers 4 and llama.cpp put one there); write add_bos_token to say it"
            )
        return
    kind = model_type if isinstance(model_type, str) else ""
    if kind in _TAKEN_AS_THEY_ARE:
        return
    built = _OF_TYPE.get(kind, "") if not name or kind in _WHATEVER_IS_NAMED else name
    found = _difference(built, definition, settings)
    if found:
        is_named = built == name
        reason = f"tokenizer_class is {name}" if is_named else f"the model is of type {kind}"
        also = "; with PreTrainedTokenizerFast for a class, transformers takes it too"
        yield (
            f"{reason}, and transformers 5 builds {'that' if is_named else built} without the "
            f"normalizer and pre-tokenizer of tokenizer.json: {found} there. tokenizer.json is "
            f"taken{'' if kind in _WHATEVER_IS_NAMED else also}"
        )


def _difference(name: str, definition: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    structure = understand(definition)
    normalizers = [p.get("type") for p in parts_of(definition.get("normalizer"), "normalizers")]
    cuts = list(parts_of(definition.get("pre_tokenizer"), "pretokenizers"))
    if name in _BYTE_LEVEL:
        rule, normalizer = _BYTE_LEVEL[name]
        known = pretokenizer.by_name(rule)
        assert known is not None
        same = structure.rule == known.name and normalizers == [n for n in (normalizer,) if n]
        return "" if same else "words are cut otherwise"
    if name == _LLAMA and not any(part.get("type") == "ByteLevel" for part in cuts):
        scheme = _scheme(settings)
        metaspace = [(p.get("type"), p.get("prepend_scheme")) for p in cuts]
        if not normalizers and metaspace == [("Metaspace", scheme)]:
            return ""
        if scheme == "never" and structure.space_prefix is False:
            return ""
        return "spaces before a text and after special tokens are written otherwise"
    if name == _GEMMA and structure.space_prefix is not False:
        return "no space is put before a text"
    return ""


def _scheme(settings: Mapping[str, Any]) -> str:
    if settings.get("add_prefix_space") is False:
        return "never"
    return "always" if settings.get("legacy", False) else "first"
