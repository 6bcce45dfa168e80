"""Calibrate: texts of many languages through the reference model, and what its modules read.

The statistics go to a file that later conversions reuse (``zenconvert.calib.statistics_file``), to
an importance matrix for llama.cpp, or to both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from zenconvert.base.atomic import drop_stale, hidden_name, new_file
from zenconvert.base.machine import AUTO, take_device
from zenconvert.base.places import check_files, check_places, check_side_file
from zenconvert.base.scratch import held_scratch, remove_scratch
from zenconvert.calib.methods import METHODS
from zenconvert.calib.statistics import InputStatistics
from zenconvert.calib.statistics_reader import Statistics, open_statistics
from zenconvert.errors import OutputExists, UsageError
from zenconvert.formats.gguf.imatrix import ImatrixEntry, Sums, Texts, imatrix_size, write_imatrix
from zenconvert.formats.gguf.reader import stored_form
from zenconvert.formats.registry import FORMATS
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.meaning import check_explained
from zenconvert.opening.sources import open_checkpoint
from zenconvert.planning.recoding import logical_rows
from zenconvert.reference.reference import Reference
from zenconvert.solve.calibration_texts import (
    FISHER_TOKENS,
    TOKENS_PER_LANGUAGE,
    Calibrating,
    window_length,
)
from zenconvert.texts.coverage import ExpertCoverage, LanguageCoverage, expert_coverage
from zenconvert.texts.selection import Selection

if TYPE_CHECKING:
    from zenconvert.calib.statistics_file import StatisticsRun
    from zenconvert.calib.walk import LayerProgress, WalkSettings

PURPOSES: Final = (
    *(one.name for one in FORMATS.values() if one.is_weighed and one.solver is None),
    *(name for name, one in METHODS.items() if one.needs_statistics),
)
"""What statistics can be for: formats that round with importance weights by themselves, and methods
that solve from them."""


@dataclass(frozen=True)
class Calibration:
    """What a calibration wrote and what it has seen."""

    files: tuple[Path, ...]
    languages: tuple[LanguageCoverage, ...]
    experts: ExpertCoverage | None
    """None for a model without experts."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "files": [str(path) for path in self.files],
            "languages": [part.as_dict() for part in self.languages],
            "experts": self.experts.as_dict() if self.experts is not None else None,
        }


