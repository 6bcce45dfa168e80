"""What llama.cpp does otherwise than a ``tokenizer.json`` says, told by name.

Source: ``tokenizer_st_partition`` and the special-token tables of ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from zenconvert.formats.hf import fast
from zenconvert.formats.hf.frame import Frame, frame_of
from zenconvert.formats.hf.sentencepiece_model import BYTE, SentencePieceModel
from zenconvert.formats.hf.tokenizer_files import Added, also_words
from zenconvert.formats.hf.tokenizer_structure import SPACE, parts_of
from zenconvert.model import pretokenizer
from zenconvert.model.tokenizer import Tokenizer, TokenType

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

_SHOWN: Final = 3


def losses_of(
    tokenizer: Tokenizer,
    added: Mapping[int, Added],
    library: FastTokenizer,
    definition: Mapping[str, Any],
) -> tuple[str, ...]:
    """Everything but the structure; ``library`` is the loaded tokenizer."""
    if tokenizer.problem:
        return ()
    found = [
        *_flags(tokenizer, added, definition),
        *_spaces(tokenizer, added, library),
        *_words(tokenizer, added, definition),
        *_frame(tokenizer, library, definition),
        *_texts(tokenizer),
    ]
    rule = pretokenizer.by_name(tokenizer.rule) if tokenizer.rule else None
    return (*found, *(rule.losses if rule is not None else ()))


def unlike_sentencepiece(model: SentencePieceModel) -> tuple[str, tuple[str, ...]]:
    """Why GGUF cannot have a lone tokenizer.model, empty where it can, and what gets lost."""
    missing = 256 - sum(piece.type == BYTE for piece in model.pieces)
    problem = f"{missing} of the 256 byte tokens are missing, which llama.cpp needs"
    losses = {
        "spaces around a text, and all but one of several, are kept": model.removes_spaces,
        "its table of normal forms is not applied": bool(model.normal_table),
    }
    return problem if missing > 0 else "", tuple(text for text, there in losses.items() if there)


def ignored_of(definition: Mapping[str, Any]) -> Iterator[str]:
    """Parts of a tokenizer.json that matter to texts in other normal forms, or to batches."""
    parts = parts_of(definition.get("normalizer"), "normalizers")
    if any(part.get("type") == "NFC" for part in parts):
        yield "normalizer NFC: texts are taken to be in that form, as nearly all are"
    for key in ("truncation", "padding"):
        if definition.get(key) is not None:
            yield f"{key}: the caller's business"


def _shown(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(repr(text) for text in texts[:_SHOWN]) + more


def _flags(
    tokenizer: Tokenizer, added: Mapping[int, Added], definition: Mapping[str, Any]
) -> Iterator[str]:
    """Flags of added tokens that llama.cpp does not have."""
    if texts := [t.text for t in added.values() if t.single_word]:
        yield f"{_shown(texts)} is recognised inside words too (single_word)"
    changing = [
        part for part in parts_of(definition.get("normalizer"), "normalizers")
        if part.get("type") != "NFC"
    ]  # fmt: skip
    if changing and (texts := [t.text for t in added.values() if t.normalized]):
        yield f"{_shown(texts)} is looked for before the text is normalized (normalized)"


def with_spaces(added: Mapping[int, Added]) -> Iterator[tuple[int, str]]:
    """Id of every added token with ▁ for which llama.cpp has spaces, and what that means."""
    for number, t in added.items():
        if not t.special and not t.normalized and SPACE in t.text:
            yield number, f"{t.text!r:.60} is looked for with spaces in place of ▁"


def _spaces(
    tokenizer: Tokenizer, added: Mapping[int, Added], library: FastTokenizer
) -> Iterator[str]:
    """Added tokens with ▁; those of nothing else may come out of spaces in both."""
    for number, told in with_spaces(added) if tokenizer.kind == "spm" else ():
        text = added[number].text
        if text.strip(SPACE) or number not in fast.encode(library, f"a{' ' * len(text)}"):
            yield told


def _words(
    tokenizer: Tokenizer, added: Mapping[int, Added], definition: Mapping[str, Any]
) -> Iterator[str]:
    """Added tokens that llama.cpp also takes for words, as it does not merge those that are tokens;
    the library asks the model's own vocabulary."""
    rule = pretokenizer.by_name(tokenizer.rule) if tokenizer.rule else None
    if rule is None or not rule.ignore_merges:
        return
    found = also_words(definition["model"]["vocab"], [t.text for t in added.values()])
    for text, word in found.items():
        yield f"{text!r:.60} is also the word {word.decode(errors='replace')!r:.60}"


def _frame(
    tokenizer: Tokenizer, library: FastTokenizer, definition: Mapping[str, Any]
) -> Iterator[str]:
    """What the post-processor puts around a text, beside BOS and EOS."""
    frame = frame_of(library)
    ids = {r: (tokenizer.special[r],) for r in ("bos", "eos") if tokenizer.adds.get(r)}
    if not frame.regular or _repeats(definition):
        yield "the post-processor does not keep a text once, between tokens, as llama.cpp does"
    elif frame != Frame(ids.get("bos", ()), ids.get("eos", ())):
        texts = [library.id_to_token(i) or str(i) for i in (*frame.before, *frame.after)]
        yield f"the post-processor puts {_shown(texts)} around a text, llama.cpp only BOS and EOS"


def _repeats(definition: Mapping[str, Any]) -> bool:
    """Whether a template has a text more than once, or not at all, with special tokens or not."""
    for part in parts_of(definition.get("post_processor"), "processors"):
        if part.get("type") == "TemplateProcessing":
            texts = [one for one in part.get("single") or () if "Sequence" in one]
            if len(texts) != 1:
                return True
    return False


def _texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Plain tokens that llama.cpp recognises as special by their text."""
    texts = [
        text
        for text, kind in zip(tokenizer.tokens, tokenizer.types, strict=True)
        if kind == TokenType.NORMAL and text in pretokenizer.always_control()
    ]
    if texts:
        yield f"{_shown(texts)} is taken for a control token because of its text"


def score_losses(tokenizer: Tokenizer, definition: Mapping[str, Any]) -> Iterator[str]:
    """Where files tell merges by scores, llama.cpp merges whatever makes a piece, by the piece's
    score; tokenizer.json by pair."""
    if tokenizer.problem or tokenizer.kind != "spm":
        return
    vocab: Mapping[str, int] = definition["model"]["vocab"]
    assert tokenizer.scores is not None
    given: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(definition["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        given.setdefault((left, right), rank)
    scores = {text: tokenizer.scores[number] for text, number in vocab.items()}
    last = math.inf
    for left, right in given:
        if scores.get(left + right, -math.inf) > last:
            yield f"{left + right!r} is merged earlier than in tokenizer.json"
            return
        last = scores.get(left + right, last)
    for text, number in vocab.items():
        if tokenizer.types[number] != TokenType.NORMAL:
            continue
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair not in given and pair[0] in vocab and pair[1] in vocab:
                yield f"{text!r} is also made of {pair[0]!r} and {pair[1]!r}"
                return
