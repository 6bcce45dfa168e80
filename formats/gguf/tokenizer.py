"""``tokenizer.*`` key/values ↔ neutral tokenizer.

As llama.cpp's converter writes them: ``_set_vocab_gpt2`` and ``_set_vocab_sentencepiece`` in
conversion/base.py, ``SpecialVocab.add_to_gguf`` in gguf-py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from zenconvert.errors import CorruptFile, UnknownTokenizer, UsageError
from zenconvert.formats.gguf.container import KeyValue
from zenconvert.formats.gguf.generation import SUPPRESSED
from zenconvert.formats.gguf.stripping import stripping
from zenconvert.model import pretokenizer
from zenconvert.model.gguf_family import GgufFamily
from zenconvert.model.tokenizer import Kind, Tokenizer, TokenType, piece_scores

_PREFIX: Final = "tokenizer.ggml."
_TEMPLATE: Final = "tokenizer.chat_template"
_UNREAD_SCORE: Final = -1000.0
_MODELS: Final[dict[str, Kind]] = {"gpt2": "bpe", "llama": "spm"}
_ROLES: Final = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
    "cls": "cls", "mask": "mask", "eot": "eot", "eom": "eom",
}  # fmt: skip
_ADDED: Final = ("bos", "eos", "sep")
_RECOGNISED: Final = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
"""Types that are found in a text whatever they are called."""
_INTEGERS: Final = frozenset({"u32", "i32", "u64", "i64"})
_OTHER_KEYS: Final = (
    "model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix",
)  # fmt: skip


def tokenizer_metadata(
    tokenizer: Tokenizer, family: GgufFamily, *, pre_tokenizer: str | None = None
) -> dict[str, KeyValue]:
    """The key/values in the converter's order.

    ``pre_tokenizer`` overrides ``tokenizer.ggml.pre``. Raises UnknownTokenizer when the
    pre-tokenizer is not known, UsageError for a useless override.
    """
    if tokenizer.problem:
        raise UnknownTokenizer(
            f"this tokenizer cannot be stored in GGUF: {tokenizer.problem} (other targets take it)"
        )
    keys: dict[str, KeyValue] = {}
    prefix, place = tokenizer.add_space_prefix, family.space_prefix
    unlike = tokenizer.kind == "spm" and prefix is False  # llama.cpp's default is to put one
    if prefix is not None and (place == "first" or (unlike and place != "last")):
        keys["add_space_prefix"] = ("bool", prefix)
    pre = _pre(tokenizer, family, pre_tokenizer)
    keys |= _merging(tokenizer, family) if family.model else _pieces(tokenizer, pre)
    for role, token in _specials(tokenizer, family).items():
        if role in _ROLES:
            keys[f"{_ROLES[role]}_token_id"] = ("u32", token)
    silent = _added_in_silence(tokenizer.kind, pre)
    for role, value in tokenizer.adds.items():
        if role in _ADDED and (role not in tokenizer.unsaid or value != silent.get(role, False)):
            keys[f"add_{role}_token"] = ("bool", value)
    if len(tokenizer.tokens) in family.without_bos:
        keys["add_bos_token"] = ("bool", tokenizer.add_bos)
    last = place == "last" and tokenizer.kind == "spm"
    end: dict[str, KeyValue] = {f"{_PREFIX}add_space_prefix": ("bool", bool(prefix))}
    if family.model:
        end[f"{_PREFIX}add_bos_token"] = ("bool", True)
    metadata = {f"{_PREFIX}{key}": value for key, value in keys.items()} | _templates(tokenizer)
    return metadata | (end if last else {})


def _pieces(tokenizer: Tokenizer, pre: str) -> dict[str, KeyValue]:
    """The vocabulary of a tokenizer that llama.cpp knows by its kind."""
    keys: dict[str, KeyValue] = {
        "model": ("str", next(n for n, k in _MODELS.items() if k == tokenizer.kind)),
        "pre": ("str", pre),
        "tokens": ("arr:str", tokenizer.tokens),
    }
    if tokenizer.scores is not None:
        keys["scores"] = ("arr:f32", np.asarray(tokenizer.scores, dtype=np.float32))
    keys["token_type"] = ("arr:i32", np.asarray(tokenizer.types, dtype=np.int32))
    if tokenizer.kind == "bpe" and tokenizer.merges:
        keys["merges"] = ("arr:str", tokenizer.merges)
    return keys


def _merging(tokenizer: Tokenizer, family: GgufFamily) -> dict[str, KeyValue]:
    """Pieces of SentencePiece that merge by rank; their scores are not read."""
    if tokenizer.kind != "spm" or not tokenizer.merges or tokenizer.add_space_prefix:
        raise UnknownTokenizer(
            "this tokenizer cannot be stored in GGUF: files of the family hold pieces of "
            "SentencePiece with their merges and put no space before a text (other targets take it)"
        )
    types = [
        int(TokenType.USER_DEFINED) if text in family.shown else kind
        for text, kind in zip(tokenizer.tokens, tokenizer.types, strict=True)
    ]
    return {
        "model": ("str", family.model),
        "tokens": ("arr:str", tokenizer.tokens),
        "scores": ("arr:f32", np.full(len(types), _UNREAD_SCORE, dtype=np.float32)),
        "token_type": ("arr:i32", np.asarray(types, dtype=np.int32)),
        "merges": ("arr:str", tokenizer.merges),
    }


def _specials(tokenizer: Tokenizer, family: GgufFamily) -> dict[str, int]:
    """Role → token; last those that the family gives where the tokenizer names none, or the same
    but as the end of texts, so that what a file said comes back in its order."""
    ids = {text: i for i, text in enumerate(tokenizer.tokens) if text in family.special.values()}
    named = dict(tokenizer.special)
    wanted = {role: ids.get(text) for role, text in family.special.items()}
    given = {r: i for r, i in wanted.items() if i is not None and named.get(r, i) == i}
    if "eos" in named:
        given.pop("eos", None)
    return {**{r: i for r, i in named.items() if r not in given}, **given}


def _added_in_silence(kind: Kind, pre: str | None) -> dict[str, bool]:
    """Role → whether llama.cpp adds that token where a file does not say it."""
    return {"bos": kind == "spm" or pre in pretokenizer.adding_bos()}


def _pre(tokenizer: Tokenizer, family: GgufFamily, override: str | None) -> str:
    if tokenizer.kind == "spm":
        if override is not None:
            raise UsageError("--pre makes no sense for a SentencePiece tokenizer")
        return "default"
    if override is not None:
        return known_pre(override)
    if tokenizer.rule is None:
        raise UnknownTokenizer(
            f"no pre-tokenizer of llama.cpp is known to match this tokenizer: "
            f"{tokenizer.rule_problem}. If you know that one does, name it with --pre, for "
            f"example --pre {', '.join(r.name for r in pretokenizer.rules())}"
        )
    return pretokenizer.named_like(tokenizer.rule, family.pre)


def known_pre(name: str) -> str:
    """A name that llama.cpp knows. Raises UsageError for any other."""
    known = pretokenizer.llamacpp_names()
    if name not in known:
        raise UsageError(
            f"--pre: llama.cpp knows no pre-tokenizer {name!r:.60}; it knows {', '.join(known)}"
        )
    return name


def _templates(tokenizer: Tokenizer) -> dict[str, KeyValue]:
    keys: dict[str, KeyValue] = {}
    names = template_names(tokenizer)
    named = {names[name]: text for name, text in tokenizer.named_templates.items()}
    for name, template in named.items():
        keys[f"{_TEMPLATE}.{name}"] = ("str", template)
    if named:
        keys["tokenizer.chat_templates"] = ("arr:str", list(named))
    if tokenizer.chat_template is not None:
        keys[_TEMPLATE] = ("str", tokenizer.chat_template)
    return keys


def template_names(tokenizer: Tokenizer) -> dict[str, str]:
    """What GGUF calls the named chat templates, by their own names.

    Keys have letters, digits and underscores; a name that becomes another's gets a number.
    """
    found: dict[str, str] = {}
    for name in tokenizer.named_templates:
        plain = re.sub(r"[^A-Za-z0-9]", "_", name)
        taken = {"default", *found.values(), *(set(tokenizer.named_templates) - {name})}
        numbered = (f"{plain}_{number}" for number in itertools.count(2))
        found[name] = next(n for n in itertools.chain([plain], numbered) if n not in taken)
    return found


def tokenizer_from_metadata(metadata: Mapping[str, KeyValue], *, where: str) -> Tokenizer:
    """The tokenizer of a file named ``where``, as llama.cpp takes it.

    Raises UnknownTokenizer for a model other than ``gpt2`` and ``llama``, CorruptFile when the
    key/values contradict each other.
    """
    reader = _Reader(metadata, where)
    model = reader.value("model", "str")
    merging = pretokenizer.merging_models()
    if model not in _MODELS and model not in merging:
        known = ", ".join((*_MODELS, *sorted(merging)))
        raise UnknownTokenizer(
            f"{where}: tokenizers of type {model!r:.60} are not supported; {known} are"
        )
    kind = _MODELS.get(model, "spm")
    given = reader.value("tokens", "arr:str")
    tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(given)]
    merges = [] if model == "llama" else reader.value("merges", "arr:str", default=[])
    if any(merge.count(" ") != 1 for merge in merges):
        raise CorruptFile(f"{where}: every merge should be two texts with a space between them")
    rule, problem = _rule(reader) if kind == "bpe" else (None, "")
    default, further = _read_templates(metadata)
    special, adds = reader.special(), _adds(reader, kind, rule)
    usual = {r: i for r, i in _defaults(kind, adds).items() if r not in special and i < len(tokens)}
    special |= usual
    types = _types(reader, tokens)
    named = metadata.get("general.name", ("str", ""))[1]
    drops = stripping(str(named), reader.value("pre", "str", default=""), tokens, types)
    scores = _scores(reader, len(tokens)) if kind == "spm" else None
    if model in merging:
        scores = piece_scores(tokens, types, merges)
    return Tokenizer(
        kind=kind,
        tokens=tokens,
        types=types,
        scores=scores,
        merges=merges,
        rule=rule,
        rule_problem=problem,
        special=special,
        adds=adds,
        add_space_prefix=reader.value(
            "add_space_prefix", "bool", default=False if model in merging else None
        ),
        strips_before=drops.before,
        strips_behind=drops.behind,
        chat_template=default,
        named_templates=further,
        warnings=(
            *_usual_tokens(where, kind, usual, tokens),
            *_equal_scores(where, tokens, types, scores),
        ),
    )


def _usual_tokens(
    where: str, kind: Kind, usual: Mapping[str, int], tokens: Sequence[str]
) -> Iterator[str]:
    for role, number in usual.items() if kind == "bpe" else ():
        yield (
            f"{where}: it adds {role} and names none: llama.cpp takes token {number}, "
            f"{tokens[number]!r:.60}"
        )


def _equal_scores(
    where: str, tokens: Sequence[str], types: Sequence[int], scores: Sequence[float] | None
) -> Iterator[str]:
    """Of pieces of one score llama.cpp makes the first in a text; a tokenizer.json has an order."""
    seen: dict[float, str] = {}
    for text, kind, score in zip(tokens, types, scores or (), strict=False):
        if kind == TokenType.NORMAL and len(text) > 1:
            other = seen.setdefault(score, text)
            if other is not text:
                yield (
                    f"{where}: the pieces {other!r:.40} and {text!r:.40} have the same score: "
                    "llama.cpp merges whichever comes first in a text, other formats the former"
                )
                return


def _types(reader: _Reader, tokens: Sequence[str]) -> list[int]:
    """Types of all tokens; what no type names is a plain token, as llama.cpp has it."""
    size = len(tokens)
    found = reader.value("token_type", "arr:i32", default=np.ones(size, dtype=np.int32))
    if len(found) < size:
        raise CorruptFile(f"{reader.where}: token_type should have {size} entries")
    types = [t if t in set(TokenType) else int(TokenType.NORMAL) for t in found[:size].tolist()]
    for i, text in enumerate(tokens):
        if types[i] not in _RECOGNISED and text in pretokenizer.always_control():
            types[i] = int(TokenType.CONTROL)
    return types


def _scores(reader: _Reader, size: int) -> list[float]:
    key = f"{_PREFIX}scores"
    kind = "arr:i32" if reader.metadata.get(key, ("", None))[0] == "arr:i32" else "arr:f32"
    found = reader.value("scores", kind, default=None)
    if found is None:
        raise CorruptFile(f"{reader.where}: a SentencePiece tokenizer without scores cannot merge")
    if len(found) < size:
        raise CorruptFile(f"{reader.where}: scores should have {size} entries")
    return [float(score) for score in found[:size].tolist()]


def _defaults(kind: Kind, adds: Mapping[str, bool]) -> dict[str, int]:
    """Roles that llama.cpp fills where a file names none; of GPT-2's, those that it then adds."""
    if kind == "spm":
        return {"bos": 1, "eos": 2}
    return {role: 11 for role in ("bos", "eos") if adds.get(role, False)}