def calibrate(
    source: str | Path,
    out: str | Path,
    *,
    purposes: Sequence[str] = PURPOSES[:1],
    samples: str | Path | None = None,
    languages: Sequence[str] | None = None,
    language_weights: Mapping[str, float] | None = None,
    tokens_per_language: int | None = TOKENS_PER_LANGUAGE,
    context: int | None = None,
    seed: int = 0,
    device: str = AUTO,
    dtype: str | None = None,
    all_experts: bool = False,
    fisher: bool = False,
    final_states: bool = False,
    imatrix: str | Path | None = None,
    config: str | Path | None = None,
    pre: str | None = None,
    ignored_keys: Sequence[str] = (),
    max_vram: int | None = None,
    max_ram: int | None = None,
    max_disk: int | None = None,
    force: bool = False,
    announce: Callable[[int], None] | None = None,
    progress: Callable[[LayerProgress], None] | None = None,
) -> Calibration:
    """Measure what every linear module reads, per language.

    Args:
        source: path, Hub id or ``builtin:NAME``.
        out: statistics file to write; with the suffix ``.gguf``, an imatrix file instead.
        purposes: what the statistics are for; ``gptq`` and ``awq`` take second moments as well.
        samples: file, folder or ``hub:NAME[:SPLIT]``; the bundled texts by default.
        languages: only these; all that the samples hold by default.
        language_weights: language → weight; 1 for those not named, so balanced by default.
        tokens_per_language: most tokens to read of each; None for all there are.
        context: longest window in tokens.
        seed: decides which documents are read when there are more than enough.
        device: torch device of the reference model; ``auto`` is the GPU where torch has one.
        dtype: ``f32``, ``bf16`` or ``f16``; bf16 on CUDA and f32 elsewhere by default.
        all_experts: take statistics of every expert over all tokens.
        fisher: walk back, too, over at most 2,560 tokens of each language, and keep the Fisher
            information of outputs and of the embedding.
        final_states: keep the final hidden states of all windows, too.
        imatrix: also write an importance matrix for llama.cpp here.
        config: ``config.json`` of a source that is an ONNX graph without one.
        pre: pre-tokenizer of a GGUF source that does not say how it cuts text.
        ignored_keys: keys of the source that no config can say and that change nothing.
        max_vram, max_ram, max_disk: bytes that may be used.
        force: replace existing outputs.
        announce: called with the size of the statistics file before anything is computed.
        progress: called as the walk over the layers proceeds.

    Interrupted at any moment and called again, it goes on where it was.

    Raises UsageError, OutputExists, NotEnoughResources, MissingDependency, and the errors of
    :func:`zenconvert.open_checkpoint`, of reading samples and of running the model.
    """

    outputs = {"OUT": out, "--imatrix": imatrix}
    check_places({"the source": source, "--config": config, "--samples": samples}, outputs)
    target = _Outputs.plan(Path(out), imatrix, force=force)
    moments = _needs_moments(purposes)
    if target.only_imatrix and fisher:
        raise UsageError(
            f"{out}: an imatrix (.gguf) has no room for what --fisher finds; give OUT another name"
        )
    if target.only_imatrix and moments:
        raise UsageError(
            f"{out}: an imatrix (.gguf) has no room for what gptq and awq need; give OUT another "
            "name, for example with .stats, and --imatrix for an imatrix beside it"
        )
    device = take_device(device)
    checkpoint = open_checkpoint(source, config, pre)
    check_places({"the source": checkpoint.path}, outputs)
    check_files("OUT", Path(out), target.files, checkpoint.stamps)
    calibrating = Calibrating(
        samples, languages, language_weights, tokens_per_language, context, seed, dtype,
        all_experts, fisher, max_vram=max_vram, max_ram=max_ram, ignored_keys=ignored_keys,
    )  # fmt: skip
    selection = calibrating.selection(checkpoint)
    settings = calibrating.settings(device, moments=moments)
    run = statistics_run(checkpoint, calibrating, selection, settings, final_states=final_states)
    with ExitStack() as stack:
        if target.only_imatrix:
            stack.enter_context(held_scratch(target.statistics.parent))
        run.check_disk(target.statistics, max_disk)
        if announce is not None:
            announce(run.layout.size)
        run.run(target.statistics, progress=progress)
        statistics = open_statistics(target.statistics)
        if target.imatrix is not None:
            export_imatrix(statistics, checkpoint, target.imatrix)
        found = Calibration(target.files, selection.coverage, experts_of(statistics, checkpoint))
        if target.only_imatrix:
            remove_scratch(target.statistics.parent)
    return found


def statistics_run(
    checkpoint: Checkpoint,
    calibrating: Calibrating,
    selection: Selection,
    settings: WalkSettings,
    *,
    final_states: bool = False,
    inputs: bool = True,
) -> StatisticsRun:
    """Everything about the statistics file of some texts; without ``inputs``, of a walk back
    alone."""
    from zenconvert.calib.statistics_file import StatisticsRun

    check_explained(checkpoint, calibrating.ignored_keys)
    facts = {
        "name": calibrating.name,
        "context": window_length(checkpoint, calibrating.context),
        "windows": len(selection.windows),
    }
    reference = Reference(checkpoint, logical_rows, device=settings.device)
    return StatisticsRun(
        reference,
        selection,
        settings,
        final_states=final_states,
        fisher_tokens=FISHER_TOKENS if calibrating.fisher else None,
        inputs=inputs,
        facts=facts,
    )


def _needs_moments(purposes: Sequence[str]) -> bool:
    if unknown := [name for name in purposes if name not in PURPOSES]:
        raise UsageError(f"there is no purpose {unknown[0]!r}; known are {', '.join(PURPOSES)}")
    return any(name in METHODS for name in purposes)


def experts_of(statistics: Statistics, checkpoint: Checkpoint) -> ExpertCoverage | None:
    """Which experts the texts reached; None for a model without experts."""
    layers = range(checkpoint.hyperparameters.layers)
    routed = {n: found for n in layers if (found := statistics.routed(n)) is not None}
    return expert_coverage(routed, statistics.languages) if routed else None


