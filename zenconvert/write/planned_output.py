"""One output of a pass over a source: what it is, and how to know it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zenconvert.base.notes import read_word, write_word
from zenconvert.base.stamps import check_unchanged, stamp
from zenconvert.model.checkpoint import StoredHalf, StoredHalves, StoredPieces, Tensor
from zenconvert.planning.plan import Importance, Plan
from zenconvert.version import __version__
from zenconvert.write.output import Output


@dataclass(frozen=True)
class Making:
    """One output of a pass."""

    plan: Plan
    out: Path
    importance: Importance = field(default_factory=dict)
    receipt: Path | None = None
    """A file that lets later runs know that this output is finished."""

    def identity(self) -> str:
        """Digest of all that decides the output's bytes.

        Of the source it takes place, size and time of every file: it need not be read. Raises
        SourceNotFound for a file that is gone.
        """
        found = hashlib.sha256(__version__.encode())
        for file in self.plan.layout.files:
            found.update(repr((file.name, file.size, file.copy_of, file.slots)).encode())
            for offset, data in file.literals:
                found.update(f"\0{offset}\0{len(data)}\0".encode() + data)
        for path in sorted({path for part in self._parts() for path in _files(part)}):
            found.update(repr((path, *stamp(path))).encode())
        for name, weights in sorted(self.importance.items()):
            found.update(f"\0{name}\0".encode() + weights.tobytes())
        return found.hexdigest()

    def output(self) -> Output:
        """The files to write."""
        return Output(self.plan.layout, self.out, self.identity)

    def is_finished(self, output: Output) -> bool:
        """Whether a former run wrote this output, and nothing has touched it since."""
        known = read_word(self.receipt) if self.receipt is not None else None
        return known is not None and bool(known == self._word(output, final=True))

    def sign(self, output: Output) -> None:
        """Before an output gets its name: leave word what it will look like.

        Raises as :func:`zenconvert.base.stamps.check_unchanged` for a source that is another one
        now.
        """
        check_unchanged(self.plan.stamps)
        if self.receipt is not None:
            write_word(self.receipt, self._word(output, final=False))

    def _word(self, output: Output, *, final: bool) -> dict[str, object]:
        """The identity, and size and time of every file: it keeps these when it gets its name."""
        folder = output.folder(final=final)
        names = [file.name for file in self.plan.layout.files if (folder / file.name).is_file()]
        stats = {name: (folder / name).stat() for name in names}
        stamps = {name: [found.st_size, found.st_mtime_ns] for name, found in stats.items()}
        return {"identity": self.identity(), "files": stamps}

    def _parts(self) -> Iterator[Tensor]:
        for choice in self.plan.choices:
            yield from choice.parts


def _files(part: Tensor) -> Iterator[Path]:
    """The files that hold a tensor."""
    stored = part.stored
    if isinstance(stored, StoredPieces):
        yield from (piece.path for piece in stored.pieces.values())
    elif isinstance(stored, StoredHalf):
        yield from _files(stored.whole)
    elif isinstance(stored, StoredHalves):
        yield from _files(stored.keys)
        yield from _files(stored.values)
    else:
        yield stored.path
