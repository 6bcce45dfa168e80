"""Tokenizer files of an HF folder → neutral tokenizer, and text → token ids.

Read are ``tokenizer.model`` (SentencePiece), else ``tokenizer.json``, else ``vocab.json`` with
``merges.txt``; beside them ``tokenizer_config.json``, ``added_tokens.json`` and chat templates.
Token types and padding follow llama.cpp's converter (``get_vocab_base`` and
``_create_vocab_sentencepiece`` in conversion/base.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import CorruptFile, InvalidInput, SourceNotFound, UnknownTokenizer
from zenconvert.formats.hf import sentencepiece_model, special_tokens
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.hf.tokenizer_json import rule_of, write_tokenizer
from zenconvert.tokenizer import Tokenizer, TokenType

UNUSED_SCORE: Final = -10000.0
ADDED_SCORE: Final = -1000.0
_LOOKS_SPECIAL: Final = re.compile(
    r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL
)
_BYTE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_CLASS_RULES: Final = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2"}


def read_tokenizer(path: Path, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of the folder ``path``, padded to ``vocab_size`` tokens.

    Raises SourceNotFound when there is none, CorruptFile or InvalidInput when it is broken, and
    UnknownTokenizer for a kind that is neither byte-level BPE nor SentencePiece BPE.
    """
    files = _Files(path, vocab_size)
    if (path / "tokenizer.model").is_file():
        return _from_sentencepiece(files)
    if files.definition is None:
        return _from_vocab_json(files)
    model = files.definition.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise UnknownTokenizer(
            f"{path / 'tokenizer.json'}: tokenizers of type {kind!r} are not supported; BPE and "
            "SentencePiece BPE are"
        )
    if model.get("byte_fallback"):
        return _from_byte_fallback(files, model)
    return _from_bpe(files, model)


class TextEncoder:
    """Text → token ids, by HF's tokenizers; special tokens in the text are recognised."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        definition = tokenizer.definition or write_tokenizer(tokenizer)["tokenizer.json"]
        try:
            self._fast = FastTokenizer.from_str(definition.decode("utf-8"))
        except Exception as error:
            raise InvalidInput(f"tokenizer.json is refused by tokenizers: {error}") from error
        self._fast.no_truncation()
        self._fast.no_padding()

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS or EOS."""
        ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self._fast.decode(list(ids), skip_special_tokens=True)
        return text


