"""What a conversion knows of the activations: nothing, a file of statistics, or a walk to come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zenconvert.base.atomic import hidden_name, system_errors
from zenconvert.base.progress import Progress
from zenconvert.base.scratch import forget, held_scratch, is_kept, keep, remove_scratch
from zenconvert.calib.methods import METHODS
from zenconvert.errors import UsageError
from zenconvert.formats.registry import format_named
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.target import Solver
from zenconvert.planning.plan import Importance
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.inputs import by_layer, head_input, layer_inputs
from zenconvert.solve.calibration import calibrate
from zenconvert.solve.calibration_texts import Calibrating

if TYPE_CHECKING:
    from zenconvert.calib.statistics_reader import Statistics


def solver_for(format_name: str, asked: Solver | None, *, has_statistics: bool) -> Solver:
    """The solver of a format's grids. Raises UsageError for one that cannot be had."""
    if asked is not None and asked not in METHODS:
        raise UsageError(f"there is no solver {asked!r}; known are {', '.join(METHODS)}")
    form = format_named(format_name)
    if asked is not None and METHODS[asked].needs_statistics:
        if asked not in form.solvers:
            known = " and ".join(("rtn", *form.solvers))
            raise UsageError(f"{asked} cannot fill {format_name} targets; {known} can")
        if not has_statistics:
            raise UsageError(f"the solver {asked} needs --stats or --calibrate")
    if asked is not None or not has_statistics:
        return asked or "rtn"
    return form.solver or "rtn"


@dataclass(frozen=True)
class Knowledge:
    """At most one of the three is given."""

    importance: str | Path | None
    """llama.cpp imatrix GGUF."""
    statistics: str | Path | None
    """Statistics file."""
    calibrating: Calibrating | None

    @property
    def inputs(self) -> dict[str, str | Path | None]:
        """What is read from files, by the name of its option."""
        samples = self.calibrating.samples if self.calibrating is not None else None
        return {
            "--importance": self.importance,
            "--stats": self.statistics,
            "--samples": samples,
        }

    def solver_for(self, format_name: str, asked: Solver | None) -> Solver:
        """The solver of a conversion. Raises UsageError for what does not go together."""
        given = {
            "--importance": self.importance,
            "--stats": self.statistics,
            "--calibrate": self.calibrating,
        }
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise UsageError(f"{' and '.join(names)} exclude each other")
        has_statistics = self.statistics is not None or self.calibrating is not None
        return solver_for(format_name, asked, has_statistics=has_statistics)

    @contextmanager
    def weights(
        self,
        source: str | Path,
        checkpoint: Checkpoint,
        solver: Solver,
        out: Path,
        device: str,
        stage: Progress,
    ) -> Iterator[Importance | None]:
        """Importance weights by neutral tensor name; None where there are none.

        A solver has the statistics themselves: ones, to plan with.

        Statistics that are gathered in this run are kept beside the output until the block ends
        without an error, so that a killed run need not gather them again.
        """
        solves = METHODS[solver].needs_statistics
        if solves or self.calibrating is None:
            yield expected_importance(checkpoint) if solves else self.from_files(checkpoint)
            return
        with self._gathered(source, checkpoint, out, device, stage) as gathered:
            yield measured_importance(gathered, checkpoint)

    @contextmanager
    def whole(
        self, source: str | Path, checkpoint: Checkpoint, out: Path, device: str, stage: Progress
    ) -> Iterator[Knowledge]:
        """A file of statistics with second moments and gradients, gathered in this run or given.

        Kept as those of :meth:`weights`. Raises UsageError where there is nothing to gather them
        by, or where they would not be those of the model as it is.
        """
        if self.calibrating is None:
            if self.statistics is None:
                given = "" if self.importance is None else "; --importance does not suffice"
                raise UsageError(
                    f"types are chosen by statistics: give --calibrate or --stats{given}"
                )
            yield self
            return
        if self.calibrating.sequential:
            raise UsageError("--sequential makes no sense where types are chosen before")
        whole = replace(self, calibrating=replace(self.calibrating, fisher=True))
        purposes = [name for name, method in METHODS.items() if method.solves_head]
        with whole._gathered(source, checkpoint, out, device, stage, purposes) as gathered:
            yield Knowledge(None, gathered, None)

    @contextmanager
    def _gathered(
        self,
        source: str | Path,
        checkpoint: Checkpoint,
        out: Path,
        device: str,
        stage: Progress,
        purposes: Sequence[str] = (),
    ) -> Iterator[Path]:
        """A file of statistics beside the output, which goes when the block ends."""
        assert self.calibrating is not None
        arguments = {**self.calibrating.arguments, "device": device}
        if purposes:
            arguments["purposes"] = purposes
        if checkpoint.named_config is not None:
            arguments["config"] = checkpoint.named_config
        digest = hashlib.sha256(repr((str(source), arguments)).encode()).hexdigest()[:12]
        with held_scratch(out.with_name(hidden_name(out.name, "gathered"))) as folder:
            gathered = folder / f"{digest}.stats"
            if not is_kept(gathered):
                with system_errors(gathered):
                    forget(gathered)
                calibrate(
                    source,
                    gathered,
                    **arguments,
                    progress=lambda at: stage(at.stage, at.layer, at.layers),
                )
                keep(gathered)
            yield gathered
            remove_scratch(folder)

    def from_files(self, checkpoint: Checkpoint) -> Importance | None:
        """Importance weights from the file that is given, None where none is."""
        if self.importance is not None:
            return load_importance(self.importance, checkpoint)
        if self.statistics is None:
            return None
        return measured_importance(Path(self.statistics), checkpoint)

    def origin(self, checkpoint: Checkpoint) -> Statistics | Calibrating:
        """Where a solver gets its statistics from. Raises as ``open_statistics``."""
        return self.stored(checkpoint) if self.calibrating is None else self.calibrating

    def stored(self, checkpoint: Checkpoint) -> Statistics:
        """The statistics of the file that is given. Raises as ``open_statistics``."""
        from zenconvert.calib.statistics_reader import open_statistics

        assert self.statistics is not None  # solver_for saw to that
        return open_statistics(self.statistics, checkpoint, logical_rows)


def load_importance(path: str | Path, checkpoint: Checkpoint) -> Importance:
    """Importance weights of a checkpoint's tensors from a llama.cpp imatrix file."""
    from zenconvert.formats.gguf.imatrix import read_importance

    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    weights = [n for n in names if n.is_weight]
    return read_importance(Path(path), weights, checkpoint.hyperparameters)


def measured_importance(path: Path, checkpoint: Checkpoint) -> Importance:
    """Importance weights of a checkpoint's tensors from a statistics file."""
    from zenconvert.calib.statistics_reader import load_importance as from_statistics

    return from_statistics(path, checkpoint, logical_rows)


def expected_importance(checkpoint: Checkpoint) -> Importance:
    """Ones for every tensor that a calibration will find weights for, to plan with before it."""
    names = list(checkpoint.architecture.tensor_names(checkpoint.hyperparameters))
    inputs = [
        item
        for tensors in by_layer(names).values()
        for item in layer_inputs(checkpoint.architecture, tensors)
    ]
    if "head.weight" in checkpoint.tensors:
        inputs.append(head_input(checkpoint.hyperparameters))
    ones = {columns: np.ones(columns, np.float32) for columns in {i.columns for i in inputs}}
    return {f"{module}.weight": ones[item.columns] for item in inputs for module in item.modules}
