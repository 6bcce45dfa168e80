"""The main path: open a checkpoint, plan, stream it slab by slab into its new form.

A worker takes a slab of rows of one tensor, reads it, decodes, reorders, encodes and writes it at
the place that the layout gave it. Workers share nothing, so reading, computing and writing overlap,
memory is bounded by one slab per worker, and the bytes do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.calib.solution import ModuleReport
from zenconvert.checkpoint import Checkpoint, RowOrder, Tensor
from zenconvert.encoding import Blocks, Grouped
from zenconvert.formats.gguf import blocks
from zenconvert.grouped import ROW_UNIT, GroupedRows
from zenconvert.knowledge import Knowledge
from zenconvert.layout import Choice, OutputFile, Slot
from zenconvert.machine import usable_cores
from zenconvert.output import Output, open_output, refuse_taken
from zenconvert.planning import PACKED_ROWS, SLAB_ELEMENTS, Importance, Plan, Step, make_plan
from zenconvert.recoding import read_rows, recode, verdict
from zenconvert.solving import Calibrating, Job, Solver, Stage, solved
from zenconvert.sources import open_checkpoint
from zenconvert.target import Options, Scheme, Target


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote."""

    plan: Plan
    files: tuple[Path, ...]
    modules: Mapping[str, ModuleReport] = field(default_factory=dict)
    """Neutral weight name → how a solver quantized it."""


@dataclass(frozen=True, slots=True)
class _Slab:
    """Rows ``[begin, end)`` of one source tensor, whose first row belongs at ``offset``."""

    file: OutputFile
    slot: Slot
    part: Tensor
    order: RowOrder | None
    begin: int
    end: int
    offset: int


