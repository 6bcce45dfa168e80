"""One pass over a source fills any number of outputs.

A worker takes a slab of rows of one tensor, reads it once, and makes of it whatever the outputs
want: every distinct result is computed once, written to every place that has it, and let go before
the next. Workers share nothing, so reading, computing and writing overlap, memory is bounded by one
slab per worker, and the bytes depend neither on the number of workers nor on the other outputs.

Outputs fail alone: what is wrong with one, or with numbers that it wants, ends that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.checkpoint import RowOrder, StoredPieces, Tensor
from zenconvert.encoding import Blocks, Dense, Grouped
from zenconvert.errors import InvalidInput, ZenError
from zenconvert.formats.gguf import blocks
from zenconvert.grouped import ROW_UNIT, GroupedRows, Rows
from zenconvert.layout import Choice, OutputFile, Slot
from zenconvert.output import Output
from zenconvert.planning import PACKED_ROWS, SLAB_ELEMENTS, Importance, Plan
from zenconvert.recoding import read_rows, recode
from zenconvert.target import Scheme

Done = Callable[[int, int], None]
"""Called with (bytes of the source that are done, of all)."""


@dataclass(frozen=True)
class Making:
    """One output of a pass."""

    plan: Plan
    out: Path
    importance: Importance = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Use:
    """A place in an output that wants the rows of one source tensor."""

    number: int
    """Of the output."""
    file: OutputFile
    slot: Slot
    part: Tensor
    order: RowOrder | None
    """From the stored rows to those of the output."""
    offset: int
    """Where the first row belongs."""
    importance: NDArray[np.float32] | None

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
        return (self.order, *encodings, choice.scheme, choice.columns, weights)

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
        return isinstance(self.part.encoding, Grouped) or isinstance(self.choice.encoding, Grouped)


@dataclass(frozen=True, slots=True)
class _Slab:
    """Rows ``[begin, end)`` of a source tensor, and what becomes of them."""

    part: Tensor
    results: Sequence[Sequence[_Use]]
    """Uses of one result together, and results of one order next to each other."""
    begin: int
    end: int

    @property
    def uses(self) -> Iterator[_Use]:
        """All of them."""
        return (use for uses in self.results for use in uses)

    @property
    def nbytes(self) -> int:
        """Bytes of the source, as many as the whole tensor has for all of its slabs."""
        size, rows = self.part.nbytes, self.part.rows
        return size * self.end // rows - size * self.begin // rows


def write_outputs(
    makings: Sequence[Making], *, force: bool, done: Done
) -> list[tuple[Path, ...] | ZenError]:
    """Carry out plans of one source in one pass; what each wrote, or why it wrote nothing.

    An output that fails leaves nothing under its name, and the others get theirs. Errors are those
    of :func:`zenconvert.convert`; anything else ends the pass, and leaves nothing of any output.
    """
    run = _Pass(makings)
    with ExitStack() as stack:
        for number, output in enumerate(run.outputs):
            stack.callback(output.discard)  # does nothing to an output that has its name
            with run.failing([number]):
                output.open(force=force)
        run.fill(done)
        for number, output in enumerate(run.outputs):
            if number not in run.errors:
                with run.failing([number]):
                    output.publish(force=force)
    wrote = enumerate(tuple(output.finals()) for output in run.outputs)
    return [run.errors.get(number, files) for number, files in wrote]


class _Pass:
    """The state of a pass."""

    def __init__(self, makings: Sequence[Making]) -> None:
        self.makings = makings
        self.outputs = [Output(making.plan.layout, making.out) for making in makings]
        self.errors: dict[int, ZenError] = {}
        self.threads = max((making.plan.threads for making in makings), default=1)

    @contextmanager
    def failing(self, numbers: Iterable[int]) -> Iterator[None]:
        """What goes wrong here is the end of these outputs."""
        try:
            yield
        except ZenError as error:
            for number in numbers:
                self.errors.setdefault(number, error)

    def fill(self, done: Done) -> None:
        """Process every slab on a pool with a bounded queue."""
        alive = [m for number, m in enumerate(self.makings) if number not in self.errors]
        blocks.warm_up(_kernels(making.plan for making in alive))
        tensors = self._tensors()
        total, finished = sum(uses[0].part.nbytes for uses in tensors), 0
        for size in self._run(slab for uses in tensors for slab in _slabs(uses)):
            finished += size
            done(finished, total)

    def _tensors(self) -> list[list[_Use]]:
        """The uses of every source tensor, in the order in which outputs first have it."""
        found: dict[object, list[_Use]] = {}
        for number, making in enumerate(self.makings):
            if number not in self.errors:
                for use in _uses(number, making):
                    found.setdefault(_place(use.part), []).append(use)
        return list(found.values())

    def _run(self, slabs: Iterator[_Slab]) -> Iterator[int]:
        """The source bytes of every slab as it is done."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="slab") as pool:
            running: set[Future[int]] = set()
            try:
                for slab in slabs:
                    if len(self.errors) == len(self.makings):
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

    def _alive(self, uses: Iterable[_Use]) -> list[_Use]:
        return [use for use in uses if use.number not in self.errors]

    def _convert(self, slab: _Slab) -> int:
        """Read a slab, and make of it what the outputs want, one result after the other."""
        wanted = self._alive(slab.uses)
        if not wanted:
            return slab.nbytes
        with self.failing(use.number for use in wanted):
            stored = read_rows(slab.part, slab.begin, slab.end)
            order, rows = None, stored
            for uses in slab.results:
                if alive := self._alive(uses):
                    if alive[0].order != order:
                        order, rows = alive[0].order, _reordered(stored, alive[0].order)
                    self._make(alive, rows, slab)
        return slab.nbytes

    def _make(self, uses: Sequence[_Use], rows: Rows, slab: _Slab) -> None:
        """Compute one result, and write it to every place that wants it."""
        use = uses[0]
        where = f"{use.part.stored.path}: tensor {use.part.stored.name!r}"
        with self.failing(use.number for use in uses):
            result = recode(rows, use.part, use.choice, use.importance, where, round_to_nearest)
            for use in uses:
                with self.failing([use.number]):
                    _write(self.outputs[use.number], use, result, slab)


