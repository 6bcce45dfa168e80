"""Removes from a release's folder what its recipe no longer says, and what only served its jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from zenconvert.base.scratch import children, remove
from zenconvert.publication.evidence import EVIDENCE, IMATRIX
from zenconvert.publication.job_bodies import RECEIPTS, REPORTS, gathered_folder
from zenconvert.publication.ledger import FAILED_ENGINES, Ledger, Record
from zenconvert.publication.schedule import Schedule

_TEMPORARY: Final = re.compile(r"\.(.+)\.[0-9a-f]{16}\.partial")
"""What a kill leaves of a small file that had no name yet."""


def tidy(ledger: Ledger, schedule: Schedule) -> None:
    """Remove what jobs wrote that are not the recipe's any more, and what killed ones left."""
    gone = [record for record in ledger.all() if not _is_current(record, schedule)]
    current = [record for record in ledger.all() if record not in gone]
    kept = {written.path for record in current for written in record.outputs}
    for record in gone:
        for written in record.outputs:
            if written.path not in kept:
                ledger.discard(written.path)
        ledger.remove(record.key)
    shelves = {path.partition("/")[0] for path in kept}
    for record in gone:
        for shelf in {written.path.partition("/")[0] for written in record.outputs} - shelves:
            if record.kind == "variant":  # evidence alone is no model folder that may be replaced
                _remove_shelf(ledger, ledger.folder / shelf)
    for record in current:
        if FAILED_ENGINES in record.facts:
            ledger.remove(record.key)
        if record.kind == "variant" and not ledger.holds(record):  # what stands there is no good
            ledger.discard(f"{RECEIPTS}/{record.name}.json")
    _drop_temporaries(ledger, shelves)
    for folder in ledger.state.glob("gathered-*"):
        if folder != gathered_folder(ledger.folder, schedule.calibration):
            remove(folder)


def drop_scratch(ledger: Ledger, schedule: Schedule) -> None:
    """Remove what only serves jobs, once all of the recipe's variants are made."""
    made = [ledger.get(schedule.making(variant).key) for variant in schedule.recipe.variants]
    if all(record is not None for record in made):
        for record in ledger.all():
            for name in record.scratch:
                ledger.discard(name)
                path = ledger.folder / name
                if path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()


def _drop_temporaries(ledger: Ledger, shelves: Iterable[str]) -> None:
    """Remove what killed runs left of evidence, records, reports and receipts."""
    state = [ledger.state, ledger.folder / REPORTS, ledger.folder / RECEIPTS]
    for place in (ledger.folder, *(ledger.folder / shelf for shelf in shelves), *state):
        for path in children(place):
            match = _TEMPORARY.fullmatch(path.name)
            ours = match and (place in state or match[1] in EVIDENCE | {IMATRIX})
            if ours and path.is_file() and not path.is_symlink():
                path.unlink()


def _is_current(record: Record, schedule: Schedule) -> bool:
    if record.kind == "gather":
        return record.facts.get("calibration") == schedule.calibration
    return record.key in schedule.keys


def _remove_shelf(ledger: Ledger, shelf: Path) -> None:
    """Remove the evidence on a shelf that has no variant, and the shelf where that is all."""
    for name in (*EVIDENCE, IMATRIX):
        ledger.discard(f"{shelf.name}/{name}")
    for folder in _folders(shelf):
        if not any(folder.iterdir()):
            folder.rmdir()


def _folders(shelf: Path) -> Iterator[Path]:
    """Deepest first."""
    if shelf.is_dir() and not shelf.is_symlink():
        yield from sorted(
            (p for p in shelf.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True
        )
        yield shelf