def carried_keys(metadata: Mapping[str, KeyValue]) -> dict[str, KeyValue]:
    """``tokenizer.*`` key/values that a neutral tokenizer does not hold."""
    modelled = {f"{_PREFIX}{key}" for key in _OTHER_KEYS}
    modelled |= {f"{_PREFIX}{name}_token_id" for name in _ROLES.values()}
    modelled |= {f"{_PREFIX}add_{role}_token" for role in _ADDED} | {SUPPRESSED}
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

    def special(self) -> dict[str, int]:
        """Role → id, of those that name a token. Raises CorruptFile for ids that are no number."""
        for name in _ROLES.values():
            kind = self.metadata.get(f"{_PREFIX}{name}_token_id", ("u32", 0))[0]
            if kind not in _INTEGERS:
                raise CorruptFile(
                    f"{self.where}: {_PREFIX}{name}_token_id should be an integer, found {kind}"
                )
        return special_ids(self.metadata)[0]

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
    name = reader.value("pre", "str", default="")
    if name in {"", "default"}:
        what = f"{_PREFIX}pre is 'default'" if name else f"there is no {_PREFIX}pre"
        return None, (
            f"{reader.where}: {what}, as in files of before May 2024: nothing says how it cuts text"
        )
    rule = pretokenizer.by_name(name)
    if rule is None:
        return (
            None,
            f"{reader.where}: {_PREFIX}pre is {name!r:.60}, of which only the name is known",
        )
    return rule.name, ""


