"""Side files that a folder can do without, where they are not what their names say.

A pointer of Git LFS, an empty file (a template may be empty) or a web page beside a good
``tokenizer.json`` stops nothing: it is taken as absent, does not travel, and a warning names it.
Where nothing else says what it should, the error names it instead; so it does where
``tokenizer.model`` is a pointer, since runtimes read that file and one command gets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from zenconvert.base.source_files import what_it_is

DEFINITION: Final = "tokenizer.json"
MODEL: Final = "tokenizer.model"
_ALWAYS_NEEDED: Final = (DEFINITION, "tokenizer_config.json", "config.json", "zenconvert.json")
_VOCABULARY: Final = ("vocab.json", "merges.txt")
_DOCUMENTS: Final = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
_TEMPLATE: Final = ".jinja"
_POINTER: Final = "a pointer"
_NO_DOCUMENT: Final = (_POINTER, "empty")


def instead(folder: Path, name: str) -> str | None:
    """What a side file is instead of what its name says, where the folder can do without it.

    None for every other file, also for one that is not there.
    """
    if name in _ALWAYS_NEEDED or (name == MODEL and not _has(folder, DEFINITION)):
        return None
    if name in _VOCABULARY and not (_has(folder, DEFINITION) or _has(folder, MODEL)):
        return None
    found = what_is(folder / name)
    return None if name == MODEL and found is not None and found.startswith(_POINTER) else found


def what_is(file: Path) -> str | None:
    """What a side file is instead of what its name says; documents may hold anything."""
    if file.suffix == _TEMPLATE and file.is_file() and not file.stat().st_size:
        return None  # transformers takes it before any other template
    found = what_it_is(file)
    if found is not None and file.name in _DOCUMENTS and not found.startswith(_NO_DOCUMENT):
        return None
    return found


def usable(folder: Path, name: str) -> bool:
    """Whether there is such a file, and it is not to be taken as absent."""
    return (folder / name).is_file() and instead(folder, name) is None


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()
