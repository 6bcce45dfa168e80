"""Neutral tokenizer → the files of an HF folder.

Every token stands in the model's own vocabulary, added ones and holes too: the tokenizers library
gives ids of its own to added tokens that do not. What was built is loaded with that library and
every id compared.

Source: the tokenizers library's JSON form and transformers' SentencePiece conversion
(``LlamaConverter`` and ``generate_merges`` in convert_slow_tokenizer.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from zenconvert.errors import InvalidInput, UnknownTokenizer
from zenconvert.formats.hf import fast, sentencepiece_model
from zenconvert.formats.hf.sentencepiece_model import Piece
from zenconvert.formats.hf.special_tokens import ROLES
from zenconvert.model import pretokenizer
from zenconvert.model.pretokenizer import DIGITS, GPT2, Rule
from zenconvert.model.tokenizer import ADDED_SCORE, Tokenizer, TokenType, gpt2_alphabet

_ADDED: Final = frozenset({TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN})
"""Types that are recognised in a text wherever they stand."""


def write_tokenizer(tokenizer: Tokenizer) -> dict[str, bytes]:
    """File name → content: all that transformers needs.

    Raises UnknownTokenizer when the pre-tokenizer cannot be described, and InvalidInput when the
    tokens cannot all have their ids.
    """
    files: dict[str, bytes] = {}
    if tokenizer.kind == "spm":
        files["tokenizer.model"] = _sentencepiece(tokenizer)
    files["tokenizer.json"] = definition_of(tokenizer)
    files["tokenizer_config.json"] = _json(_settings(tokenizer))
    return files


def definition_of(tokenizer: Tokenizer) -> bytes:
    """``tokenizer.json`` of a ``bpe`` or ``spm`` tokenizer. Raises as :func:`write_tokenizer`."""
    seen: dict[str, int] = {}
    for number, text in enumerate(tokenizer.tokens):
        if seen.setdefault(text, number) != number:
            raise InvalidInput(
                f"the vocabulary cannot be written as tokenizer.json: the tokens {seen[text]} and "
                f"{number} are both {text!r}, and a text has one id there (llama.cpp refuses such "
                "a file too)"
            )
    built = _byte_fallback_definition if tokenizer.kind == "spm" else _bpe_definition
    definition = _json(built(tokenizer))
    found = fast.load(definition, "the tokenizer.json built").get_vocab(with_added_tokens=True)
    if found != seen:
        text = next(t for t in {**seen, **found} if seen.get(t) != found.get(t))
        raise InvalidInput(
            f"the vocabulary cannot be written as tokenizer.json: the token {text!r} is "
            f"{seen.get(text)} and the tokenizers library makes {found.get(text)} of it"
        )
    return definition


def removing_spaces(definition: bytes) -> bytes:
    """A definition of SentencePiece's pieces, without spaces around a text and all but one of
    several."""
    around, several = ({"Regex": pattern} for pattern in (r"\A +| +\z", " {2,}"))
    value = json.loads(definition)
    value["normalizer"]["normalizers"][:0] = [
        {"type": "Replace", "pattern": around, "content": ""},
        {"type": "Replace", "pattern": several, "content": " "},
    ]
    return _json(value)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _rule(tokenizer: Tokenizer) -> Rule:
    rule = None if tokenizer.rule is None else pretokenizer.by_name(tokenizer.rule)
    if rule is None:
        raise UnknownTokenizer(
            "the tokenizer cannot be written as tokenizer.json, nor its text be encoded: "
            + (tokenizer.rule_problem or f"the pre-tokenizer {tokenizer.rule!r} is not known")
            + ". If you know which pre-tokenizer it is, name it with --pre (in the recipe of a "
            "release: pre_tokenizer of [source]); known are "
            + ", ".join(rule.name for rule in pretokenizer.rules())
        )
    return rule


def _bpe_definition(tokenizer: Tokenizer) -> dict[str, Any]:
    rule = _rule(tokenizer)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    vocab = {text: i for i, text in enumerate(tokenizer.tokens)}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": rule.ignore_merges,
        "vocab": vocab,
        "merges": _told(tokenizer, vocab),
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


_IN_CONFIG: Final = ("bos", "eos", "pad")
"""Roles that config.json has keys for."""


def _added_tokens(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    return [
        {
            "id": i, "content": text, "single_word": False,
            "lstrip": i in tokenizer.strips_before, "rstrip": i in tokenizer.strips_behind,
            "normalized": False, "special": kind != TokenType.USER_DEFINED,
        }
        for i, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind in _ADDED
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

    Readers take the former first, each in the order of ROLES: that keeps the order, but for roles
    that config.json has not.
    """
    named: dict[str, int] = {}
    last = -1
    for role, i in tokenizer.special.items():
        rank = ROLES.index(role) if role in ROLES else -1
        if rank <= last or tokenizer.types[i] not in _ADDED:
            break
        named[role], last = i, rank
    rest = {r: i for r, i in tokenizer.special.items() if r in ROLES and r not in _IN_CONFIG}
    return named | {r: i for r, i in rest.items() if tokenizer.types[i] in _ADDED}


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
    vocab = {text: i for i, text in enumerate(tokenizer.tokens)}
    prefix = tokenizer.add_space_prefix is not False
    typed = (i for i, kind in enumerate(tokenizer.types) if kind == TokenType.UNKNOWN)
    unknown = tokenizer.special.get("unk", next(typed, None))
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
        "merges": _told(tokenizer, vocab)
        or _merges(vocab, tokenizer.scores, tokenizer.types),
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