def special_ids(metadata: Mapping[str, KeyValue]) -> tuple[dict[str, int], list[str]]:
    """Role → id, and a warning for every id that is beyond the vocabulary.

    As llama.cpp takes them: such a role is absent.
    """
    kind, tokens = metadata.get(f"{_PREFIX}tokens", ("", ()))
    size = len(tokens) if kind == "arr:str" else 0
    roles = {f"{_PREFIX}{name}_token_id": role for role, name in _ROLES.items()}
    special: dict[str, int] = {}
    warnings = []
    for key, (kind, value) in metadata.items():
        if key not in roles:
            continue
        if kind in _INTEGERS and 0 <= value < size:
            special[roles[key]] = int(value)
        else:
            warnings.append(
                f"{key} is {value!r:.40}, and there are {size} tokens: the model is taken to have "
                f"no {roles[key]} token"
            )
    return special, warnings


def _adds(reader: _Reader, kind: Kind, rule: str | None) -> dict[str, bool]:
    """Which roles encoding adds; where a file is silent, what llama.cpp does then."""
    adds = {}
    for key in reader.metadata:
        role = key.removeprefix(f"{_PREFIX}add_").removesuffix("_token")
        if role in _ADDED and key == f"{_PREFIX}add_{role}_token":
            adds[role] = bool(reader.value(f"add_{role}_token", "bool"))
    if _added_in_silence(kind, rule)["bos"]:
        adds.setdefault("bos", True)
    return adds


def _read_templates(metadata: Mapping[str, KeyValue]) -> tuple[str | None, dict[str, str]]:
    named = {
        key.removeprefix(f"{_TEMPLATE}."): str(value)
        for key, (kind, value) in metadata.items()
        if key.startswith(f"{_TEMPLATE}.") and kind == "str"
    }
    spare = named.pop("default", None)
    kind, value = metadata.get(_TEMPLATE, ("", None))
    return (value if kind == "str" else spare), named
