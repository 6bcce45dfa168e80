"""A model folder as other people's loaders may see it: without what names code to run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zenconvert.base.scratch import temporary_folder
from zenconvert.formats.hf.foreign import foreign_files


@contextmanager
def clean_folder(folder: Path) -> Iterator[Path]:
    """The folder itself, or a temporary one with links to its files, where something is left out.

    Left out are Python files, and the keys of :mod:`zenconvert.formats.hf.foreign`. Raises
    CorruptFile for a JSON file that is none.
    """
    cleaned = foreign_files(folder)
    if not cleaned and not any(folder.glob("*.py")):
        yield folder
        return
    with temporary_folder() as name:
        place = name / folder.resolve().name
        place.mkdir()
        for path in folder.iterdir():
            if path.name in cleaned:
                text = json.dumps(cleaned[path.name], ensure_ascii=False)
                (place / path.name).write_text(text, encoding="utf-8")
            elif path.suffix != ".py":
                (place / path.name).symlink_to(path.resolve())
        yield place
