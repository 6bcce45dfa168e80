"""``tokenizer.*`` key/values ↔ neutral tokenizer.

As llama.cpp's converter writes them: ``_set_vocab_gpt2`` and ``_set_vocab_sentencepiece`` in
conversion/base.py, ``SpecialVocab.add_to_gguf`` in gguf-py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from zenconvert import pretokenizer
from zenconvert.errors import CorruptFile, UnknownTokenizer, UsageError
from zenconvert.formats.gguf.container import KeyValue
from zenconvert.tokenizer import Kind, Tokenizer, TokenType

_PREFIX: Final = "tokenizer.ggml."
_TEMPLATE: Final = "tokenizer.chat_template"
_MODELS: Final[dict[str, Kind]] = {"gpt2": "bpe", "llama": "spm"}
_ROLES: Final = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
    "mask": "mask", "eot": "eot", "eom": "eom",
}  # fmt: skip
_ADDED: Final = ("bos", "eos", "sep")
_OTHER_KEYS: Final = (
    "model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix",
)  # fmt: skip
_GRANITE_VOCABULARY: Final = 49152  # the converter never lets these models add BOS


def tokenizer_metadata(
    tokenizer: Tokenizer, architecture: str, *, pre_tokenizer: str | None = None
) -> dict[str, KeyValue]:
    """The key/values in the converter's order.

    ``architecture`` is GGUF's name; ``pre_tokenizer`` overrides ``tokenizer.ggml.pre``. Raises
    UnknownTokenizer when the pre-tokenizer is not known, UsageError for a useless override.
    """
    keys: dict[str, KeyValue] = {}
    if architecture == "llama" and tokenizer.add_space_prefix is not None:
        keys["add_space_prefix"] = ("bool", tokenizer.add_space_prefix)
    keys["model"] = ("str", next(n for n, k in _MODELS.items() if k == tokenizer.kind))
    keys["pre"] = ("str", _pre(tokenizer, pre_tokenizer))
    keys["tokens"] = ("arr:str", tokenizer.tokens)
    if tokenizer.scores is not None:
        keys["scores"] = ("arr:f32", np.asarray(tokenizer.scores, dtype=np.float32))
    keys["token_type"] = ("arr:i32", np.asarray(tokenizer.types, dtype=np.int32))
    if tokenizer.merges:
        keys["merges"] = ("arr:str", tokenizer.merges)
    for role, token in tokenizer.special.items():
        if role in _ROLES:
            keys[f"{_ROLES[role]}_token_id"] = ("u32", token)
    for role, value in tokenizer.adds.items():
        if role in _ADDED:
            keys[f"add_{role}_token"] = ("bool", value)
    if architecture == "llama" and len(tokenizer.tokens) == _GRANITE_VOCABULARY:
        keys["add_bos_token"] = ("bool", False)
    return {f"{_PREFIX}{key}": value for key, value in keys.items()} | _templates(tokenizer)


def _pre(tokenizer: Tokenizer, override: str | None) -> str:
    if tokenizer.kind == "spm":
        if override is not None:
            raise UsageError("--pre makes no sense for a SentencePiece tokenizer")
        return "default"
    if override is not None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", override):
            raise UsageError(f"--pre: {override!r} is no name of a pre-tokenizer")
        return override
    if tokenizer.rule is None:
        raise UnknownTokenizer(
            f"no pre-tokenizer of llama.cpp is known to match this tokenizer: "
            f"{tokenizer.rule_problem}. If you know that one does, name it with --pre, for "
            f"example --pre {', '.join(r.name for r in pretokenizer.rules())}"
        )
    return tokenizer.rule


def _templates(tokenizer: Tokenizer) -> dict[str, KeyValue]:
    keys: dict[str, KeyValue] = {}
    named = {re.sub(r"[^A-Za-z0-9]", "_", n): t for n, t in tokenizer.named_templates.items()}
    for name, template in named.items():
        keys[f"{_TEMPLATE}.{name}"] = ("str", template)
    if named:
        keys["tokenizer.chat_templates"] = ("arr:str", list(named))
    if tokenizer.chat_template is not None:
        keys[_TEMPLATE] = ("str", tokenizer.chat_template)
    return keys


def tokenizer_from_metadata(metadata: Mapping[str, KeyValue], *, where: str) -> Tokenizer:
    """The tokenizer of a file named ``where``.

    Raises UnknownTokenizer for a model other than ``gpt2`` and ``llama``, CorruptFile when the
    key/values contradict each other.
    """
    reader = _Reader(metadata, where)
    model = reader.value("model", "str")
    if model not in _MODELS:
        raise UnknownTokenizer(
            f"{where}: tokenizers of type {model!r} are not supported; {', '.join(_MODELS)} are"
        )
    tokens = reader.value("tokens", "arr:str")
    types = reader.value("token_type", "arr:i32", default=np.ones(len(tokens), dtype=np.int32))
    scores = reader.value("scores", "arr:f32", default=None)
    kind = _MODELS[model]
    if len(types) != len(tokens) or (scores is not None and len(scores) != len(tokens)):
        raise CorruptFile(f"{where}: token_type and scores should have {len(tokens)} entries")
    if kind == "spm" and scores is None:
        raise CorruptFile(f"{where}: a SentencePiece tokenizer without scores cannot merge")
    if not set(np.unique(types).tolist()) <= set(TokenType):
        raise CorruptFile(f"{where}: token_type should be between 1 and 6")
    merges = reader.value("merges", "arr:str", default=[]) if kind == "bpe" else []
    if any(merge.count(" ") != 1 for merge in merges):
        raise CorruptFile(f"{where}: every merge should be two texts with a space between them")
    rule, problem = _rule(reader) if kind == "bpe" else (None, "")
    default, named = _read_templates(metadata)
    return Tokenizer(
        kind=kind,
        tokens=tokens,
        types=types.tolist(),
        scores=scores.tolist() if scores is not None and kind == "spm" else None,
        merges=merges,
        rule=rule,
        rule_problem=problem,
        special=_special(metadata, len(tokens), where),
        adds=_adds(metadata),
        add_space_prefix=reader.value("add_space_prefix", "bool", default=None),
        chat_template=default,
        named_templates=named,
    )


def carried_keys(metadata: Mapping[str, KeyValue]) -> dict[str, KeyValue]:
    """``tokenizer.*`` key/values that a neutral tokenizer does not hold."""
    modelled = {f"{_PREFIX}{key}" for key in _OTHER_KEYS}
    modelled |= {f"{_PREFIX}{name}_token_id" for name in _ROLES.values()}
    modelled |= {f"{_PREFIX}add_{role}_token" for role in _ADDED}
    pre = metadata.get(f"{_PREFIX}pre")
    if pre is not None and all(pre[1] != r.name for r in pretokenizer.rules()):
        modelled.remove(f"{_PREFIX}pre")  # an alias, or a name that only llama.cpp knows
    return {
        k: v
        for k, v in metadata.items()
        if k.startswith("tokenizer.")
        and k not in modelled
        and not k.startswith("tokenizer.chat_template")
        and v != ("str", "default")
    }


class _Reader:
    def __init__(self, metadata: Mapping[str, KeyValue], where: str) -> None:
        self.metadata, self.where = metadata, where

    def value(self, key: str, kind: str, default: Any = ...) -> Any:
        """The value of a key of that type. Raises CorruptFile."""
        found = self.metadata.get(f"{_PREFIX}{key}")
        if found is None and default is not ...:
            return default
        if found is None or found[0] != kind:
            what = "nothing" if found is None else found[0]
            raise CorruptFile(f"{self.where}: {_PREFIX}{key} should be {kind}, found {what}")
        return found[1]


def _rule(reader: _Reader) -> tuple[str | None, str]:
    name = reader.value("pre", "str", default="default")
    rule = pretokenizer.by_name(name)
    if rule is None:
        return None, f"tokenizer.ggml.pre is {name!r}, of which only the name is known"
    return rule.name, ""


def _special(metadata: Mapping[str, KeyValue], size: int, where: str) -> dict[str, int]:
    roles = {f"{_PREFIX}{name}_token_id": role for role, name in _ROLES.items()}
    special: dict[str, int] = {}
    for key, (kind, value) in metadata.items():
        if key in roles:
            if kind not in {"u32", "i32", "u64"} or not 0 <= value < size:
                raise CorruptFile(f"{where}: {key} should be an id below {size}, found {value!r}")
            special[roles[key]] = int(value)
    return special


def _adds(metadata: Mapping[str, KeyValue]) -> dict[str, bool]:
    keys = {f"{_PREFIX}add_{role}_token": role for role in _ADDED}
    return {keys[k]: bool(v) for k, (_, v) in metadata.items() if k in keys}


def _read_templates(metadata: Mapping[str, KeyValue]) -> tuple[str | None, dict[str, str]]:
    named = {
        key.removeprefix(f"{_TEMPLATE}."): str(value)
        for key, (kind, value) in metadata.items()
        if key.startswith(f"{_TEMPLATE}.") and kind == "str"
    }
    kind, value = metadata.get(_TEMPLATE, ("", None))
    return (value if kind == "str" else None), named
