"""Tokenizer files of an HF folder → neutral tokenizer, and text → token ids.

What ``tokenizer.json`` says is right, as for transformers, with the tokens that the files beside it
add; a ``tokenizer.model`` that agrees gives the scores of its pieces. Without a tokenizer.json,
``tokenizer.model`` is read, else ``vocab.json`` with ``merges.txt``. Token types and padding follow
llama.cpp's converter (``get_vocab_base`` and ``_create_vocab_sentencepiece`` in
conversion/base.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import CorruptFile, InvalidInput, SourceNotFound, UnknownTokenizer
from zenconvert.formats.hf import fast, sentencepiece_model
from zenconvert.formats.hf.normal_table import NormalTable
from zenconvert.formats.hf.sentencepiece_model import SentencePieceModel
from zenconvert.formats.hf.tokenizer_files import Added, TokenizerFiles, text_of
from zenconvert.formats.hf.tokenizer_json import definition_of, removing_spaces
from zenconvert.formats.hf.tokenizer_losses import (
    ignored_of,
    losses_of,
    score_losses,
    unlike_sentencepiece,
    with_spaces,
)
from zenconvert.formats.hf.tokenizer_structure import Structure, understand
from zenconvert.model.tokenizer import ADDED_SCORE, Tokenizer, TokenType, hole

UNUSED_SCORE: Final = -10000.0
_LOOKS_SPECIAL: Final = re.compile(
    r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL
)
_BYTE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_CLASS_RULES: Final = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2"}
_LLAMA: Final = "LlamaTokenizer"
_FROM_PIECE: Final = (sentencepiece_model.UNKNOWN, sentencepiece_model.CONTROL)


def read_tokenizer(path: Path, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of the folder ``path``, padded to ``vocab_size`` tokens.

    Raises SourceNotFound when there is none, CorruptFile or InvalidInput when it is broken.
    """
    files = TokenizerFiles(path, vocab_size)
    if files.definition is not None:
        return _from_definition(files, files.definition)
    if files.pieces is not None:
        return _from_sentencepiece(files, files.pieces)
    return _from_vocab_json(files)