def _kernels(plans: Iterable[Plan]) -> list[str]:
    """Block types that the plans encode."""
    steps = (step for plan in plans for step in plan.steps if step.action == "quantize")
    return sorted({step.to.type for step in steps if isinstance(step.to, Blocks)})


def _uses(number: int, making: Making) -> Iterator[_Use]:
    for file in making.plan.layout.files:
        for slot in file.slots:
            choice, offset = slot.choice, slot.offset
            for part in choice.parts:
                order = _combined(part.order, choice.order)
                weights = _weights(part, choice, making.importance)
                yield _Use(number, file, slot, part, order, offset, weights)
                offset += choice.nbytes // len(choice.parts)


def _weights(part: Tensor, choice: Choice, given: Importance) -> NDArray[np.float32] | None:
    """Importance weights of a tensor, where they change what becomes of it."""
    target = choice.encoding
    if isinstance(target, Dense):
        return None
    if isinstance(target, Blocks) and not blocks.uses_importance(target.type):
        return None
    return given.get(part.name)


def _place(part: Tensor) -> object:
    """Where a tensor lies: equal for two that are the same stored numbers."""
    stored = part.stored
    if isinstance(stored, StoredPieces):
        return tuple(stored.pieces.values())
    return stored, part.shape, part.encoding


def _slabs(uses: Sequence[_Use]) -> Iterator[_Slab]:
    """The slabs of one source tensor."""
    part, results = uses[0].part, _results(uses)
    band = lcm(*(use.band for use in uses))
    fewest = max(use.fewest_rows for use in uses)
    step = max(band, max(fewest, SLAB_ELEMENTS // part.columns) // band * band)
    for begin in range(0, part.rows, step):
        yield _Slab(part, results, begin, min(begin + step, part.rows))


def _results(uses: Sequence[_Use]) -> list[list[_Use]]:
    orders: dict[RowOrder | None, dict[object, list[_Use]]] = {}
    for use in uses:
        orders.setdefault(use.order, {}).setdefault(use.result, []).append(use)
    return [group for results in orders.values() for group in results.values()]


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
    if isinstance(rows, GroupedRows):
        _write_pieces(output, use, rows, slab)
    elif choice.transposed:
        lines = np.ascontiguousarray(rows.T)
        _write_columns(output, use.file, use.offset, lines, slab.begin, slab.part.rows)
    else:
        row_bytes = choice.encoding.row_bytes(slab.part.columns)
        data = rows.reshape(-1).view(np.uint8).data
        output.write(use.file, use.offset + slab.begin * row_bytes, data)


def _write_pieces(output: Output, use: _Use, rows: GroupedRows, slab: _Slab) -> None:
    """Write the packed arrays of some rows of a grouped tensor."""
    choice = use.choice
    assert choice.codec is not None  # every grouped choice has one
    arrays = choice.codec.pack(rows)
    strides = use.slot.strides or (None,) * len(choice.pieces)
    for piece, offset, stride in zip(choice.pieces, use.slot.offsets, strides, strict=True):
        if piece.axis is None and slab.begin:
            continue  # the same for all rows
        array = np.ascontiguousarray(arrays[piece.name])
        first, _ = piece.span(slab.begin, slab.end)
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


def round_to_nearest(
    weights: NDArray[np.float32], scheme: Scheme, importance: NDArray[np.float32] | None
) -> GroupedRows:
    """Round rows to the nearest points of a grid that fits them best. Raises InvalidInput."""
    import torch

    from zenconvert.calib.rtn import rtn

    tensor = None if importance is None else torch.from_numpy(importance)
    values = rtn(torch.from_numpy(weights), scheme, importance=tensor).values
    if values is None:
        raise InvalidInput("it has weights that are not finite; they cannot be quantized")
    return values
