"""Texts for calibration and evaluation: the bundled ten-language set, and the user's own files.

The bundled set lies in ``data/<language>.<split>.jsonl``, one JSON object a line: ``id``,
``language``, ``kind`` and either ``text`` or ``messages``. It was written for this project, and no
passage stands in both splits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from zenconvert.base.source_files import what_it_is
from zenconvert.errors import CorruptFile, SourceNotFound, UsageError
from zenconvert.texts.rows import Row, array_rows, line_rows, read_document, table_rows

Split = Literal["calibration", "evaluation"]

LANGUAGES: Final[tuple[str, ...]] = ("en", "zh", "fr", "es", "de", "ru", "ko", "ja", "vi", "ar")

_DATA: Final = Path(__file__).parent / "data"
_DOCUMENTS: Final = "pdf ps doc docx odt rtf epub ppt pptx odp xls xlsx ods html htm xml ipynb"
_DATA_FILES: Final = "parquet arrow feather orc avro npy npz h5 db sqlite pkl pickle"
_CONFIGS: Final = "yaml yml toml json5"
_MODELS: Final = "bin pt pth ckpt safetensors gguf onnx dat imatrix"
_ARCHIVES: Final = "zip gz tgz xz zst bz2 7z rar tar"
_MEDIA: Final = "png jpg jpeg gif webp bmp svg tif tiff mp3 wav flac ogg mp4 avi mkv webm"
_NO_TEXT: Final = frozenset(
    f".{name}"
    for names in (_DOCUMENTS, _DATA_FILES, _CONFIGS, _MODELS, _ARCHIVES, _MEDIA)
    for name in names.split()
)
FACTS: Final = frozenset({"id", "language", "kind", "input", "system"})
"""Columns that are no text of their own."""
_ROWS: Final[Mapping[str, Callable[[Path], Iterator[Row]]]] = {
    ".jsonl": line_rows,
    ".ndjson": line_rows,
    ".jsonlines": line_rows,
    ".ldjson": line_rows,
    ".jl": line_rows,
    ".json": array_rows,
    ".csv": partial(table_rows, delimiter=",", facts=FACTS),
    ".tsv": partial(table_rows, delimiter="\t", facts=FACTS),
    ".tab": partial(table_rows, delimiter="\t", facts=FACTS),
}
_ROLES: Final = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
_QUESTIONS: Final = {
    "instruction": ("output", "response"),
    "prompt": ("completion", "response", "chosen"),
    "question": ("answer", "response"),
    "query": ("response", "answer"),
}
"""Keys of rows with a question → those that the answer may have."""
_TURNS: Final = ("conversations", "conversation")
_TEXTS: Final = frozenset({"text", "messages", *_TURNS, *_QUESTIONS})
"""Keys that make an object a row of texts."""
_TAG: Final = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")


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

    A ``.jsonl`` file (or ``.ndjson``, ``.jsonlines``, ``.ldjson``, ``.jl``) gives one document a
    line, a ``.json`` file an array of them and ``.csv`` and ``.tsv`` files one a row (with a head):
    objects with ``text`` or ``messages`` and, if known, ``language``, ``id`` and ``kind``, or rows
    as Alpaca and ShareGPT have them; rows whose text is blank are left out. Any other file is plain
    text and one single document: blank lines belong to it, as in the text files of perplexity
    benchmarks. ``default_language`` (und: undetermined) holds where none is named.

    Raises UsageError when there is no such file or it is known to be no text, CorruptFile for a
    broken row or bad UTF-8.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _NO_TEXT:
        raise UsageError(
            f"{path}: {suffix} files are no plain text; give UTF-8 text, or JSON lines (.jsonl) "
            'with {"text": …} on every line'
        )
    other = what_it_is(path) or ""
    if other.startswith("a pointer") or (suffix in _ROWS and other and not _is_blank(path)):
        raise CorruptFile(f"{path}: it is {other}")
    try:
        if suffix in _ROWS:
            return list(_samples(path.name, _ROWS[suffix](path), default_language))
        text = read_document(path)
    except SourceNotFound as error:
        raise UsageError(f"{path}: there is no such text file, or it cannot be read") from error
    if not text.strip():
        return []
    if _is_rows(text):
        raise UsageError(
            f"{path}: it holds JSON objects with texts and is not called so; name it .jsonl (one a "
            "line) or .json (an array)"
        )
    return [Sample(path.name, default_language, "text", text, None)]


def _is_blank(path: Path) -> bool:
    return path.stat().st_size == 0


def _is_rows(text: str) -> bool:
    """Whether a text is an array or lines of objects that hold texts, by its first line."""
    first = text.lstrip()
    if not first.startswith(("{", "[")):
        return False
    try:
        value = json.loads(first if first.startswith("[") else first.partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    value = value[0] if isinstance(value, list) and value else value
    return isinstance(value, dict) and not _TEXTS.isdisjoint(value)


def _samples(name: str, rows: Iterable[Row], default_language: str) -> Iterator[Sample]:
    """The samples of rows."""
    for number, row in rows:
        where = f"{name}:{number}"
        if not isinstance(row, dict):
            raise CorruptFile(f"{where}: expected a JSON object, found {type(row).__name__}")
        if not _is_empty(row):
            yield sample_of_row(row, where, default_language)


def _is_empty(row: Mapping[str, Any]) -> bool:
    """Whether a row has no text but could have some, as exported data sets have a few."""
    text, others = row.get("text", 0), {k for k, v in row.items() if v is not None} - {"text"}
    blank = text is None or (isinstance(text, str) and not text.strip())
    return blank and _TEXTS.isdisjoint(others)


def sample_of_row(row: dict[str, Any], where: str, default_language: str) -> Sample:
    """The sample that a row of any kind of table describes; null is absent. Raises CorruptFile."""
    row = {key: value for key, value in row.items() if value is not None}
    if type(row.get("id")) is int:
        row["id"] = str(row["id"])
    for key in ("language", "kind"):
        if isinstance(row.get(key), str) and not row[key].strip():
            del row[key]
    row = _as_messages(row, where)
    if ("text" in row) == ("messages" in row):
        raise CorruptFile(
            f"{where}: expected either 'text' or 'messages', found {sorted(map(str, row))[:12]}"
        )
    text = _string(row, "text", where) if "text" in row else None
    messages = _messages(row["messages"], where) if "messages" in row else None
    return Sample(
        id=_string(row, "id", where, where),
        language=language_tag(_string(row, "language", where, default_language)),
        kind=_string(row, "kind", where, "text" if messages is None else "chat"),
        text=text,
        messages=messages,
    )


def language_tag(name: str) -> str:
    """A code of a language as the bundled texts spell it: ``EN`` is en, ``pt_BR`` is pt-BR."""
    if _TAG.fullmatch(name) is None:
        return name
    first, *rest = re.split("[-_]", name)
    return "-".join([first.lower(), *rest])


def _as_messages(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row of Alpaca, of ShareGPT or of prompts and answers as one with messages."""
    if "text" in row or "messages" in row:
        return row
    name = next((name for name in _TURNS if isinstance(row.get(name), list)), None)
    if name is not None:
        turns = row[name]
        if not all(isinstance(turn, dict) for turn in turns):
            raise CorruptFile(f"{where}: every turn of {name!r} must be an object")
        system = row.get("system") if all(_role(turn) != "system" for turn in turns) else None
        return {**row, "messages": [*_system(system), *map(_message, turns)]}
    for question, answers in _QUESTIONS.items():
        answer = next((key for key in answers if key in row), "")
        if isinstance(row.get(question), list) and isinstance(row.get(answer), list):
            return {**row, "messages": [*row[question], *row[answer]]}
        if isinstance(row.get(question), str) and answer:
            asked = [row[question], row.get("input") if question == "instruction" else None]
            text = "\n\n".join(part for part in asked if isinstance(part, str) and part.strip())
            before = [*_system(row.get("system")), *_history(row.get("history"), where)]
            return {**row, "messages": [*before, *_exchange((text, row[answer]))]}
    return row


