"""One pass over a source fills any number of outputs.

A worker takes a slab of rows of one tensor, reads it once, and makes of it whatever the outputs
want: every distinct result is computed once, written to every place that has it, and let go before
the next. Workers share nothing, so reading, computing and writing overlap, memory is bounded by one
slab per worker, and the bytes depend neither on the number of workers nor on the other outputs.

Outputs fail alone: what is wrong with one, or with numbers that it wants, ends that one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import lcm
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.progress import Count
from zenconvert.errors import ZenError
from zenconvert.ggml import blocks
from zenconvert.model.checkpoint import StoredPieces, Tensor
from zenconvert.model.grouped import GroupedRows
from zenconvert.model.layout import Choice, OutputFile, Recoding, Slot
from zenconvert.model.pieces import ROW_UNIT
from zenconvert.model.row_order import RowOrder
from zenconvert.model.rows import Rows
from zenconvert.model.scaled import ScaledRows
from zenconvert.planning.plan import PACKED_ROWS, SLAB_ELEMENTS, Importance, Plan
from zenconvert.planning.recoding import read_rows, recode, round_to_nearest
from zenconvert.write.output import Output, refuse_source
from zenconvert.write.planned_output import Making

REMEMBER_SECONDS: Final = 30.0
"""Least time between two entries in the journals of the outputs."""


@dataclass(frozen=True, slots=True)
class _Use:
    """A place in an output that wants the rows of one source tensor."""

    number: int
    """Of the output."""
    file: OutputFile
    slot: Slot
    part: Tensor
    recoding: Recoding
    """From the stored numbers to those of the output."""
    order: RowOrder | None
    """From the stored rows to those of the output."""
    first: int
    """The row of the whole that its first row is."""
    importance: NDArray[np.float32] | None

    @property
    def offset(self) -> int:
        """Where the first row belongs, if rows are stored one after the other."""
        if self.choice.pieces:
            return self.slot.offset
        return self.slot.offset + self.first * self.choice.encoding.row_bytes(self.part.columns)

    @property
    def key(self) -> str:
        """What the rows are called in the journal of the output."""
        inside = f"+{self.first}" if self.choice.pieces and self.first else ""
        return f"{self.file.name}:{self.offset}{inside}"

    @property
    def choice(self) -> Choice:
        """How the rows are stored."""
        return self.slot.choice

    @property
    def result(self) -> tuple[object, ...]:
        """The same for uses that want the same numbers, whatever arrays they are packed into."""
        choice = self.choice
        weights = id(self.importance)  # the outputs of a pass share their arrays
        encodings = (self.part.encoding, choice.encoding)
        return (self.order, choice.change, *encodings, choice.scheme, choice.columns, weights)

    def spans(self) -> Iterator[tuple[int, int]]:
        """``(offset, size)`` of all that it fills in the file."""
        choice = self.choice
        if not choice.pieces:
            yield self.offset, self.part.rows * choice.encoding.row_bytes(self.part.columns)
        strides = self.slot.strides or (0,) * len(choice.pieces)
        for piece, offset, stride in zip(choice.pieces, self.slot.offsets, strides, strict=True):
            if piece.axis is None and self.first:
                continue  # the first part writes it
            for begin, size in piece.extents(self.first, self.first + self.part.rows, stride):
                yield offset + begin, size

    @property
    def fewest_rows(self) -> int:
        """Rows below which a slab is not worth its calls."""
        # columns lie apart in a file: narrow slabs would cost a system call a few bytes
        stride = getattr(self.part.stored, "stride", None)
        return PACKED_ROWS if self.is_grouped or self.choice.transposed or stride else 1

    @property
    def band(self) -> int:
        """Slabs are cut at multiples of it: whole bands, and whole words of packed rows."""
        unit = ROW_UNIT if self.is_grouped else 1
        return lcm(self.order.band if self.order is not None else 1, unit)

    @property
    def is_grouped(self) -> bool:
        """Whether packed integers are read or written."""
        both = (self.part.encoding, self.choice.encoding)
        return any(encoding.grouped is not None for encoding in both)


@dataclass
class _Source:
    """A tensor of the source, and what becomes of it."""

    uses: list[_Use]
    slabs_left: int = 0

    @property
    def part(self) -> Tensor:
        """The tensor itself."""
        return self.uses[0].part

    @cached_property
    def results(self) -> list[list[_Use]]:
        """Uses of one result together, and results of one order next to each other."""
        orders: dict[RowOrder | None, dict[object, list[_Use]]] = {}
        for use in self.uses:
            orders.setdefault(use.order, {}).setdefault(use.result, []).append(use)
        return [group for results in orders.values() for group in results.values()]

    def slabs(self) -> list[_Slab]:
        """Slabs of rows that cover it."""
        band = lcm(*(use.band for use in self.uses))
        fewest = max(use.fewest_rows for use in self.uses)
        step = max(band, max(fewest, SLAB_ELEMENTS // self.part.columns) // band * band)
        begins = range(0, self.part.rows, step)
        self.slabs_left = len(begins)
        return [_Slab(self, begin, min(begin + step, self.part.rows)) for begin in begins]


@dataclass(frozen=True, slots=True)
class _Slab:
    """Rows ``[begin, end)`` of a source tensor."""

    source: _Source
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the source, as many as the whole tensor has for all of its slabs."""
        part = self.source.part
        return part.nbytes * self.end // part.rows - part.nbytes * self.begin // part.rows


