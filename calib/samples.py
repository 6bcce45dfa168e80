"""Texts for calibration and evaluation: the bundled ten-language set, and the user's own files.

The bundled set lies in ``data/<language>.<split>.jsonl``, one JSON object a line: ``id``,
``language``, ``kind`` and either ``text`` or ``messages``. It was written for this project, and no
passage stands in both splits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from zenconvert.errors import CorruptFile, SourceNotFound, UsageError
from zenconvert.source_files import read_bytes

Split = Literal["calibration", "evaluation"]

LANGUAGES: Final[tuple[str, ...]] = ("en", "zh", "fr", "es", "de", "ru", "ko", "ja", "vi", "ar")

_DATA: Final = Path(__file__).parent / "data"
_MOST_TEXT: Final = 256 * 1024 * 1024
"""Bytes of a file."""
_JSON_LINES: Final = frozenset({".jsonl", ".ndjson"})


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; ``role`` is what the chat template expects (user, assistant, system)."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One document: exactly one of ``text`` and ``messages`` is given.

    ``kind`` of a bundled sample is prose, science, chat, instructions, numbers or code.
    """

    id: str
    language: str
    kind: str
    text: str | None
    messages: tuple[Message, ...] | None

    @property
    def content(self) -> str:
        """The words alone, without any chat template."""
        if self.messages is None:
            return self.text or ""
        return "\n".join(message.content for message in self.messages)


def load_bundled(split: Split, languages: Sequence[str] | None = None) -> list[Sample]:
    """The bundled samples, in the order of ``languages`` (all ten by default).

    Raises UsageError for a language that is not bundled, CorruptFile for a broken row.
    """
    wanted = LANGUAGES if languages is None else tuple(dict.fromkeys(languages))
    unknown = [language for language in wanted if language not in LANGUAGES]
    if unknown:
        raise UsageError(
            f"no bundled text in {', '.join(map(repr, unknown))}; there is {', '.join(LANGUAGES)}"
        )
    return [
        sample
        for language in wanted
        for sample in _load_rows(_DATA / f"{language}.{split}.jsonl", language)
    ]


def load_file(path: str | Path, default_language: str = "und") -> list[Sample]:
    """The samples of a user's UTF-8 file.

    A ``.jsonl`` or ``.ndjson`` file gives one document a line, an object with ``text`` or
    ``messages`` and, if known, ``language``, ``id`` and ``kind``. Any other file is plain text and
    one single document: blank lines belong to it, as in the text files of perplexity benchmarks.
    ``default_language`` (und: undetermined) holds where none is named.

    Raises UsageError when there is no such file, CorruptFile for a broken row or bad UTF-8.
    """
    path = Path(path)
    if path.suffix.lower() in _JSON_LINES:
        return _load_rows(path, default_language)
    text = _read(path)
    if not text.strip():
        return []
    return [Sample(path.name, default_language, "text", text, None)]


def _load_rows(path: Path, default_language: str) -> list[Sample]:
    # str.splitlines would also cut at U+2028 and U+0085, which JSON strings may hold unescaped.
    lines = _read(path).split("\n")
    return [
        _parse_row(line, f"{path.name}:{number}", default_language)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _read(path: Path) -> str:
    try:
        return read_bytes(path, _MOST_TEXT).decode("utf-8-sig")
    except SourceNotFound as error:
        raise UsageError(f"{path}: there is no such text file") from error
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path}: not UTF-8 at byte {error.start}; convert the file") from error


def _parse_row(line: str, where: str, default_language: str) -> Sample:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{where}: the line is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise CorruptFile(f"{where}: expected a JSON object, found {type(row).__name__}")
    return sample_of_row(row, where, default_language)


def sample_of_row(row: dict[str, Any], where: str, default_language: str) -> Sample:
    """The sample that a row of any kind of table describes. Raises CorruptFile."""
    if ("text" in row) == ("messages" in row):
        raise CorruptFile(f"{where}: expected either 'text' or 'messages', found {sorted(row)}")
    text = _string(row, "text", where) if "text" in row else None
    messages = _messages(row["messages"], where) if "messages" in row else None
    return Sample(
        id=_string(row, "id", where, where),
        language=_string(row, "language", where, default_language),
        kind=_string(row, "kind", where, "text" if messages is None else "chat"),
        text=text,
        messages=messages,
    )


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise CorruptFile(f"{where}: 'messages' must be a list that is not empty")
    if not all(isinstance(item, dict) for item in value):
        raise CorruptFile(f"{where}: every message must be an object with 'role' and 'content'")
    return tuple(
        Message(_string(item, "role", where), _string(item, "content", where)) for item in value
    )


def _string(row: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str) or not value.strip():
        raise CorruptFile(f"{where}: {key!r} must be a string with text in it, found {value!r:.80}")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise CorruptFile(f"{where}: {key!r} holds half a surrogate pair, which is no character")
    return value
