"""Texts for calibration and evaluation: the bundled ten-language set, and the user's own files.

The bundled set lies in ``data/<language>.<split>.jsonl``, one JSON object a line: ``id``,
``language``, ``kind`` and either ``text`` or ``messages``. It was written for this project, and no
passage stands in both splits.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from zenconvert.base.source_files import broken, read_bytes
from zenconvert.errors import CorruptFile, SourceNotFound, UsageError

Split = Literal["calibration", "evaluation"]

LANGUAGES: Final[tuple[str, ...]] = ("en", "zh", "fr", "es", "de", "ru", "ko", "ja", "vi", "ar")

_DATA: Final = Path(__file__).parent / "data"
_MOST_TEXT: Final = 256 * 1024 * 1024
"""Bytes of a file."""
_JSON_LINES: Final = frozenset({".jsonl", ".ndjson"})
_TABLES: Final = {".csv": ",", ".tsv": "\t"}
_DOCUMENTS: Final = "pdf ps doc docx odt rtf epub ppt pptx odp xls xlsx ods html htm xml ipynb"
_DATA_FILES: Final = "parquet arrow feather orc avro npy npz h5 db sqlite pkl pickle"
_MODELS: Final = "bin pt pth ckpt safetensors gguf onnx dat imatrix"
_ARCHIVES: Final = "zip gz tgz xz zst bz2 7z rar tar"
_MEDIA: Final = "png jpg jpeg gif webp bmp svg tif tiff mp3 wav flac ogg mp4 avi mkv webm"
_NO_TEXT: Final = frozenset(
    f".{name}"
    for names in (_DOCUMENTS, _DATA_FILES, _MODELS, _ARCHIVES, _MEDIA)
    for name in names.split()
)
FACTS: Final = frozenset({"id", "language", "kind", "input", "system"})
"""Columns that are no text of their own."""
_ROLES: Final = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
_QUESTIONS: Final = {"instruction": "output", "prompt": "completion", "question": "answer"}
"""Keys of rows with a question → that of the answer."""


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
        for sample in load_file(_DATA / f"{language}.{split}.jsonl", language)
    ]


def load_file(path: str | Path, default_language: str = "und") -> list[Sample]:
    """The samples of a user's UTF-8 file.

    A ``.jsonl`` or ``.ndjson`` file gives one document a line, a ``.json`` file an array of them
    and ``.csv`` and ``.tsv`` files one a row (with a head): objects with ``text`` or ``messages``
    and, if known, ``language``, ``id`` and ``kind``, or rows as Alpaca and ShareGPT have them. Any
    other file is plain text and one single document: blank lines belong to it, as in the text
    files of perplexity benchmarks. ``default_language`` (und: undetermined) holds where none is
    named.

    Raises UsageError when there is no such file or it is known to be no text, CorruptFile for a
    broken row or bad UTF-8.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _JSON_LINES:
        return _load_rows(_read(path), path.name, default_language)
    if suffix == ".json":
        return _load_array(path, default_language)
    if suffix in _TABLES:
        return _load_table(path, _TABLES[suffix], default_language)
    if suffix in _NO_TEXT:
        raise UsageError(
            f"{path}: {suffix} files are no plain text; give UTF-8 text, or JSON lines (.jsonl) "
            'with {"text": …} on every line'
        )
    text = _read(path)
    if not text.strip():
        return []
    return [Sample(path.name, default_language, "text", text, None)]


def _load_array(path: Path, default_language: str) -> list[Sample]:
    """A JSON array of rows, or one row; files of JSON lines are sometimes called ``.json``, too."""
    text = _read(path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1 and lines[0].rstrip().endswith("}"):
            return _load_rows(text, path.name, default_language)
        raise CorruptFile(f"{path}: neither a JSON array nor JSON lines: {error}") from error
    rows = rows if isinstance(rows, list) else [rows]
    samples = []
    for number, row in enumerate(rows, 1):
        where = f"{path.name}:{number}"
        if not isinstance(row, dict):
            raise CorruptFile(f"{where}: expected a JSON object, found {type(row).__name__}")
        samples.append(sample_of_row(row, where, default_language))
    return samples


def _load_table(path: Path, delimiter: str, default_language: str) -> list[Sample]:
    """Rows of a table with a head; empty cells count as absent, rows without text are left out."""
    reader = csv.DictReader(io.StringIO(_read(path), newline=""), delimiter=delimiter)
    try:
        if not {"text", "instruction", "prompt"} & set(reader.fieldnames or ()):
            raise CorruptFile(
                f"{path}: expected a column 'text' (or 'instruction', 'prompt'), found "
                f"{(reader.fieldnames or [])[:8]}"
            )
        rows = [
            {k: v for k, v in row.items() if isinstance(v, str) and v.strip()} for row in reader
        ]
    except csv.Error as error:
        raise CorruptFile(f"{path}:{reader.line_num}: the table cannot be read: {error}") from error
    return [
        sample_of_row(row, f"{path.name}:{number}", default_language)
        for number, row in enumerate(rows, 1)
        if row.keys() - FACTS
    ]


def _load_rows(text: str, name: str, default_language: str) -> list[Sample]:
    # str.splitlines would also cut at U+2028 and U+0085, which JSON strings may hold unescaped.
    lines = text.split("\n")
    return [
        _parse_row(line, f"{name}:{number}", default_language)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _read(path: Path) -> str:
    try:
        data = read_bytes(path, _MOST_TEXT)
    except SourceNotFound as error:
        raise UsageError(f"{path}: there is no such text file, or it cannot be read") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise broken(path, f"not UTF-8 at byte {error.start}; convert the file") from error


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
    row = _as_messages(row, where)
    if ("text" in row) == ("messages" in row):
        raise CorruptFile(
            f"{where}: expected either 'text' or 'messages', found {sorted(map(str, row))[:12]}"
        )
    text = _string(row, "text", where) if "text" in row else None
    messages = _messages(row["messages"], where) if "messages" in row else None
    return Sample(
        id=_string(row, "id", where, where),
        language=_string(row, "language", where, default_language),
        kind=_string(row, "kind", where, "text" if messages is None else "chat"),
        text=text,
        messages=messages,
    )


def _as_messages(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row of Alpaca, of ShareGPT or of prompts and answers as one with messages."""
    if "text" in row or "messages" in row:
        return row
    if isinstance(turns := row.get("conversations"), list):
        if not all(isinstance(turn, dict) for turn in turns):
            raise CorruptFile(f"{where}: every turn of 'conversations' must be an object")
        messages = [
            {
                "role": _ROLES.get(str(turn.get("from", turn.get("role"))), turn.get("from")),
                "content": turn.get("value", turn.get("content")),
            }
            for turn in turns
        ]
        return {**row, "messages": messages}
    for question, answer in _QUESTIONS.items():
        if isinstance(row.get(question), str) and answer in row:
            asked = [row[question], row.get("input") if question == "instruction" else None]
            text = "\n\n".join(part for part in asked if isinstance(part, str) and part.strip())
            system = row.get("system")
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": text})
            return {**row, "messages": [*messages, {"role": "assistant", "content": row[answer]}]}
    return row


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