def _told(tokenizer: Tokenizer, vocab: Mapping[str, int]) -> list[list[str]]:
    """The merges, without those that no text comes to.

    llama.cpp merges texts and a tokenizer.json tokens: raises UnknownTokenizer for merges of a text
    that has no token, where llama.cpp gets there.
    """
    pairs = [merge.split(" ") for merge in tokenizer.merges]
    told = [p for p in pairs if p[0] in vocab and p[1] in vocab and "".join(p) in vocab]
    if len(told) == len(pairs):
        return pairs
    letters = set("".join(map("".join, pairs)))
    if tokenizer.kind == "bpe":
        letters &= gpt2_alphabet().keys()
    reached = _reached(pairs, letters)
    for left, right in pairs:
        missing = [text for text in (left, right, left + right) if text not in vocab]
        if missing and left in reached and right in reached:
            raise UnknownTokenizer(
                "the tokenizer cannot be written as tokenizer.json, nor its text be encoded: the "
                f"merge of {left!r:.60} and {right!r:.60} needs {missing[0]!r:.60}, which is no "
                "token; llama.cpp merges texts, whether they are tokens or not (GGUF targets take "
                "it)"
            )
    return told


def _reached(pairs: Sequence[Sequence[str]], letters: Iterable[str]) -> set[str]:
    """The letters, and all that merges make of them."""
    uses: dict[str, list[Sequence[str]]] = {}
    for pair in pairs:
        for part in pair:
            uses.setdefault(part, []).append(pair)
    reached, fresh = set(letters), list(letters)
    while fresh:
        for left, right in uses.get(fresh.pop(), ()):
            if left + right not in reached and left in reached and right in reached:
                reached.add(left + right)
                fresh.append(left + right)
    return reached


_MERGED: Final = frozenset({TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED})
"""Types that llama.cpp makes of parts; the others never come out of a text."""


def _merges(
    vocab: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[list[str]]:
    """Every way to make a piece of two others, best score first."""
    rows: list[tuple[float, int, int, int, str, str]] = []
    for text, i in vocab.items():
        if types[i] not in _MERGED:
            continue
        for cut in range(1, len(text)):
            left, right = vocab.get(text[:cut]), vocab.get(text[cut:])
            if left is not None and right is not None:
                rows.append((-float(scores[i]), i, left, right, text[:cut], text[cut:]))
    rows.sort()
    return [[left, right] for *_, left, right in rows]
