"""Neutral tokenizer → the files of an HF folder, and the structure of ``tokenizer.json``.

Source: the tokenizers library's JSON form and transformers' SentencePiece conversion
(``LlamaConverter`` and ``generate_merges`` in convert_slow_tokenizer.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from zenconvert import pretokenizer
from zenconvert.errors import UnknownTokenizer
from zenconvert.formats.hf import sentencepiece_model
from zenconvert.formats.hf.sentencepiece_model import Piece
from zenconvert.formats.hf.special_tokens import ROLES
from zenconvert.pretokenizer import DIGITS, GPT2, Rule
from zenconvert.tokenizer import Tokenizer, TokenType

ADDED_SCORE: Final = -1000.0
"""Score that llama.cpp's converter gives to added tokens."""

_ADDED: Final = frozenset({TokenType.CONTROL, TokenType.USER_DEFINED})


def rule_of(definition: Mapping[str, Any]) -> tuple[str | None, str]:
    """Name of the pre-tokenizer rule of a tokenizer.json, else None and what stands in the way."""
    normalizer = _normalizer(definition.get("normalizer"))
    steps = _steps(definition.get("pre_tokenizer"))
    ignore_merges = bool((definition.get("model") or {}).get("ignore_merges", False))
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


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}…"


def _normalizer(value: Any) -> str | None:
    """Name of the normal form, "" for none, None for anything else."""
    if value is None:
        return ""
    if isinstance(value, Mapping) and value.get("type") == "Sequence":
        parts = value.get("normalizers") or []
        return _normalizer(parts[0]) if len(parts) == 1 else None if parts else ""
    return "NFC" if isinstance(value, Mapping) and value.get("type") == "NFC" else None


def _steps(value: Any) -> tuple[str, ...] | None:
    """The isolating expressions of a byte-level pre-tokenizer, None for anything else."""
    if not isinstance(value, Mapping):
        return None
    parts = value.get("pretokenizers") if value.get("type") == "Sequence" else [value]
    if not isinstance(parts, list) or not parts or parts[-1].get("type") != "ByteLevel":
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
        expression = (part.get("pattern") or {}).get("Regex")
        known = how in {("Isolated", False), ("Removed", True)}
        return expression if known and isinstance(expression, str) else None
    return None


def write_tokenizer(tokenizer: Tokenizer) -> dict[str, bytes]:
    """File name → content: all that transformers needs.

    Raises UnknownTokenizer when the pre-tokenizer cannot be described.
    """
    files: dict[str, bytes] = {}
    if tokenizer.kind == "spm":
        files["tokenizer.model"] = _sentencepiece(tokenizer)
        definition = _byte_fallback_definition(tokenizer)
    else:
        definition = _bpe_definition(tokenizer)
    files["tokenizer.json"] = _json(definition)
    files["tokenizer_config.json"] = _json(_settings(tokenizer))
    return files


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _rule(tokenizer: Tokenizer) -> Rule:
    rule = None if tokenizer.rule is None else pretokenizer.by_name(tokenizer.rule)
    if rule is None:
        raise UnknownTokenizer(
            "the tokenizer cannot be written as tokenizer.json: "
            + (tokenizer.rule_problem or f"the pre-tokenizer {tokenizer.rule!r} is not known")
            + f"; known are {', '.join(pretokenizer.known_names())}"
        )
    return rule


def _bpe_definition(tokenizer: Tokenizer) -> dict[str, Any]:
    rule = _rule(tokenizer)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    plain = {
        text: i
        for i, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind not in _ADDED and kind != TokenType.UNUSED
    }
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": rule.ignore_merges, "vocab": plain,
        "merges": [merge.split(" ") for merge in tokenizer.merges],
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": _added_tokens(tokenizer),
        "normalizer": {"type": rule.normalizers[0]} if rule.normalizers[0] else None,
        "pre_tokenizer": _pre_tokenizer(rule, byte_level),
        "post_processor": _post_processor(tokenizer, byte_level),
        "decoder": byte_level | {"use_regex": False},
        "model": model,
    }  # fmt: skip


