"""SentencePiece's ``tokenizer.model``: the pieces of a ModelProto, read and written.

::

    ModelProto       1: repeated SentencePiece   2: TrainerSpec   3: NormalizerSpec
    SentencePiece    1: string piece   2: float score   3: enum type
    TrainerSpec      3: enum model_type (1 unigram, 2 BPE)   4: vocab_size
                     24: treat_whitespace_as_suffix   35: byte_fallback
                     40…43: unk, bos, eos, pad id
    NormalizerSpec   1: string name   2: bytes precompiled_charsmap   3: add_dummy_prefix
                     4: remove_extra_whitespaces   5: escape_whitespaces

Source: sentencepiece_model.proto of google/sentencepiece. Only the protobuf wire format is needed,
so that reading a tokenizer asks for no library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zenconvert.base.source_files import broken, read_bytes

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE: Final = 2
_UNIGRAM: Final = 1
_MAX_SIZE: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece; ``type`` as in SentencePiece.Type."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What conversions need of a model file."""

    pieces: tuple[Piece, ...]
    model_type: int
    add_dummy_prefix: bool = True
    """Whether a space is put before a text."""
    removes_spaces: bool = True
    """Whether spaces around a text, and all but one of several, are removed."""
    normal_table: bytes = b""
    """By which characters are replaced before anything else: ``precompiled_charsmap``."""
    spaces_behind: bool = False
    """Whether a word's space stands behind it."""
    escapes_spaces: bool = True
    """Whether ``▁`` is written for a space."""


def read(path: Path) -> SentencePieceModel:
    """Parse ``tokenizer.model``. Raises SourceNotFound or CorruptFile."""
    data = read_bytes(path, _MAX_SIZE)
    try:
        pieces: list[Piece] = []
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number in (2, 3) and isinstance(value, bytes):
                (trainer if number == 2 else normalizer).update(_fields(value))
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise broken(path, f"no SentencePiece model: {error}") from error
    if not pieces:
        raise broken(path, "the SentencePiece model has no pieces")
    model_type = trainer.get(3, _UNIGRAM)
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=model_type if isinstance(model_type, int) else _UNIGRAM,
        add_dummy_prefix=bool(normalizer.get(3, True)),
        removes_spaces=bool(normalizer.get(4, True)),
        normal_table=table if isinstance(table := normalizer.get(2), bytes) else b"",
        spaces_behind=bool(trainer.get(24, False)),
        escapes_spaces=bool(normalizer.get(5, True)),
    )


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    if not NORMAL <= kind <= BYTE:
        raise ValueError(f"the piece {text!r:.60} is of type {kind}; there are types 1 to 6")
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value: varints as int, everything else as its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(data):
            raise ValueError(f"a field of {length} bytes at byte {at} of {len(data)}")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"an endless number at byte {at}")


def write(pieces: Sequence[Piece], special: dict[str, int], *, add_dummy_prefix: bool) -> bytes:
    """A BPE model with byte fallback; ``special`` maps unk, bos, eos, pad to ids."""
    ids = ((40, "unk"), (41, "bos"), (42, "eos"), (43, "pad"))
    trainer = _number(3, BPE) + _number(4, len(pieces)) + _number(35, 1)
    trainer += b"".join(_number(n, special.get(role, -1)) for n, role in ids)
    normalizer = _bytes(1, b"identity") + _number(3, int(add_dummy_prefix))
    normalizer += _number(4, 0) + _number(5, 1)
    rows = (
        _bytes(1, p.text.encode("utf-8"))
        + _tag(2, 5)
        + struct.pack("<f", p.score)
        + (_number(3, p.type) if p.type != NORMAL else b"")
        for p in pieces
    )
    return b"".join(_bytes(1, row) for row in rows) + _bytes(2, trainer) + _bytes(3, normalizer)


def _tag(number: int, wire: int) -> bytes:
    return _pack(number << 3 | wire)


def _number(number: int, value: int) -> bytes:
    return _tag(number, 0) + _pack(value & (1 << 64) - 1)


def _bytes(number: int, value: bytes) -> bytes:
    return _tag(number, 2) + _pack(len(value)) + value


def _pack(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
