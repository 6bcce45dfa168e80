"""The main path: open a checkpoint, plan, stream it slab by slab into its new form.

A worker takes a slab of rows of one tensor, reads it, decodes, reorders, encodes and writes it at
the place that the layout gave it. Workers share nothing, so reading, computing and writing overlap,
memory is bounded by one slab per worker, and the bytes do not depend on the number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.checkpoint import Checkpoint, RowOrder, Tensor
from zenconvert.encoding import Blocks, Dense
from zenconvert.errors import CorruptFile, InvalidInput, SourceNotFound, ZenError
from zenconvert.formats.gguf import blocks
from zenconvert.layout import Choice, OutputFile
from zenconvert.output import Output, open_output
from zenconvert.planning import SLAB_ELEMENTS, Importance, Plan, make_plan
from zenconvert.sources import open_checkpoint
from zenconvert.target import Options, Target

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all) after every slab."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote."""

    plan: Plan
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Slab:
    """Rows ``[begin, end)`` of one source tensor on their way to ``offset`` of an output file."""

    file: OutputFile
    choice: Choice
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
    threads: int | None = None,
    exact: bool = False,
    allow_requantize: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        source: path, Hub id or ``builtin:NAME``.
        out: file (GGUF) or folder (HF) to write.
        to: ``format[:type]``, e.g. ``gguf:q4_k_m``.
        options: refinements of the target.
        importance: llama.cpp imatrix GGUF with importance weights.
        threads: workers; by default as many as there are usable cores.
        exact: refuse every lossy step.
        allow_requantize: quantize weights that are already quantized.
        force: replace an existing output.
        progress: called after every slab.

    Raises PlanError, UsageError, OutputExists, NotEnoughResources, and the errors of
    :func:`zenconvert.open_checkpoint`. After an error nothing stands under the output's name.
    """
    checkpoint = open_checkpoint(source)
    weights = load_importance(importance, checkpoint) if importance is not None else None
    planned = make_plan(
        checkpoint,
        Target.parse(to) if isinstance(to, str) else to,
        options or Options(),
        name=Path(out).name,
        threads=threads or usable_cores(),
        importance=weights,
        exact=exact,
        allow_requantize=allow_requantize,
    )
    return run(planned, Path(out), importance=weights, force=force, progress=progress)


def plan(
    source: str | Path,
    to: str | Target,
    *,
    out: str | Path = "model",
    options: Options | None = None,
    importance: str | Path | None = None,
    threads: int | None = None,
    exact: bool = False,
    allow_requantize: bool = False,
) -> Plan:
    """Plan a conversion from headers alone; arguments and errors as in :func:`convert`."""
    checkpoint = open_checkpoint(source)
    weights = load_importance(importance, checkpoint) if importance is not None else None
    return make_plan(
        checkpoint,
        Target.parse(to) if isinstance(to, str) else to,
        options or Options(),
        name=Path(out).name,
        threads=threads or usable_cores(),
        importance=weights,
        exact=exact,
        allow_requantize=allow_requantize,
    )


def load_importance(path: str | Path, checkpoint: Checkpoint) -> Importance:
    """Importance weights of a checkpoint's tensors from an imatrix file."""
    from zenconvert.formats.gguf.imatrix import read_importance

    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    return read_importance(Path(path), [n for n in names if n.is_weight])


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run(
    plan: Plan,
    out: Path,
    *,
    importance: Importance | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Carry out a plan. Raises as :func:`convert`."""
    with open_output(plan.layout, out, force=force) as output:
        blocks.warm_up(_kernels(plan))
        total = sum(slot.choice.nbytes for file in plan.layout.files for slot in file.slots)
        done = 0
        for written in _run_slabs(plan, output, importance or {}):
            done += written
            if progress is not None:
                progress(done, total)
        files = output.finals()
    return Conversion(plan, tuple(files))


def _kernels(plan: Plan) -> list[str]:
    """Block types that the plan encodes."""
    steps = (s.to.type for s in plan.steps if isinstance(s.to, Blocks) and s.action != "copy")
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
            choice, offset = slot.choice, slot.offset
            for part in choice.parts:
                order = _combined(part.order, choice.order)
                band = order.band if order is not None else 1
                rows = max(band, SLAB_ELEMENTS // part.columns // band * band)
                row_bytes = choice.encoding.row_bytes(part.columns)
                for begin in range(0, part.rows, rows):
                    end = min(begin + rows, part.rows)
                    yield _Slab(file, choice, part, order, begin, end, offset + begin * row_bytes)
                offset += part.rows * row_bytes


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
    stored = recode(rows, slab.part, slab.choice, importance.get(slab.part.name), where)
    output.write(slab.file, slab.offset, stored.reshape(-1).view(np.uint8).data)
    return stored.nbytes


def read_rows(tensor: Tensor, begin: int, end: int) -> NDArray[Any]:
    """Stored rows ``[begin, end)``: ``dtype[n, columns]`` or, for blocks, ``uint8[n, row_bytes]``.

    Raises SourceNotFound when the file cannot be read and CorruptFile when it ends too early.
    """
    size = (end - begin) * tensor.row_bytes
    data = np.empty(size, dtype=np.uint8)
    try:
        with tensor.stored.path.open("rb", buffering=0) as file:
            view, at = data.data, tensor.stored.offset + begin * tensor.row_bytes
            while view:
                count = os.preadv(file.fileno(), [view], at)
                if count == 0:
                    raise CorruptFile(f"{tensor.stored.path}: ends before byte {at + len(view)}")
                view, at = view[count:], at + count
    except OSError as error:
        raise SourceNotFound(f"{tensor.stored.path}: cannot be read: {error.strerror}") from error
    encoding = tensor.encoding
    if isinstance(encoding, Dense):
        return data.view(encoding.numpy).reshape(end - begin, tensor.columns)
    return data.reshape(end - begin, tensor.row_bytes)


def decode_rows(rows: NDArray[Any], tensor: Tensor) -> NDArray[Any]:
    """Stored rows as numbers: dense rows as they are, blocks as float32[n, columns]."""
    if isinstance(tensor.encoding, Dense):
        return rows
    return blocks.decode(tensor.encoding.type, rows, tensor.columns)


def recode(
    rows: NDArray[Any],
    part: Tensor,
    choice: Choice,
    weights: NDArray[np.float32] | None,
    where: str,
) -> NDArray[Any]:
    """Stored rows of ``part`` in the encoding of ``choice``. Raises InvalidInput."""
    target = choice.encoding
    if part.encoding == target:
        return rows
    values = decode_rows(rows, part)
    if isinstance(target, Blocks):
        try:
            return blocks.encode(target.type, values.astype(np.float32, copy=False), weights)
        except ZenError as error:
            raise InvalidInput(f"{where}: {error}") from error
    with np.errstate(over="ignore"):
        narrowed = values.astype(target.numpy, copy=False)
    if target.dtype == "f16" and np.isinf(narrowed).any() and not np.isinf(values).any():
        largest = float(np.abs(values.astype(np.float32)).max())
        raise InvalidInput(
            f"{where}: {largest:g} is beyond the range of f16 (65504); choose bf16 or f32"
        )
    return narrowed