def _role(turn: Mapping[str, Any]) -> Any:
    return _ROLES.get(str(turn.get("from", turn.get("role"))), turn.get("from"))


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": _role(turn), "content": turn.get("value", turn.get("content"))}


def _system(text: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}] if text else []


def _exchange(pair: Sequence[Any]) -> list[dict[str, Any]]:
    question, answer = pair
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _history(turns: Any, where: str) -> list[dict[str, Any]]:
    """Messages of the turns before a question: pairs of texts, or objects as ShareGPT has them."""
    if not turns:
        return []
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        return [_message(turn) for turn in turns]
    if isinstance(turns, list) and all(isinstance(t, list) and len(t) == 2 for t in turns):
        return [message for pair in turns for message in _exchange(pair)]
    raise CorruptFile(
        f"{where}: 'history' must be a list of pairs of a question and its answer, found "
        f"{turns!r:.80}"
    )


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise CorruptFile(f"{where}: 'messages' must be a list that is not empty")
    if not all(isinstance(item, dict) for item in value):
        raise CorruptFile(f"{where}: every message must be an object with 'role' and 'content'")
    told = [_with_text(item) for item in value]
    return tuple(
        Message(_string(item, "role", where), _string(item, "content", where))
        for item in told
        if item.get("content") is not None or not item.get("tool_calls")  # which say nothing
    )


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a text, where it is parts some of which are texts."""
    parts = message.get("content")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return message
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return {**message, "content": "\n".join(texts)}


def _string(row: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str) or not value.strip():
        raise CorruptFile(f"{where}: {key!r} must be a string with text in it, found {value!r:.80}")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise CorruptFile(f"{where}: {key!r} holds half a surrogate pair, which is no character")
    return value
