"""What ``--samples`` takes: files, folders and data sets of the Hub.

* ``FILE``: text (one document), ``.jsonl`` (one document a line), ``.json`` (an array of them),
  ``.csv``, ``.tsv`` or ``.parquet`` (one a row), and the other suffixes of these kinds.
* ``DIR``: all such files below it (of these suffixes, ``.txt`` and ``.md``); what else is there and
  is not hidden is warned of by name, links to folders too.
* ``hub:ORGANISATION/NAME[:SPLIT]``: a data set of the Hub; the split ``train`` by default.

Rows hold ``text`` or ``messages`` and, if known, ``language``. Where a row names no language, the
file does: ``de.jsonl`` and ``de.train.txt`` are German, ``pt_BR.txt`` is pt-BR, other files ``und``
(undetermined). Of a table or data set, the first :data:`MOST_ROWS` rows with text in them are read,
or as many of them as hold 256 MB of text.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from zenconvert.base.source_files import size_of, what_it_is
from zenconvert.errors import (
    CorruptFile,
    InputWarning,
    MissingDependency,
    SourceNotFound,
    UsageError,
    first_names,
    several,
)
from zenconvert.texts.parquet_footer import Column, columns, unfolded
from zenconvert.texts.rows import MOST_ROW
from zenconvert.texts.samples import (
    FACTS,
    Sample,
    language_tag,
    load_bundled,
    load_file,
    sample_of_row,
)

MOST_ROWS: Final = 20_000
_MOST_BYTES: Final = 256 * 1024 * 1024
"""Of the text of one table, and of what is unfolded at a time."""
_MOST_NESTED: Final = 4_000_000
"""Values of a list in a row group, all of which one row may have."""
_BATCH: Final = 64
_SHOWN: Final = 5

_SUFFIXES: Final = frozenset(
    {
        ".txt",
        ".md",
        ".jsonl",
        ".ndjson",
        ".jsonlines",
        ".ldjson",
        ".jl",
        ".json",
        ".csv",
        ".tsv",
        ".tab",
        ".parquet",
        ".pq",
    }
)
_PARQUET: Final = frozenset({".parquet", ".pq"})
_COLUMNS: Final = (
    "id", "language", "kind", "text", "messages", "conversations", "conversation", "instruction",
    "input", "output", "system", "prompt", "completion", "chosen", "question", "answer", "query",
    "response",
)  # fmt: skip
_LANGUAGE: Final = re.compile(
    r"([a-z]{2}|arz|ast|bho|ceb|ckb|fil|haw|hmn|ilo|kab|kmr|lij|mai|min|nan|nds|nso|pap|scn|sdh"
    r"|szl|tzm|vec|war|wuu|yue)([-_][A-Z][a-z]{3})?([-_]([A-Z]{2}|[0-9]{3}))?(?=\..)",
)
"""Codes of two letters, and those of three that languages without such a code have."""
_HUB: Final = re.compile(r"hub:(?P<id>[\w.\-]+/[\w.\-]+)(:(?P<split>[\w.\-]+))?")


def load_samples(
    source: str | Path | None = None, languages: Sequence[str] | None = None
) -> list[Sample]:
    """The samples of a source, the bundled calibration texts by default.

    Only those in ``languages`` where given. Raises UsageError for a source that is not there, a
    source without text or a language that it does not have, CorruptFile for broken rows,
    SourceNotFound for a data set that cannot be had, and MissingDependency.
    """
    if source is None:
        return load_bundled("calibration", languages)
    samples = list(_samples(source))
    if not samples:
        raise UsageError(f"{source}: there is no text in it")
    if languages is None:
        return samples
    known = {sample.language for sample in samples}
    if absent := [code for code in languages if code not in known]:
        raise UsageError(
            f"{source}: no text in {', '.join(absent)}; there is {', '.join(sorted(known))}"
        )
    return [sample for sample in samples if sample.language in languages]


def language_of(path: Path) -> str:
    """The language that a file's name begins with, ``und`` where it begins with none."""
    match = _LANGUAGE.match(path.name)
    return language_tag(match[0]) if match else "und"


def _samples(source: str | Path) -> Iterator[Sample]:
    if match := _HUB.fullmatch(str(source)):
        yield from _rows(_hub_rows(match["id"], match["split"] or "train"), str(source), "und")
        return
    path = Path(source)
    if not path.exists():
        raise UsageError(
            f"{source}: there is no such file or folder (a data set of the Hub is written "
            "hub:organisation/name)"
        )
    if not path.is_dir():
        yield from _samples_of(path)
        return
    for file in _files_in(path):
        try:
            yield from _samples_of(file)
        except CorruptFile as error:
            raise CorruptFile(
                f"{path}: {error} (every file of text in the folder is read)"
            ) from error


def _files_in(folder: Path) -> list[Path]:
    """The files of samples below a folder. Of what else is there people are warned."""
    files, others = [], []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            files.append(path)
        elif path.is_symlink() or not path.is_dir():
            others.append(path)
    shown = [path for path in others if "/." not in f"/{path.relative_to(folder)}"]
    if shown:
        told = sorted((_unlikely(path), str(path.relative_to(folder)), path) for path in shown)
        names = [f"{name} ({_why_not(path)})" for _, name, path in told[:_SHOWN]]
        names += [name for _, name, _ in told[_SHOWN:]]
        count = several(len(names), "thing in it is", "things in it are")
        text = f"{folder}: {count} no samples and left out: {first_names(names, _SHOWN)}"
        warnings.warn(InputWarning(text), stacklevel=2)
    return files


