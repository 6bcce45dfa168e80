"""Files that a command writes beside its main output: looked at before the work, written whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zenconvert.base.atomic import append_whole, drop_stale, write_whole
from zenconvert.base.places import check_files, check_places, check_side_file
from zenconvert.errors import ZenError


def check_outputs(
    inputs: Mapping[str, str | Path | None],
    side_files: Mapping[str, Path | None],
    out: Path | None = None,
) -> None:
    """Refuse places that cannot be written, that are inputs, or that are one another's.

    Keys are what the paths are called on the command line. Raises UsageError.
    """
    for option, path in side_files.items():
        check_side_file(option, path, appended=option == "--summary")
    check_places(inputs, {"OUT": out, **side_files})


def check_models(
    models: Mapping[str, str | Path], outputs: Mapping[str, Path | None], config: Path | None = None
) -> None:
    """Refuse outputs that are, or lie in, what a model is read from.

    That is more than its name says: the folder of a Hub id or of a bundled model, the other parts
    of a split file, the data beside a graph, the files that links lead to. Raises UsageError.
    """
    given = {what: path for what, path in outputs.items() if path is not None}
    for what, model in models.items() if given else ():
        try:
            read = _read_of(model, config, opened=any(map(Path.is_file, given.values())))
        except (ZenError, OSError):  # the command itself will say what is wrong with it
            continue
        check_places({what: read[0]}, given)
        for option, path in given.items():
            check_files(option, path, [path], read[1])


def _read_of(
    model: str | Path, config: Path | None, *, opened: bool
) -> tuple[Path, Iterable[Path]]:
    """Where a model lies; with ``opened``, the files that are read of it, too."""
    from zenconvert.opening.sources import open_checkpoint, resolve

    place = resolve(model)
    return place, open_checkpoint(place, config).stamps if opened else ()


class Written:
    """Side files at the end of long work: one that cannot be written costs nothing but itself."""

    def __init__(self) -> None:
        self.failures: list[ZenError] = []

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Put off what a failed write raises."""
        try:
            yield
        except ZenError as error:
            self.failures.append(error)

    def raise_first(self) -> None:
        """Raise the first failure, if there is one."""
        for error in self.failures:
            raise error


def write_side_file(path: Path, text: str) -> None:
    """Write a file; where a link stands, what it points to. What killed runs left of it goes.

    Raises as ``write_whole``.
    """
    drop_stale(path.resolve())
    write_whole(path.resolve(), text)


def append_side_file(path: Path, text: str) -> None:
    """Put text at the end of a file, all of it or nothing. Raises as ``append_whole``."""
    drop_stale(path.resolve())
    append_whole(path.resolve(), text)