def convert(
    source: str | Path,
    out: str | Path,
    to: str | Target,
    *,
    options: Options | None = None,
    importance: str | Path | None = None,
    statistics: str | Path | None = None,
    calibrating: Calibrating | None = None,
    solver: Solver | None = None,
    device: str = "cpu",
    largest_error: float | None = None,
    threads: int | None = None,
    exact: bool = False,
    allow_requantize: bool = False,
    force: bool = False,
    progress: Stage | None = None,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        source: path, Hub id or ``builtin:NAME``.
        out: file (GGUF) or folder to write.
        to: ``format[:type]``, e.g. ``gguf:q4_k_m``.
        options: refinements of the target.
        importance: llama.cpp imatrix GGUF with importance weights.
        statistics: statistics file of :func:`zenconvert.calibrate`.
        calibrating: gather the statistics in this run.
        solver: ``rtn``, ``gptq`` or ``awq``; by default the target format's own where there are
            statistics, else ``rtn``.
        device: torch device of the solver and of calibrating.
        largest_error: fail when a module's weighted relative error is larger.
        threads: workers; by default as many as there are usable cores.
        exact: refuse every lossy step.
        allow_requantize: quantize weights that are already quantized.
        force: replace an existing output.
        progress: called with (stage, done, total) as the work proceeds.

    Raises PlanError, UsageError, OutputExists, NotEnoughResources, ConversionFailed, and the errors
    of :func:`zenconvert.open_checkpoint` and :func:`zenconvert.calibrate`. After an error nothing
    stands under the output's name; layers that were solved are kept beside it for the next run.
    """
    out, target = Path(out), _target(to)
    checkpoint = open_checkpoint(source)
    knowledge = Knowledge(importance, statistics, calibrating)
    chosen = knowledge.solver_for(target.format, solver)
    request = _Request(target, options or Options(), out.name, threads or usable_cores())
    stage = progress or _silent
    with knowledge.weights(source, checkpoint, chosen, out, device, stage) as weights:
        planned = request.plan(checkpoint, weights, exact=exact, requantize=allow_requantize)
        grids = _grids(planned)
        if chosen == "rtn" or not grids:
            return run(planned, out, importance=weights, force=force, stage=stage)
    refuse_taken(planned.layout, out, force=force)
    job = Job(checkpoint, grids, chosen, device, largest_error)
    origin = knowledge.origin(checkpoint)
    with solved(job, origin, out.with_name(f".{out.name}.solving"), stage) as (over, modules):
        final = request.plan(over, None, exact=False, requantize=True)
        final = replace(final, steps=_told(planned, final, modules))
        result = run(final, out, force=force, stage=stage)
    return replace(result, modules=modules)


def plan(
    source: str | Path,
    to: str | Target,
    *,
    out: str | Path = "model",
    options: Options | None = None,
    importance: str | Path | None = None,
    statistics: str | Path | None = None,
    solver: Solver | None = None,
    threads: int | None = None,
    exact: bool = False,
    allow_requantize: bool = False,
) -> Plan:
    """Plan a conversion from headers alone; arguments and errors as in :func:`convert`."""
    checkpoint, target = open_checkpoint(source), _target(to)
    knowledge = Knowledge(importance, statistics, None)
    knowledge.solver_for(target.format, solver)
    request = _Request(target, options or Options(), Path(out).name, threads or usable_cores())
    weights = knowledge.from_files(checkpoint)
    return request.plan(checkpoint, weights, exact=exact, requantize=allow_requantize)


@dataclass(frozen=True)
class _Request:
    """What both plans of a conversion with a solver have in common."""

    target: Target
    options: Options
    name: str
    threads: int

    def plan(
        self, checkpoint: Checkpoint, weights: Importance | None, *, exact: bool, requantize: bool
    ) -> Plan:
        """Plan from headers."""
        return make_plan(
            checkpoint,
            self.target,
            self.options,
            name=self.name,
            threads=self.threads,
            importance=weights,
            exact=exact,
            allow_requantize=requantize,
        )


def _target(to: str | Target) -> Target:
    return Target.parse(to) if isinstance(to, str) else to


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def _grids(plan: Plan) -> dict[str, Scheme]:
    """Neutral name → grid of every tensor that is not on its grid already."""
    choices = (slot.choice for file in plan.layout.files for slot in file.slots)
    return {
        part.name: choice.scheme
        for choice in choices
        if choice.scheme is not None
        for part in choice.parts
        if verdict(part, choice).action == "quantize"
    }


def _told(planned: Plan, final: Plan, modules: Mapping[str, ModuleReport]) -> tuple[Step, ...]:
    """The steps from the source to the output, with what the solver did to each tensor."""
    before = {step.target: step for step in planned.steps}
    reports = {
        slot.choice.name: modules[part.name]
        for file in final.layout.files
        for slot in file.slots
        for part in slot.choice.parts
        if part.name in modules
    }
    return tuple(
        replace(
            step,
            from_=before[step.target].from_,
            action="quantize",
            exact=False,
            why=f"{report.method}, weighted relative error {report.error:.3g}",
        )
        if (report := reports.get(step.target)) is not None and isinstance(step.to, Grouped)
        else step
        for step in final.steps
    )


def run(
    plan: Plan,
    out: Path,
    *,
    importance: Importance | None = None,
    force: bool = False,
    stage: Stage = _silent,
) -> Conversion:
    """Carry out a plan. Raises as :func:`convert`."""
    with open_output(plan.layout, out, force=force) as output:
        blocks.warm_up(_kernels(plan))
        slots = (slot.choice for file in plan.layout.files for slot in file.slots)
        total = sum(choice.nbytes for choice in slots if choice.derived is None)
        done = 0
        for written in _run_slabs(plan, output, importance or {}):
            done += written
            stage("writing", done, total)
        files = output.finals()
    return Conversion(plan, tuple(files))


def _kernels(plan: Plan) -> list[str]:
    """Block types that the plan encodes."""
    steps = (s.to.type for s in plan.steps if isinstance(s.to, Blocks) and s.action == "quantize")
    return sorted(set(steps))


def _run_slabs(plan: Plan, output: Output, importance: Importance) -> Iterator[int]:
    """Process every slab on a pool with a bounded queue; yields the bytes of each."""
    slabs = _slabs(plan)
    with ThreadPoolExecutor(plan.threads, thread_name_prefix="slab") as pool:
        running: set[Future[int]] = set()
        try:
            for slab in slabs:
                running.add(pool.submit(_convert_slab, slab, output, importance))
                if len(running) >= 2 * plan.threads:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            for future in running:
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _slabs(plan: Plan) -> Iterator[_Slab]:
    for file in plan.layout.files:
        for slot in file.slots:
            offset = slot.offset
            for part in slot.choice.parts:
                order = _combined(part.order, slot.choice.order)
                rows = _slab_rows(part, slot.choice, order)
                for begin in range(0, part.rows, rows):
                    end = min(begin + rows, part.rows)
                    yield _Slab(file, slot, part, order, begin, end, offset)
                offset += slot.choice.nbytes // len(slot.choice.parts)


def _slab_rows(part: Tensor, choice: Choice, order: RowOrder | None) -> int:
    """Rows of a slab: whole bands, and whole words of packed rows."""
    grouped = isinstance(part.encoding, Grouped) or isinstance(choice.encoding, Grouped)
    band = lcm(order.band if order is not None else 1, ROW_UNIT if grouped else 1)
    # columns lie apart in a file: narrow slabs would cost a system call a few bytes
    apart = choice.transposed or getattr(part.stored, "stride", None) is not None
    fewest = PACKED_ROWS if grouped or apart else 1
    return max(band, max(fewest, SLAB_ELEMENTS // part.columns) // band * band)


def _combined(stored: RowOrder | None, target: RowOrder | None) -> RowOrder | None:
    """One order that does both: stored → logical → target."""
    if stored is None or target is None:
        return stored or target
    index = tuple(stored.index[i] for i in target.index)
    return None if index == tuple(range(len(index))) else RowOrder(index)


def _convert_slab(slab: _Slab, output: Output, importance: Importance) -> int:
    rows = read_rows(slab.part, slab.begin, slab.end)
    if slab.order is not None:
        rows = slab.order.apply(rows)
    where = f"{slab.part.stored.path}: tensor {slab.part.stored.name!r}"
    choice = slab.slot.choice
    weights = importance.get(slab.part.name)
    stored = recode(rows, slab.part, choice, weights, where, round_to_nearest)
    if isinstance(stored, GroupedRows):
        return write_pieces(output, slab.file, slab.slot, stored, slab.begin, slab.end)
    if choice.transposed:
        lines = np.ascontiguousarray(stored.T)
        _write_columns(output, slab.file, slab.offset, lines, slab.begin, slab.part.rows)
        return stored.nbytes
    data = stored.reshape(-1).view(np.uint8).data
    row_bytes = choice.encoding.row_bytes(slab.part.columns)
    output.write(slab.file, slab.offset + slab.begin * row_bytes, data)
    return stored.nbytes


def write_pieces(
    output: Output, file: OutputFile, slot: Slot, rows: GroupedRows, begin: int, end: int
) -> int:
    """Write the packed arrays of rows ``[begin, end)`` of a grouped tensor; returns their bytes."""
    codec = slot.choice.codec
    assert codec is not None  # every grouped choice has one
    arrays, written = codec.pack(rows), 0
    for piece, offset in zip(slot.choice.pieces, slot.offsets, strict=True):
        if piece.axis is None and begin:
            continue  # the same for all rows
        array = np.ascontiguousarray(arrays[piece.name])
        first, _ = piece.span(begin, end)
        if piece.axis == 1:
            _write_columns(output, file, offset, array, first, piece.shape[1])
        else:
            row = piece.nbytes // piece.shape[0]
            output.write(file, offset + first * row, array.reshape(-1).view(np.uint8).data)
        written += array.nbytes
    return written


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
    """Round rows to the nearest points of a grid that fits them best."""
    import torch

    from zenconvert.calib.rtn import rtn

    tensor = None if importance is None else torch.from_numpy(importance)
    values = rtn(torch.from_numpy(weights), scheme, importance=tensor).values
    assert values is not None  # rounding always gives codes
    return values