def _unlikely(path: Path) -> bool:
    """False where it was meant as samples, by one of its suffixes: ``de.jsonl.gz``."""
    return _SUFFIXES.isdisjoint(suffix.lower() for suffix in path.suffixes)


def _why_not(path: Path) -> str:
    if path.is_symlink() and not path.is_file():
        return "a link to a folder" if path.is_dir() else "a link to nothing that can be read"
    if not path.is_file():
        return "no file"
    return what_it_is(path) or "no suffix of samples"


def _samples_of(file: Path) -> Iterator[Sample]:
    if file.suffix.lower() in _PARQUET:
        yield from _rows(_parquet_rows(file), file.name, language_of(file))
    else:
        yield from load_file(file, language_of(file))


def _rows(rows: Iterable[Mapping[str, Any]], where: str, language: str) -> Iterator[Sample]:
    """Rows of a table, whose absent values are None; rows without text are left out."""
    read = 0
    for number, row in enumerate(rows, 1):
        if read > _MOST_BYTES:
            return
        given = {key: row[key] for key in _COLUMNS if row.get(key) is not None}
        text = given.get("text")
        if isinstance(text, str) and not text.strip():
            del given["text"]
        if isinstance(given.get("id"), int):
            given["id"] = str(given["id"])
        if given.keys() - FACTS:
            sample = sample_of_row(given, f"{where}:{number}", language)
            read += len(sample.content)
            yield sample


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _missing(path) from error
    size_of(path)
    if (other := what_it_is(path)) is not None and not other.startswith("a parquet"):
        raise CorruptFile(f"{path}: it is {other}")
    try:
        texts = _texts(parquet.read_metadata(path).schema)
        stored = [c for c in columns(path) if c.name.split(".")[0] in _COLUMNS]
        _check_groups(path, stored)
        # such texts are no dictionaries, and a few bytes of each may stand for megabytes
        delta = {c.name for c in stored if c.shares_beginnings}
        texts = [name for name in texts if name not in delta]
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            names = file.schema_arrow.names
            known = [name for name in _COLUMNS if name in names]
            if not set(known) - FACTS:
                raise CorruptFile(
                    f"{path}: expected a column 'text' or 'messages', found {names[:8]}"
                )
            batches = file.iter_batches(batch_size=1 if delta else _BATCH, columns=known)
            yield from islice(
                (row for batch in batches for row in _rows_of(path, batch)), MOST_ROWS
            )
    except (ArrowException, OSError, ValueError) as error:
        raise CorruptFile(f"{path}: it cannot be read as parquet: {error}") from error


def _texts(schema: Any) -> list[str]:
    """Columns that stay dictionaries when they are read: what is there often is there once."""
    columns = map(schema.column, range(len(schema)))
    known = [c for c in columns if c.path.split(".")[0] in _COLUMNS]
    return [c.path for c in known if c.physical_type == "BYTE_ARRAY"]


def _check_groups(path: Path, stored: Sequence[Column]) -> None:
    """Raise CorruptFile for columns of a row group that are read whole and too large for that."""
    for column in stored:
        size, values = unfolded(path, column)
        size, values = max(size, column.unfolded), max(values, column.values)
        where = f"{path}: {column.name} of row group {column.group}"
        advice = "write the table in smaller row groups"
        if size > _MOST_BYTES:
            raise CorruptFile(f"{where} unfolds to {size} bytes, more than {_MOST_BYTES}; {advice}")
        if "." in column.name and values > _MOST_NESTED:
            raise CorruptFile(f"{where} has {values} values, more than {_MOST_NESTED}; {advice}")


def _rows_of(path: Path, batch: Any) -> Iterator[Mapping[str, Any]]:
    """Rows one by one, so that no more than one text of a batch is unfolded at a time."""
    large = sum(map(_unfolded_bytes, batch.columns)) > MOST_ROW
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        if large and (size := sum(map(_unfolded_bytes, row.columns))) > MOST_ROW:
            raise CorruptFile(f"{path}: a row unfolds to {size} bytes, more than {MOST_ROW}")
        yield from row.to_pylist()


def _unfolded_bytes(array: Any) -> int:
    """Bytes of the texts in an array, each as often as it is there."""
    from pyarrow import compute, types

    kind, found = array.type, array
    if types.is_struct(kind):
        return sum(map(_unfolded_bytes, array.flatten()))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        return _unfolded_bytes(array.flatten())
    if types.is_dictionary(kind):
        kind, found = kind.value_type, array.dictionary
    if not (types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind)):
        return 0
    lengths = compute.binary_length(found)
    if found is not array:
        lengths = lengths.take(array.indices)
    return int(compute.sum(lengths).as_py() or 0)


def _hub_rows(name: str, split: str) -> Iterator[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise _missing(f"hub:{name}") from error
    try:
        yield from islice(datasets.load_dataset(name, split=split, streaming=True), MOST_ROWS)
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceNotFound(
            f"hub:{name}: the split {split!r} of this data set cannot be had: {error}"
        ) from error


def _missing(source: object) -> MissingDependency:
    return MissingDependency(
        f"{source}: tables and data sets need more packages; install zenconvert[datasets]"
    )