def write_outputs(
    makings: Sequence[Making], *, force: bool, done: Count
) -> list[tuple[Path, ...] | ZenError]:
    """Carry out plans of one source in one pass; what each wrote, or why it wrote nothing.

    An output that fails leaves nothing under its name, and the others get theirs. Errors are those
    of :func:`zenconvert.convert`; anything else ends the pass, and gives no output its name. What a
    former run of the same making finished or wrote is not written again.
    """
    run = _Pass(makings)
    with ExitStack() as stack:
        for number, (making, output) in enumerate(zip(makings, run.outputs, strict=True)):
            with run.failing([number]):
                refuse_source(making.plan.layout, making.out, making.plan.stamps)
                if making.is_finished(output):
                    output.tidy()
                    continue
                stack.callback(output.leave)  # does nothing to an output that has its name
                output.open(force=force)
                run.live.add(number)
        run.fill(done)
        for number in sorted(run.live):
            with run.failing([number]):
                makings[number].sign(run.outputs[number])
                run.outputs[number].publish(force=force)
        for number in run.errors:
            run.outputs[number].discard()
    wrote = enumerate(tuple(output.finals()) for output in run.outputs)
    return [run.errors.get(number, files) for number, files in wrote]


class _Pass:
    """The state of a pass."""

    def __init__(self, makings: Sequence[Making]) -> None:
        self.makings = makings
        self.outputs = [making.output() for making in makings]
        self.live: set[int] = set()
        """Numbers of the outputs that are being written."""
        self.errors: dict[int, ZenError] = {}
        self.written: dict[int, dict[str, str]] = {}
        """Of every output, what is written → digest; the journals had it at :attr:`remembered`."""
        self.fresh: list[_Use] = []
        """What is written since then."""
        self.remembered = time.monotonic()
        self.threads = max((making.plan.threads for making in makings), default=1)

    @contextmanager
    def failing(self, numbers: Iterable[int]) -> Iterator[None]:
        """What goes wrong here is the end of these outputs."""
        try:
            yield
        except ZenError as error:
            for number in numbers:
                self.errors.setdefault(number, error)
                self.live.discard(number)

    def fill(self, done: Count) -> None:
        """Process every slab that is not written yet."""
        self.written = {number: {} for number in self.live}
        blocks.warm_up(_kernels(self.makings[number].plan for number in self.live))
        sources = self._sources()
        total, finished = sum(source.part.nbytes for source in sources), 0
        for slab in self._run(slab for source in sources for slab in source.slabs()):
            self._remember(slab.source)
            finished += slab.nbytes
            done(finished, total)

    def _sources(self) -> list[_Source]:
        """Every tensor that is wanted, in the order in which outputs first have it."""
        found: dict[object, _Source] = {}
        for number in sorted(self.live):
            for use in _uses(number, self.makings[number]):
                if not self._is_written(use):
                    found.setdefault(_place(use.part), _Source([])).uses.append(use)
        return list(found.values())

    def _is_written(self, use: _Use) -> bool:
        """Whether a former run wrote it, and it still holds what it did then."""
        output = self.outputs[use.number]
        known = output.done.get(use.key)
        if known is None or known != output.digest(use.file, use.spans()):
            return False
        self.written[use.number][use.key] = known
        return True

    def _run(self, slabs: Iterator[_Slab]) -> Iterator[_Slab]:
        """Every slab as it is done, on a pool with a bounded queue."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="slab") as pool:
            running: set[Future[_Slab]] = set()
            try:
                for slab in slabs:
                    if not self.live:
                        break
                    running.add(pool.submit(self._convert, slab))
                    if len(running) >= 2 * self.threads:
                        finished, running = wait(running, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in finished)
                for future in running:
                    yield future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _remember(self, source: _Source) -> None:
        """A slab of a tensor is written: put down whole tensors, now and then."""
        source.slabs_left -= 1
        if not source.slabs_left:
            self.fresh += source.uses
        if time.monotonic() - self.remembered >= REMEMBER_SECONDS:
            fresh, self.fresh = self._alive(self.fresh), []
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(self._sum, fresh))
            for number in sorted(self.live):
                with self.failing([number]):
                    self.outputs[number].remember(self.written[number])
            self.remembered = time.monotonic()

    def _sum(self, use: _Use) -> None:
        with self.failing([use.number]):
            found = self.outputs[use.number].digest(use.file, use.spans())
            self.written[use.number][use.key] = found

    def _alive(self, uses: Iterable[_Use]) -> list[_Use]:
        return [use for use in uses if use.number in self.live]

    def _convert(self, slab: _Slab) -> _Slab:
        """Read a slab, and make of it what the outputs want, one result after the other."""
        source = slab.source
        if not (wanted := self._alive(source.uses)):
            return slab
        with self.failing(use.number for use in wanted):
            stored = read_rows(source.part, slab.begin, slab.end)
            order, rows = None, stored
            for uses in source.results:
                if alive := self._alive(uses):
                    if alive[0].order != order:
                        order, rows = alive[0].order, _reordered(stored, alive[0].order)
                    self._make(alive, rows, slab)
        return slab

    def _make(self, uses: Sequence[_Use], rows: Rows, slab: _Slab) -> None:
        """Compute one result, and write it to every place that wants it."""
        use = uses[0]
        where = f"{use.part.stored.path}: tensor {use.part.stored.name!r}"
        with self.failing(use.number for use in uses):
            result = recode(
                rows, use.part, use.choice, use.recoding, use.importance, where, round_to_nearest
            )
            for use in uses:
                with self.failing([use.number]):
                    _write(self.outputs[use.number], use, result, slab)


def _kernels(plans: Iterable[Plan]) -> list[str]:
    """Block types that the plans encode."""
    steps = (step for plan in plans for step in plan.steps if step.action == "quantize")
    return sorted({name for step in steps for name in step.to.kernels})


def _uses(number: int, making: Making) -> Iterator[_Use]:
    for file in making.plan.layout.files:
        for slot in file.slots:
            choice = slot.choice
            for part, found, first in zip(choice.parts, choice.done, choice.starts, strict=True):
                order = _combined(part.order, choice.order)
                weights = _weights(part, choice, making.importance)
                yield _Use(number, file, slot, part, found, order, first, weights)


def _weights(part: Tensor, choice: Choice, given: Importance) -> NDArray[np.float32] | None:
    """Importance weights of a tensor, where they change what becomes of it."""
    return given.get(part.name) if choice.encoding.uses_importance else None


def _place(part: Tensor) -> object:
    """Where a tensor lies: equal for two that are the same stored numbers."""
    stored = part.stored
    if isinstance(stored, StoredPieces):
        return tuple(stored.pieces.values())
    return stored, part.shape, part.encoding


def _combined(stored: RowOrder | None, target: RowOrder | None) -> RowOrder | None:
    """One order that does both: stored → logical → target."""
    if stored is None or target is None:
        return stored or target
    index = tuple(stored.index[i] for i in target.index)
    return None if index == tuple(range(len(index))) else RowOrder(index)


def _reordered(rows: Rows, order: RowOrder | None) -> Rows:
    return rows if order is None else order.apply(rows)


def _write(output: Output, use: _Use, rows: Rows, slab: _Slab) -> None:
    """Write a result of a slab where one output wants it."""
    choice = use.choice
    assert not isinstance(rows, ScaledRows)  # they are read alone
    if isinstance(rows, GroupedRows):
        _write_pieces(output, use, rows, slab)
    elif choice.transposed:
        lines = np.ascontiguousarray(rows.T)
        _write_columns(output, use.file, use.offset, lines, slab.begin, slab.source.part.rows)
    else:
        row_bytes = choice.encoding.row_bytes(slab.source.part.columns)
        data = rows.reshape(-1).view(np.uint8).data
        output.write(use.file, use.offset + slab.begin * row_bytes, data)


def _write_pieces(output: Output, use: _Use, rows: GroupedRows, slab: _Slab) -> None:
    """Write the packed arrays of some rows of a grouped tensor."""
    choice = use.choice
    assert choice.codec is not None  # every grouped choice has one
    arrays = choice.codec.pack(rows)
    strides = use.slot.strides or (None,) * len(choice.pieces)
    for piece, offset, stride in zip(choice.pieces, use.slot.offsets, strides, strict=True):
        if piece.axis is None and (slab.begin or use.first):
            continue  # the same for all rows
        array = np.ascontiguousarray(arrays[piece.name])
        first, _ = piece.span(use.first + slab.begin, use.first + slab.end)
        if piece.axis == 1:
            _write_columns(output, use.file, offset, array, first, piece.shape[1])
        else:
            row = piece.nbytes // piece.shape[0]
            line = stride or row
            data = array.reshape(-1).view(np.uint8)
            # rows that lie apart are written one by one
            for number, run in enumerate([data] if line == row else data.reshape(-1, row)):
                output.write(use.file, offset + (first + number) * line, run.data)


def _write_columns(
    output: Output, file: OutputFile, offset: int, lines: NDArray[Any], first: int, width: int
) -> None:
    """Write ``lines[k, n]`` as columns from ``first`` on of a matrix of ``width`` columns."""
    size = lines.itemsize
    for number, data in enumerate(lines.view(np.uint8).reshape(len(lines), -1)):
        output.write(file, offset + (number * width + first) * size, data.data)