@dataclass(frozen=True, slots=True)
class _Outputs:
    """What goes where."""

    statistics: Path
    imatrix: Path | None
    only_imatrix: bool

    @classmethod
    def plan(cls, out: Path, imatrix: str | Path | None, *, force: bool) -> _Outputs:
        """Raises UsageError and OutputExists."""
        only = out.suffix.lower() == ".gguf"
        if only and imatrix is not None:
            raise UsageError(f"{out} is an imatrix file already; leave out --imatrix")
        matrix = out if only else Path(imatrix) if imatrix is not None else None
        hidden = out.with_name(hidden_name(out.name, "gathered")) / "statistics"
        outputs = cls(hidden if only else out, matrix, only)
        for path in outputs.files:
            if not path.parent.is_dir():
                raise UsageError(f"{path.parent}: the folder of the output does not exist")
            if path.is_dir():
                raise OutputExists(f"{path}: a folder stands there")
            if os.path.lexists(path) and not path.is_file():
                raise OutputExists(f"{path}: --force replaces files only, and this is none")
            if os.path.lexists(path) and not force:
                raise OutputExists(f"{path}: the output exists; remove it or use --force")
        if not only:  # what stands beside OUT is tried by the folder that the run works in
            check_side_file("--imatrix", matrix)
        return outputs

    @property
    def files(self) -> tuple[Path, ...]:
        """What the user gets."""
        matrix = () if self.imatrix is None else (self.imatrix,)
        return matrix if self.only_imatrix else (self.statistics, *matrix)


def export_imatrix(statistics: Statistics, checkpoint: Checkpoint, out: Path) -> None:
    """Write statistics of a checkpoint as an importance matrix for llama.cpp.

    The sums are those of all languages by their weights; those of single languages stand beside
    them, where llama.cpp ignores them.
    """
    entries = _entries(checkpoint, statistics.modules, partial(_Loader, statistics))
    facts = statistics.facts["samples"]
    drop_stale(out)
    with new_file(out) as file:
        write_imatrix(file, entries, statistics.languages, _texts(facts))


def imatrix_bytes(run: StatisticsRun) -> int:
    """Size of the importance matrix that the statistics of a run will give."""
    modules = {module for item in run.all_inputs() for module in item.modules}
    entries = _entries(run.reference.checkpoint, modules, lambda stack: dict)
    facts = json.loads(run.metadata["samples"])
    return imatrix_size(entries, run.selection.languages, _texts(facts))


def _entries(
    checkpoint: Checkpoint,
    modules: Collection[str],
    loader: Callable[[list[str]], Callable[[], dict[str, Sums]]],
) -> list[ImatrixEntry]:
    """An entry for every weight whose input was measured."""
    stacks: dict[str, dict[int | None, str]] = {}
    columns: dict[str, int] = {}
    changes: dict[str, str | None] = {}
    for name in checkpoint.architecture.tensor_names(checkpoint.hyperparameters):
        module = name.name.rpartition(".")[0]
        if name.is_weight and module in modules and name.gguf_values is None:
            # modules that are rows of one tensor read one input
            stacks.setdefault(name.gguf, {}).setdefault(name.expert, module)
            columns[name.gguf] = name.shape[-1]
            changes[name.gguf] = stored_form(name, checkpoint.hyperparameters)[1]
    return [
        ImatrixEntry(name, len(stack), columns[name], loader(list(stack.values())), changes[name])
        for name, stack in stacks.items()
    ]


def _texts(facts: Mapping[str, Any]) -> Texts:
    """What a statistics file knows of its texts."""
    return Texts([str(facts["name"])], int(facts["windows"]), int(facts["context"]))


@dataclass(frozen=True, slots=True)
class _Loader:
    """Reads the sums of one weight, or of a stack of experts."""

    statistics: Statistics
    modules: Sequence[str]

    def __call__(self) -> dict[str, Sums]:
        items = [self.statistics.of(module) for module in self.modules]
        found = {"": _stack([_weighted(item) for item in items])}
        for number, language in enumerate(self.statistics.languages):
            found[language] = _stack(
                [(item.squares[number], int(item.tokens[number])) for item in items]
            )
        return found


def _weighted(item: InputStatistics) -> tuple[NDArray[np.float32], int]:
    return item.weighted_sums(item.squares), item.count if item.weight else 0


def _stack(parts: Sequence[tuple[NDArray[np.float32], int]]) -> Sums:
    return Sums(np.stack([p[0] for p in parts]), np.array([p[1] for p in parts], dtype=np.int64))