@dataclass(frozen=True)
class _Files:
    """What lies in the folder, each parsed on first use."""

    path: Path
    vocab_size: int

    @cached_property
    def definition_bytes(self) -> bytes | None:
        file = self.path / "tokenizer.json"
        return file.read_bytes() if file.is_file() else None

    @cached_property
    def definition(self) -> dict[str, Any] | None:
        return self._optional("tokenizer.json")

    @cached_property
    def settings(self) -> dict[str, Any] | None:
        return self._optional("tokenizer_config.json")

    @cached_property
    def added(self) -> dict[int, dict[str, Any]]:
        """Added tokens by id, of tokenizer.json and tokenizer_config.json."""
        tokens: dict[int, dict[str, Any]] = {}
        decoder = (self.settings or {}).get("added_tokens_decoder") or {}
        try:
            tokens |= {int(number): {"content": t["content"], **t} for number, t in decoder.items()}
            for token in (self.definition or {}).get("added_tokens") or ():
                tokens[int(token["id"])] = {"content": token["content"], **token}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{self.path}: an added token is malformed: {error!r}") from error
        return tokens

    def _optional(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        return read_json(file) if file.is_file() else None

    def common(self) -> dict[str, Any]:
        """The fields that every kind has: special tokens and templates."""
        special, adds = special_tokens.find(
            self.definition,
            self.settings,
            self._optional("config.json") or {},
            vocab_size=self.vocab_size,
        )
        default, named = self._templates()
        prefix = (self.settings or {}).get("add_prefix_space")
        return {
            "special": special,
            "adds": adds,
            "add_space_prefix": prefix if isinstance(prefix, bool) else None,
            "chat_template": default,
            "named_templates": named,
            "definition": self.definition_bytes,
        }

    def _templates(self) -> tuple[str | None, dict[str, str]]:
        """The default chat template and the named ones."""
        if self.settings is None:
            return None, {}
        value: Any = self.settings.get("chat_template")
        named: dict[str, str] = {}
        if value is None and (self.path / "chat_template.jinja").is_file():
            value = _text(self.path / "chat_template.jinja")
            further = sorted((self.path / "additional_chat_templates").glob("*.jinja"))
            named = {file.stem: _text(file) for file in further}
        elif value is None:
            value = (self._optional("chat_template.json") or {}).get("chat_template")
        if isinstance(value, list):
            rows = [(r.get("name"), r.get("template")) for r in value if isinstance(r, Mapping)]
            named = {n: t for n, t in rows if isinstance(n, str) and isinstance(t, str)}
            value = named.pop("default", None)
        return (value if isinstance(value, str) else None), named


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _from_bpe(files: _Files, model: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE of a tokenizer.json."""
    assert files.definition is not None
    rule, problem = rule_of(files.definition)
    return _bpe(files, model.get("vocab"), model.get("merges"), rule, problem)


def _from_vocab_json(files: _Files) -> Tokenizer:
    """GPT-2's files; the tokenizer's class tells how text is cut."""
    vocab, merges = files.path / "vocab.json", files.path / "merges.txt"
    if not vocab.is_file() or not merges.is_file():
        raise SourceNotFound(
            f"{files.path}: there is no tokenizer; looked for tokenizer.model, tokenizer.json, and "
            "vocab.json with merges.txt"
        )
    name = str((files.settings or {}).get("tokenizer_class", "")).removesuffix("Fast")
    rule = _CLASS_RULES.get(name)
    problem = "" if rule else f"tokenizer_class {name!r} without a tokenizer.json"
    rows = [line.strip() for line in _text(merges).splitlines()]
    if rows and rows[0].startswith("#"):
        del rows[0]
    return _bpe(files, read_json(vocab), [row for row in rows if row], rule, problem)


def _bpe(files: _Files, vocab: Any, merges: Any, rule: str | None, problem: str) -> Tokenizer:
    tokens = [f"[PAD{i}]" for i in range(files.vocab_size)]
    types = [int(TokenType.UNUSED)] * files.vocab_size
    for text, number in _vocabulary(files, vocab).items():
        tokens[number], types[number] = text, TokenType.NORMAL
    for number, token in files.added.items():
        _check_id(files, number)
        tokens[number], types[number] = _added_token(token)
    return Tokenizer(
        kind="bpe",
        tokens=tokens,
        types=types,
        merges=_merges(files, merges),
        rule=rule,
        rule_problem=problem,
        **files.common(),
    )


def _vocabulary(files: _Files, vocab: Any) -> dict[str, int]:
    if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
        raise CorruptFile(f"{files.path}: the tokenizer's vocab should map texts to ids")
    if vocab:
        _check_id(files, max(vocab.values()))
        _check_id(files, min(vocab.values()))
    return vocab


def _check_id(files: _Files, number: int) -> None:
    if not 0 <= number < files.vocab_size:
        raise InvalidInput(
            f"{files.path}: the tokenizer has the id {number} and config.json's vocab_size is "
            f"{files.vocab_size}"
        )


def _merges(files: _Files, merges: Any) -> list[str]:
    """``"left right"``; a space inside a part is written as GPT-2's alphabet has it."""
    if not isinstance(merges, list):
        raise CorruptFile(f"{files.path}: the tokenizer's merges should be a list")
    rows = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(p) is str for p in pair):
            raise CorruptFile(f"{files.path}: a merge should be a pair of texts: {merge!r:.80}")
        rows.append(" ".join(part.replace(" ", "Ġ") for part in pair))
    return rows


def _added_token(token: Mapping[str, Any]) -> tuple[str, int]:
    text = str(token["content"])
    if token.get("special") or _LOOKS_SPECIAL.fullmatch(text):
        return text, TokenType.CONTROL
    return text.replace("▁", " "), TokenType.USER_DEFINED


def _from_sentencepiece(files: _Files) -> Tokenizer:
    """tokenizer.model, then added_tokens.json, then tokenizer_config.json."""
    path = files.path / "tokenizer.model"
    model = sentencepiece_model.read(path)
    if model.model_type != sentencepiece_model.BPE:
        raise UnknownTokenizer(
            f"{path}: only SentencePiece models of type BPE can be stored in GGUF for this "
            f"architecture, found type {model.model_type}"
        )
    size = files.vocab_size
    tokens = [f"[PAD{i}]" for i in range(size)]
    scores, types = [UNUSED_SCORE] * size, [int(TokenType.UNUSED)] * size
    for number, piece in enumerate(model.pieces[:size]):
        user_defined = piece.type == sentencepiece_model.USER_DEFINED
        tokens[number], scores[number] = piece.text, piece.score
        types[number] = TokenType.NORMAL if user_defined else TokenType(piece.type)
    for text, number in (files._optional("added_tokens.json") or {}).items():
        if type(number) is int and 0 <= number < size:
            tokens[number], scores[number] = text, ADDED_SCORE
            types[number] = TokenType.USER_DEFINED
    decoder = (files.settings or {}).get("added_tokens_decoder") or {}
    for number in (n for n in map(int, decoder) if 0 <= n < size):
        tokens[number], types[number] = _added_token(decoder[str(number)])
        scores[number] = ADDED_SCORE
    return Tokenizer(kind="spm", tokens=tokens, types=types, scores=scores, **files.common())


def _from_byte_fallback(files: _Files, model: Mapping[str, Any]) -> Tokenizer:
    """SentencePiece BPE of which only the tokenizer.json is left.

    Scores are not stored there. Llama's are minus the rank of the merge that makes a token, and so
    they are taken here: any decreasing scores give the same tokens.
    """
    size = files.vocab_size
    tokens = [f"[PAD{i}]" for i in range(size)]
    scores, types = [UNUSED_SCORE] * size, [int(TokenType.UNUSED)] * size
    vocab = _vocabulary(files, model.get("vocab"))
    ranks: dict[str, int] = {}
    for merge in _pairs(files, model.get("merges")):
        ranks.setdefault("".join(merge), len(ranks))
    for text, number in vocab.items():
        tokens[number] = text
        types[number] = TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
        is_byte = types[number] == TokenType.BYTE
        scores[number] = 0.0 if is_byte else -float(ranks.get(text, len(ranks) + number))
    for number, token in files.added.items():
        _check_id(files, number)
        tokens[number], types[number] = _added_token(token)
        scores[number] = ADDED_SCORE
    return Tokenizer(kind="spm", tokens=tokens, types=types, scores=scores, **files.common())


def _pairs(files: _Files, merges: Any) -> list[list[str]]:
    return [merge.split(" ") for merge in _merges(files, merges)]
