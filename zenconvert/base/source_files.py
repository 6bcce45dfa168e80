"""Files that others made: opened only if they are plain, read only up to a limit.

Where a file is not what its name says, :func:`broken` tells what it is: a pointer of Git LFS, a web
page, an archive. Links may lead out of a folder only as the Hub cache has them, from
``snapshots/REVISION`` to ``blobs``.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from zenconvert.base.json_text import json_value
from zenconvert.errors import CorruptFile, InvalidInput, SourceNotFound, UnsafePath

MAX_TEXT: Final = 16 * 1024 * 1024
MAX_TOML: Final = 128 * 1024
"""Characters: a thousand variants of a release."""
MAX_KEY_PARTS: Final = 32
_HEAD: Final = 512
_KINDS: Final = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
_MAGIC: Final = {
    b"version https://git-lfs.github.com/spec/": (
        "a pointer of Git LFS and not the file itself; `git lfs pull` in its folder gets the file"
    ),
    b"version https://hawser.github.com/spec/": (
        "a pointer of Git LFS and not the file itself; `git lfs pull` in its folder gets the file"
    ),
    b"PAR1": "a parquet table; give it a name that ends in .parquet",
    b"GGUF": "a GGUF file; give it a name that ends in .gguf",
    b"tjgg": "a GGJT file of before August 2023; get the model as GGUF",
    b"fmgg": "a GGMF file of before August 2023; get the model as GGUF",
    b"lmgg": "a GGML file of before August 2023; get the model as GGUF",
    b"PK\x03\x04": "a zip archive (as torch.save writes, or to be unpacked first)",
    b"\x80\x02": "a pickle, which may run code when opened; convert it to safetensors first",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
}
# strings and comments of TOML: what is left are keys, numbers and brackets
_TOML_TEXT: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"""|' + r"'''(?:[^']|'(?!''))*+'''"
    r'|"(?:[^"\\\n]|\\.)*+"' + r"|'[^'\n]*+'|#[^\n]*+",
    re.DOTALL,
)
_TOML_KEY: Final = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MAX_KEY_PARTS}}}")
_PAGE: Final = re.compile(rb"\s*(<!doctype|<html|<\?xml|<error|<head)", re.IGNORECASE)


def size_of(path: Path) -> int:
    """Bytes of a plain file. Raises SourceNotFound, or InvalidInput for what is no plain file."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise SourceNotFound(f"{shown(path)}: cannot be read: {_reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise InvalidInput(f"{path}: expected a file and found {kind}")
    return status.st_size


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tell what the system refuses while an input is read as SourceNotFound with its name."""
    try:
        yield
    except OSError as error:
        where = path if error.filename is None else Path(os.fsdecode(error.filename))
        raise SourceNotFound(f"{shown(where)}: cannot be read: {_reason(error)}") from error


def is_there(path: Path) -> bool:
    """Whether something stands at a path, of whatever kind; false where no such name can be."""
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def read_bytes(path: Path, limit: int = MAX_TEXT) -> bytes:
    """A whole plain file. Raises SourceNotFound, or InvalidInput for one above ``limit`` bytes."""
    size = size_of(path)
    if size > limit:
        raise CorruptFile(f"{path}: it has {size} bytes; files of its kind have at most {limit}")
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise SourceNotFound(f"{path}: cannot be read: {_reason(error)}") from error


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """A whole UTF-8 file. Raises as :func:`read_bytes`, and CorruptFile for other encodings."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise broken(path, f"no UTF-8 text: {error.reason} at byte {error.start}") from error


def parse_json(path: Path, limit: int = MAX_TEXT) -> Any:
    """The value of a JSON file. Raises as :func:`read_text`."""
    text = read_text(path, limit)
    try:
        return json_value(text)
    except (ValueError, RecursionError) as error:
        raise broken(path, f"no valid JSON: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text that people wrote.

    Raises ValueError (tomllib.TOMLDecodeError where it is no TOML) for a text, a key or a number
    that is longer than such texts have, and which tomllib would take minutes for.
    """
    if len(text) > MAX_TOML:
        raise ValueError(f"it has {len(text)} characters; such files have at most {MAX_TOML}")
    bare = _TOML_TEXT.sub("x", text)
    if _TOML_KEY.search(bare):
        raise ValueError(f"a key has more than {MAX_KEY_PARTS} parts")
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if (number := _too_large(table)) is not None:
        raise ValueError(f"a whole number of {number.bit_length()} bits; TOML has 64")
    return table


def _too_large(value: Any) -> int | None:
    """A whole number beyond TOML's; printing it may be refused or take long."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending += one.values()
        elif isinstance(one, list):
            pending += one
        elif isinstance(one, int) and not -(1 << 63) <= one < 1 << 63:
            return one
    return None


def broken(path: Path, problem: str) -> CorruptFile:
    """The error for a file that breaks its format's rules, or is of another kind altogether."""
    other = what_it_is(path)
    return CorruptFile(f"{path}: {problem}" if other is None else f"{path}: it is {other}")


def what_it_is(path: Path) -> str | None:
    """What a file is whose first bytes belong to no model format; None where they do not tell."""
    try:
        size_of(path)
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, InvalidInput):
        return None
    if not head:
        return "empty: it was truncated; get it again"
    if _PAGE.match(head):
        return "a web page and not the file: the download went wrong; get it again"
    found = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)
    if found is None and not head.strip(b"\0"):
        return "nothing but zeros at its beginning: its download was truncated; get it again"
    return found


def refuse_links_out(folder: Path, file: Path) -> None:
    """Raise UnsafePath for a file of a folder that is a link to somewhere else."""
    if not file.is_symlink():
        return
    home, target = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
    allowed = [home, *(p.parent / "blobs" for p in home.parents if p.name == "snapshots")]
    if not any(target.is_relative_to(place) for place in allowed):
        raise UnsafePath(
            f"{file}: it is a link to {target}, which is outside of the folder; put a copy of that "
            "file in its place, or remove the link"
        )


def hub_id(folder: Path) -> str | None:
    """``organisation/name`` of a folder in the Hub cache, None for any other.

    There it is ``models--ORGANISATION--NAME/snapshots/REVISION``.
    """
    place = Path(os.path.realpath(folder))
    if place.parent.name != "snapshots":
        return None
    kind, *parts = place.parent.parent.name.split("--")
    return "/".join(parts) if kind == "models" and 1 <= len(parts) <= 2 and all(parts) else None


def shown(path: Path) -> str:
    """A path for messages; the middle of a very long one is left out."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:150]} … {text[-100:]}"


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