def _pre_tokenizer(rule: Rule, byte_level: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for step in rule.steps:
        if step == DIGITS:
            parts.append({"type": "Digits", "individual_digits": True})
        elif step != GPT2:
            split = {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated"}
            parts.append({**split, "invert": False})
    parts.append(byte_level | {"use_regex": rule.steps[-1] == GPT2})
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def _added_tokens(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    unknown = {TokenType.UNKNOWN} if tokenizer.kind == "spm" else set()
    return [
        {
            "id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind != TokenType.USER_DEFINED,
        }
        for i, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind in _ADDED or kind in unknown
    ]  # fmt: skip


def _post_processor(
    tokenizer: Tokenizer, byte_level: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Adds BOS and EOS as the tokenizer says, written so that reading it gives the same again."""
    processors: list[dict[str, Any]] = []
    if byte_level is not None and list(tokenizer.adds)[:2] == ["bos", "eos"]:
        processors.append(byte_level | {"use_regex": True})
    text = {r: tokenizer.tokens[tokenizer.special[r]] for r in tokenizer.special}
    first = text.get("bos") if tokenizer.adds.get("bos") else None
    last = text.get("eos") if tokenizer.adds.get("eos") else None
    if first is not None or last is not None:
        processors.append(_template(tokenizer, first, last))
    if len(processors) > 1:
        return {"type": "Sequence", "processors": processors}
    return processors[0] if processors else None


def _template(tokenizer: Tokenizer, first: str | None, last: str | None) -> dict[str, Any]:
    def token(text: str | None, number: int) -> list[dict[str, Any]]:
        return [] if text is None else [{"SpecialToken": {"id": text, "type_id": number}}]

    def sequence(name: str, number: int) -> list[dict[str, Any]]:
        return [{"Sequence": {"id": name, "type_id": number}}]

    between: list[dict[str, Any]] = []
    if "sep" in tokenizer.adds:  # something stands between two sequences
        between = [*token(last, 0), *token(first, 1)]
    ids = {text: i for i, text in enumerate(tokenizer.tokens) if text in (first, last)}
    return {
        "type": "TemplateProcessing",
        "single": [*token(first, 0), *sequence("A", 0), *token(last, 0)],
        "pair": [
            *token(first, 0), *sequence("A", 0), *between, *sequence("B", 1), *token(last, 1),
        ],
        "special_tokens": {
            text: {"id": text, "ids": [i], "tokens": [text]} for text, i in ids.items()
        },
    }  # fmt: skip


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json."""
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if tokenizer.add_space_prefix is not None:
        settings["add_prefix_space"] = tokenizer.add_space_prefix
    settings |= {f"add_{role}_token": value for role, value in tokenizer.adds.items()}
    scores = tokenizer.scores
    settings["added_tokens_decoder"] = {
        str(token["id"]): {k: v for k, v in token.items() if k != "id"}
        for token in _added_tokens(tokenizer)
        # others are special by their piece's type alone
        if scores is None or scores[token["id"]] == ADDED_SCORE
    }
    settings |= {f"{r}_token": tokenizer.tokens[i] for r, i in _named(tokenizer).items()}
    settings["clean_up_tokenization_spaces"] = False
    if tokenizer.named_templates:
        rows = [{"name": n, "template": t} for n, t in tokenizer.named_templates.items()]
        if tokenizer.chat_template is not None:
            rows.insert(0, {"name": "default", "template": tokenizer.chat_template})
        settings["chat_template"] = rows
    elif tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    return settings


def _named(tokenizer: Tokenizer) -> dict[str, int]:
    """Special tokens to name in tokenizer_config.json; config.json declares the rest by id.

    Readers take the former first, each in the order of ROLES: that keeps the order.
    """
    named: dict[str, int] = {}
    last = -1
    for role, i in tokenizer.special.items():
        rank = ROLES.index(role) if role in ROLES else -1
        if rank <= last or tokenizer.types[i] not in _ADDED | {TokenType.UNKNOWN}:
            break
        named[role], last = i, rank
    return named


def _sentencepiece(tokenizer: Tokenizer) -> bytes:
    """tokenizer.model; padding at the end is left out."""
    assert tokenizer.scores is not None
    pieces = [
        Piece(text, float(score), int(kind))
        for text, score, kind in zip(
            tokenizer.tokens, tokenizer.scores, tokenizer.types, strict=True
        )
    ]
    while pieces and pieces[-1].type == sentencepiece_model.UNUSED:
        pieces.pop()
    if not any(p.type == sentencepiece_model.UNKNOWN for p in pieces):
        # SentencePiece demands one; the added tokens give it its own type again
        unknown = tokenizer.special.get("unk", 0)
        pieces[unknown] = Piece(pieces[unknown].text, 0.0, sentencepiece_model.UNKNOWN)
    prefix = tokenizer.add_space_prefix is not False
    return sentencepiece_model.write(pieces, dict(tokenizer.special), add_dummy_prefix=prefix)


def _byte_fallback_definition(tokenizer: Tokenizer) -> dict[str, Any]:
    assert tokenizer.scores is not None
    vocab = {
        text: i
        for i, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind not in {TokenType.UNUSED, TokenType.USER_DEFINED}
    }
    prefix = tokenizer.add_space_prefix is not False
    unknown = tokenizer.special.get("unk")
    unk = tokenizer.tokens[unknown] if unknown is not None else None
    space: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizers = [*([{"type": "Prepend", "prepend": "▁"}] if prefix else []), space]
    strip: dict[str, Any] = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefix else []),
    ]  # fmt: skip
    model = {
        "type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
        "ignore_merges": False, "vocab": vocab,
        "merges": _merges(vocab, tokenizer.scores, tokenizer.types),
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": _added_tokens(tokenizer),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": _post_processor(tokenizer, None),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }  # fmt: skip


def _merges(
    vocab: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[list[str]]:
    """Every way to make a piece of two others, best score first."""
    rows: list[tuple[float, int, int, int, str, str]] = []
    for text, i in vocab.items():
        if types[i] != TokenType.NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = vocab.get(text[:cut]), vocab.get(text[cut:])
            if left is not None and right is not None:
                rows.append((-float(scores[i]), i, left, right, text[:cut], text[cut:]))
    rows.sort()
    return [[left, right] for *_, left, right in rows]
