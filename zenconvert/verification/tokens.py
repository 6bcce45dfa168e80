"""Tokens as bytes, and the positions where two models differ most, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.model.tokenizer import Tokenizer, TokenType, gpt2_alphabet
from zenconvert.texts.windows import Window
from zenconvert.verification.metrics import TokenScores

WORST: Final = 10
_CONTEXT_BYTES: Final = 160
_SPACE: Final = "▁"


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """What every token adds to a text, UTF-8; special tokens stand for their own names."""
    raw = gpt2_alphabet() if tokenizer.kind == "bpe" else {}
    plain = {TokenType.NORMAL, TokenType.UNUSED}
    result = []
    for text, kind in zip(tokenizer.tokens, tokenizer.types, strict=True):
        if kind == TokenType.BYTE:
            result.append(bytes([int(text[3:5], 16)]))  # <0x0A>
        elif kind in plain and tokenizer.kind in {"spm", "unigram"}:
            result.append(text.replace(_SPACE, " ").encode())
        elif kind in plain and all(char in raw for char in text):
            result.append(bytes(raw[char] for char in text))
        else:
            result.append(text.encode())
    return result


@dataclass(frozen=True, slots=True)
class Position:
    """One predicted token, with what both models thought."""

    language: str
    sample: str
    window: int
    """Number of the window in the run, from 0."""
    position: int
    """Index of the predicted token in the window."""
    kl: float
    before: str
    """The end of the text that both models had read."""
    token: str
    """The token that followed, and its probability under each model."""
    reference_p: float
    candidate_p: float
    reference_top: str
    """What the reference puts first, and how probable it finds that."""
    reference_top_p: float
    candidate_top: str
    candidate_top_p: float

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def worst_positions(
    windows: Sequence[Window], scores: Sequence[TokenScores], texts: Sequence[bytes]
) -> list[Position]:
    """The :data:`WORST` positions by KL divergence, worst first; ``scores`` are by window."""
    candidates = [
        (float(found.kl[at]), index, int(at))
        for index, found in enumerate(scores)
        for at in np.argsort(-found.kl, kind="stable")[:WORST]
    ]
    worst = sorted(candidates, key=lambda c: (-c[0], c[1], c[2]))[:WORST]
    return [_position(windows[i], i, at, scores[i], texts) for _, i, at in worst]


def _position(
    window: Window, index: int, at: int, scores: TokenScores, texts: Sequence[bytes]
) -> Position:
    read = b"".join(texts[i] for i in window.ids[max(0, at + 1 - _CONTEXT_BYTES) : at + 1])
    return Position(
        language=window.language,
        sample=window.sample,
        window=index,
        position=at + 1,
        kl=float(scores.kl[at]),
        before=_cut(read).decode("utf-8", "replace"),
        token=_shown(texts, int(scores.tokens[at])),
        reference_p=_probability(scores.reference_nll[at]),
        candidate_p=_probability(scores.candidate_nll[at]),
        reference_top=_shown(texts, int(scores.reference_top[at])),
        reference_top_p=_probability(scores.reference_top_nll[at]),
        candidate_top=_shown(texts, int(scores.candidate_top[at])),
        candidate_top_p=_probability(scores.candidate_top_nll[at]),
    )


def _cut(text: bytes) -> bytes:
    """The last bytes, from the start of a character on."""
    part = text[-_CONTEXT_BYTES:]
    skipped = 0
    while len(text) > len(part) and skipped < min(3, len(part)) and part[skipped] & 0xC0 == 0x80:
        skipped += 1
    return part[skipped:]


def _shown(texts: Sequence[bytes], token: int) -> str:
    """A token as text; a part of a character as its bytes."""
    try:
        return texts[token].decode("utf-8")
    except UnicodeDecodeError:
        return " ".join(f"<{byte:02X}>" for byte in texts[token])


def _probability(nll: np.float64) -> float:
    return float(np.exp(-nll))


def byte_lengths(texts: Sequence[bytes]) -> NDArray[np.int32]:
    """Bytes of every token, int32[vocab]."""
    return np.array([len(text) for text in texts], dtype=np.int32)
