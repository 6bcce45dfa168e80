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
from typing import Final

from zenconvert.base.machine import memory_errors
from zenconvert.base.progress import Count
from zenconvert.errors import ZenError
from zenconvert.ggml import blocks
from zenconvert.model.checkpoint import StoredHalf, StoredPieces, Tensor
from zenconvert.model.row_order import RowOrder
from zenconvert.model.rows import Rows
from zenconvert.planning.plan import SLAB_ELEMENTS, Plan
from zenconvert.planning.reading import Slabs
from zenconvert.planning.recoding import recode, round_to_nearest
from zenconvert.write.output import refuse_source
from zenconvert.write.place import Use, uses_of
from zenconvert.write.planned_output import Making

REMEMBER_SECONDS: Final = 30.0
"""Least time between two entries in the journals of the outputs."""
_DEVICE_THREADS: Final = 4
_DEVICE_ELEMENTS: Final = 1 << 25
"""A device has more to do at a time, and the host less."""


@dataclass
class _Source:
    """A tensor of the source, and what becomes of it."""

    uses: list[Use]
    slabs_left: int = 0
    step: int = 0
    """Rows of a slab."""

    @property
    def part(self) -> Tensor:
        """The tensor itself."""
        return self.uses[0].part

    @cached_property
    def results(self) -> list[list[Use]]:
        """Uses of one result together, and results of one order next to each other."""
        orders: dict[RowOrder | None, dict[object, list[Use]]] = {}
        for use in self.uses:
            orders.setdefault(use.order, {}).setdefault(use.result, []).append(use)
        return [group for results in orders.values() for group in results.values()]

    def slabs(self, elements: int) -> list[_Slab]:
        """Slabs of about so many elements, in whole rows, that cover it."""
        band = lcm(*(use.band for use in self.uses))
        fewest = max(use.fewest_rows for use in self.uses)
        self.step = max(band, max(fewest, elements // self.part.columns) // band * band)
        begins = range(0, self.part.rows, self.step)
        self.slabs_left = len(begins)
        return [_Slab(self, begin, min(begin + self.step, self.part.rows)) for begin in begins]

    @cached_property
    def read(self) -> Slabs:
        """Reads the slabs."""
        return Slabs(self.part, self.step)


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
    makings: Sequence[Making], *, force: bool, done: Count, device: str = "cpu"
) -> list[tuple[Path, ...] | ZenError]:
    """Carry out plans of one source in one pass; what each wrote, or why it wrote nothing.

    An output that fails leaves nothing under its name, and the others get theirs. Errors are those
    of :func:`zenconvert.convert`; anything else ends the pass, and gives no output its name. What a
    former run of the same making finished or wrote is not written again. ``device`` rounds what it
    can, to the same bytes.
    """
    run = _Pass(makings, device)
    with ExitStack() as stack:
        for number, (making, output) in enumerate(zip(makings, run.outputs, strict=True)):
            with run.failing([number]):
                refuse_source(making.plan.layout, making.out, making.plan.stamps)
                if making.is_finished(output):
                    output.tidy()
                    continue
                stack.enter_context(output.left())
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

    def __init__(self, makings: Sequence[Making], device: str) -> None:
        self.makings, self.device = makings, device
        self.outputs = [making.output() for making in makings]
        self.live: set[int] = set()
        """Numbers of the outputs that are being written."""
        self.errors: dict[int, ZenError] = {}
        self.written: dict[int, dict[str, str]] = {}
        """Of every output, what is written → digest; the journals had it at :attr:`remembered`."""
        self.fresh: list[Use] = []
        """What is written since then."""
        self.remembered = time.monotonic()
        self.threads = max((making.plan.threads for making in makings), default=1)
        self.slab = SLAB_ELEMENTS
        if device != "cpu":
            self.threads, self.slab = min(self.threads, _DEVICE_THREADS), _DEVICE_ELEMENTS

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
        kernels = _kernels((self.makings[number].plan for number in self.live), self.device)
        blocks.warm_up(kernels)
        sources = self._sources()
        total, finished = sum(source.part.nbytes for source in sources), 0
        for slab in self._run(slab for source in sources for slab in source.slabs(self.slab)):
            self._remember(slab.source)
            finished += slab.nbytes
            done(finished, total)

    def _sources(self) -> list[_Source]:
        """Every tensor that is wanted, in the order in which outputs first have it."""
        found: dict[object, _Source] = {}
        for number in sorted(self.live):
            for use in uses_of(number, self.makings[number]):
                if not self._is_written(use):
                    found.setdefault(_place(use.part), _Source([])).uses.append(use)
        return list(found.values())

    def _is_written(self, use: Use) -> bool:
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

    def _sum(self, use: Use) -> None:
        with self.failing([use.number]):
            found = self.outputs[use.number].digest(use.file, use.spans())
            self.written[use.number][use.key] = found

    def _alive(self, uses: Iterable[Use]) -> list[Use]:
        return [use for use in uses if use.number in self.live]

    def _convert(self, slab: _Slab) -> _Slab:
        """Read a slab, and make of it what the outputs want, one result after the other."""
        source = slab.source
        if not (wanted := self._alive(source.uses)):
            return slab
        with self.failing(use.number for use in wanted):
            stored = source.read(slab.begin, slab.end)
            order, rows = None, stored
            for uses in source.results:
                if alive := self._alive(uses):
                    if alive[0].order != order:
                        order, rows = alive[0].order, _reordered(stored, alive[0].order)
                    self._make(alive, rows, slab)
        return slab

    def _make(self, uses: Sequence[Use], rows: Rows, slab: _Slab) -> None:
        """Compute one result, and write it to every place that wants it."""
        use = uses[0]
        where = f"{use.part.stored.path}: tensor {use.part.stored.name!r}"
        with self.failing(use.number for use in uses):
            with memory_errors(where):
                result = recode(
                    rows, use.part, use.choice, use.recoding, use.importance, where,
                    round_to_nearest, self.device,
                )  # fmt: skip
            for use in uses:
                with self.failing([use.number]):
                    use.write(
                        self.outputs[use.number], result, slab.begin, slab.end, slab.source.step
                    )


def _kernels(plans: Iterable[Plan], device: str) -> list[str]:
    """Block types that the plans encode on the host."""
    steps = (
        step
        for plan in plans
        for step in plan.steps
        if step.action == "quantize" and not step.to.encodes_on(device.partition(":")[0])
    )
    return sorted({name for step in steps for name in step.to.kernels})


def _place(part: Tensor) -> object:
    """Where a tensor lies: equal for two that are the same stored numbers."""
    stored = part.stored
    if isinstance(stored, StoredPieces):
        return tuple(stored.pieces.values())
    if isinstance(stored, StoredHalf):
        return _place(stored.whole), stored.keys
    return stored, part.shape, part.encoding


def _reordered(rows: Rows, order: RowOrder | None) -> Rows:
    return rows if order is None else order.apply(rows)