class TextEncoder:
    """Text → token ids, by HF's tokenizers; special tokens in the text are recognised."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises CorruptFile or UnknownTokenizer where nothing can encode."""
        self._fast = fast.load(tokenizer.definition or definition_of(tokenizer), "tokenizer.json")
        self._table: NormalTable | None = None
        if tokenizer.normal_table:
            added = self._fast.get_added_tokens_decoder().values()
            self._table = NormalTable(tokenizer.normal_table, [token.content for token in added])

    def encode(self, text: str) -> list[int]:
        """Token ids without BOS or EOS."""
        text = text if self._table is None else self._table.apply(text)
        return fast.encode(self._fast, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return fast.decode(self._fast, ids)


@dataclass
class _Vocabulary:
    """Tokens by id in the making; ids that nothing fills are holes."""

    files: TokenizerFiles
    tokens: list[str]
    types: list[int]
    scores: list[float]
    warnings: list[str]

    @classmethod
    def of(cls, files: TokenizerFiles) -> _Vocabulary:
        size = files.vocab_size
        tokens = [hole(i) for i in range(size)]
        return cls(files, tokens, [int(TokenType.UNUSED)] * size, [UNUSED_SCORE] * size, [])

    def fill(self, number: int, text: str, kind: int, score: float) -> None:
        """A token that the model must have a row for. Raises InvalidInput."""
        if not 0 <= number < len(self.tokens):
            raise InvalidInput(
                f"{self.files.path}: the tokenizer has the id {number} and config.json's "
                f"vocab_size is {len(self.tokens)}"
            )
        self.tokens[number], self.types[number], self.scores[number] = text, int(kind), score

    def add(self, number: int, token: Added, *, spaces: bool) -> None:
        """An added token; one without a row is left out, as the model cannot have seen it.

        ``spaces``: ``▁`` stands for a space.
        """
        if number >= len(self.tokens):
            self.warnings.append(
                f"{self.files.path}: the added token {token.text!r:.60} has the id {number} and "
                f"the model {len(self.tokens)} rows: it is left out of tables of tokens"
            )
            return
        text, kind = token.text, TokenType.USER_DEFINED
        if token.special or _LOOKS_SPECIAL.fullmatch(text):
            kind = TokenType.CONTROL
        elif spaces:
            text = text.replace("▁", " ")
        self.fill(number, text, kind, ADDED_SCORE)


def _common(files: TokenizerFiles) -> dict[str, Any]:
    """The fields that every kind has: special tokens and templates."""
    roles = files.roles
    default, named = files.templates()
    rows = {number: t for number, t in files.added.items() if number < files.vocab_size}
    return {
        "special": roles.special,
        "adds": roles.adds,
        "unsaid": roles.unsaid,
        "chat_template": default,
        "named_templates": named,
        "strips_before": frozenset(number for number, t in rows.items() if t.lstrip),
        "strips_behind": frozenset(number for number, t in rows.items() if t.rstrip),
        "definition": files.encoding,
    }


def _from_definition(files: TokenizerFiles, definition: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer.json, whatever it is."""
    structure = understand(definition)
    model = definition["model"]
    vocabulary = _Vocabulary.of(files)
    assert files.loaded is not None
    plain = files.loaded.get_vocab(with_added_tokens=False)
    if structure.kind == "spm":
        _fill_pieces(vocabulary, plain, model)
    else:
        for text, number in plain.items():
            is_byte = structure.kind == "unigram" and _BYTE.fullmatch(text)
            vocabulary.fill(number, text, TokenType.BYTE if is_byte else TokenType.NORMAL, 0.0)
    for number, token in files.added.items():
        if structure.kind == "spm" and _is_piece(vocabulary, number, token):
            continue
        vocabulary.add(number, token, spaces=structure.kind == "spm")
    for number, text in enumerate(vocabulary.tokens):
        if text == hole(number) and vocabulary.types[number] == TokenType.NORMAL:
            vocabulary.types[number] = int(TokenType.UNUSED)
    tokenizer = Tokenizer(
        kind=structure.kind,
        tokens=vocabulary.tokens,
        types=vocabulary.types,
        scores=vocabulary.scores if structure.kind == "spm" else None,
        merges=_merges(files, model.get("merges")) if structure.kind in ("bpe", "spm") else (),
        rule=structure.rule,
        rule_problem=structure.rule_problem,
        add_space_prefix=_space_prefix(files, structure),
        problem=structure.problem,
        warnings=(*vocabulary.warnings, *files.warnings),
        **_common(files),
    )
    losses = losses_of(tokenizer, files.added, files.loaded, definition)
    ignored = tuple(ignored_of(definition))
    return replace(
        tokenizer,
        losses=(*structure.losses, *losses, *files.other_roles),
        score_losses=tuple(score_losses(tokenizer, definition)),
        ignored=ignored,
    )


def _is_piece(vocabulary: _Vocabulary, number: int, token: Added) -> bool:
    """Whether an added token is a piece of tokenizer.model that is special there."""
    declared = (vocabulary.files.settings or {}).get("added_tokens_decoder") or {}
    return (
        str(number) not in declared
        and number < len(vocabulary.tokens)
        and vocabulary.tokens[number] == token.text
        and vocabulary.types[number] in _FROM_PIECE
    )


def _space_prefix(files: TokenizerFiles, structure: Structure) -> bool | None:
    """False where no space is put before a text; True only where the config says so as well."""
    said = (files.settings or {}).get("add_prefix_space")
    name = str((files.settings or {}).get("tokenizer_class", "")).removesuffix("Fast")
    if structure.kind != "spm":
        return said if isinstance(said, bool) else None
    if not structure.space_prefix or (said is False and name == _LLAMA):
        return False
    return True if said is True else None


def _fill_pieces(
    vocabulary: _Vocabulary, plain: Mapping[str, int], model: Mapping[str, Any]
) -> None:
    """The pieces of a SentencePiece BPE, with scores of tokenizer.model where that agrees."""
    files = vocabulary.files
    path, pieces = files.path / "tokenizer.model", files.pieces
    if pieces is not None and (problem := _disagreement(files, pieces, plain)):
        vocabulary.warnings.append(
            f"{path}: {problem}; tokenizer.json is taken, as transformers does"
        )
        pieces = None
    if pieces is not None:
        _fill_from_model(vocabulary, pieces)
        plain = {text: i for text, i in plain.items() if i >= len(pieces.pieces)}
    ranks: dict[str, int] = {}
    for left, right in (merge.split(" ") for merge in _merges(files, model.get("merges"))):
        ranks.setdefault(left + right, len(ranks))
    for text, number in plain.items():
        if _BYTE.fullmatch(text):
            vocabulary.fill(number, text, TokenType.BYTE, 0.0)
        else:
            # Llama's scores are minus the rank of the merge that makes a piece; any that fall in
            # the same order give the same tokens
            rank = ranks.get(text, len(ranks) + number)
            vocabulary.fill(number, text, TokenType.NORMAL, -float(rank))


def _disagreement(
    files: TokenizerFiles, pieces: SentencePieceModel, plain: Mapping[str, int]
) -> str:
    """In what a tokenizer.model is not that of the tokenizer.json, empty where it is."""
    if pieces.model_type != sentencepiece_model.BPE:
        return "it is no BPE model, and tokenizer.json is"
    texts = {number: text for text, number in plain.items()}
    texts |= {number: token.text for number, token in files.added.items()}
    for number, piece in enumerate(pieces.pieces):
        if texts.get(number) != piece.text:
            return (
                f"its piece {number} is {piece.text!r:.60}, and {texts.get(number)!r:.60} in "
                "tokenizer.json"
            )
    return ""


def _fill_from_model(vocabulary: _Vocabulary, model: SentencePieceModel) -> None:
    for number, piece in enumerate(model.pieces[: len(vocabulary.tokens)]):
        user_defined = piece.type == sentencepiece_model.USER_DEFINED
        kind = TokenType.NORMAL if user_defined else TokenType(piece.type)
        vocabulary.fill(number, piece.text, kind, piece.score)


def _from_sentencepiece(files: TokenizerFiles, model: SentencePieceModel) -> Tokenizer:
    """tokenizer.model, then the added tokens of the files beside it."""
    path = files.path / "tokenizer.model"
    if model.model_type != sentencepiece_model.BPE:
        raise UnknownTokenizer(
            f"{path}: only SentencePiece models of type BPE are read without a tokenizer.json, "
            f"found type {model.model_type}; AutoTokenizer.from_pretrained(…).save_pretrained(…) "
            "of transformers writes one"
        )
    if model.spaces_behind or not model.escapes_spaces:
        raise UnknownTokenizer(
            f"{path}: it writes spaces behind words, or not as ▁: it is not read without a "
            "tokenizer.json"
        )
    vocabulary = _Vocabulary.of(files)
    _fill_from_model(vocabulary, model)
    for number, token in files.added.items():
        vocabulary.add(number, token, spaces=True)
    said = (files.settings or {}).get("add_prefix_space")
    prefix = said if isinstance(said, bool) else None
    if prefix is None and not model.add_dummy_prefix:
        prefix = False
    problem, losses = unlike_sentencepiece(model)
    spaced = (text for number, text in with_spaces(files.added) if number < len(vocabulary.tokens))
    tokenizer = Tokenizer(
        kind="spm",
        tokens=vocabulary.tokens,
        types=vocabulary.types,
        scores=vocabulary.scores,
        add_space_prefix=prefix,
        normal_table=model.normal_table,
        problem=problem,
        losses=(*losses, *spaced, *files.other_roles),
        warnings=(*vocabulary.warnings, *files.warnings),
        **_common(files),
    )
    if not model.removes_spaces:
        return tokenizer
    return replace(tokenizer, definition=removing_spaces(definition_of(tokenizer)))


def _from_vocab_json(files: TokenizerFiles) -> Tokenizer:
    """GPT-2's files; the tokenizer's class tells how text is cut."""
    vocab, merges = files.path / "vocab.json", files.path / "merges.txt"
    if not vocab.is_file() or not merges.is_file():
        raise SourceNotFound(
            f"{files.path}: there is no tokenizer; looked for tokenizer.model, tokenizer.json, and "
            "vocab.json with merges.txt"
        )
    name = str((files.settings or {}).get("tokenizer_class", "")).removesuffix("Fast")
    rule = _CLASS_RULES.get(name)
    rows = [line.strip() for line in text_of(merges).splitlines()]
    if rows and rows[0].startswith("#"):
        del rows[0]
    vocabulary = _Vocabulary.of(files)
    for text, number in files.vocabulary.items():
        vocabulary.fill(number, text, TokenType.NORMAL, 0.0)
    for number, token in files.added.items():
        vocabulary.add(number, token, spaces=False)
    return Tokenizer(
        kind="bpe",
        tokens=vocabulary.tokens,
        types=vocabulary.types,
        merges=_merges(files, [row for row in rows if row]),
        rule=rule,
        rule_problem="" if rule else f"tokenizer_class {name!r:.60} without a tokenizer.json",
        losses=tuple(files.other_roles),
        warnings=(*vocabulary.warnings, *files.warnings),
        **_common(files),
    )


def _merges(files: TokenizerFiles, merges: Any) -> list[str]:
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
