"""Task drift: the same questions to reference and candidate, answer by answer.

lm-evaluation-harness (extra ``tasks``) asks; every item is paired, for an accuracy that stands
still hides answers that changed (arXiv 2407.09141). Whether more answers broke than were mended by
chance is McNemar's exact test (Psychometrika 12, 1947).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partialmethod
from math import comb
from pathlib import Path
from typing import Any, Final

from zenconvert.base.machine import AUTO, take_device
from zenconvert.base.progress import Progress
from zenconvert.errors import MissingDependency, SourceNotFound, UsageError
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.meaning import check_explained
from zenconvert.opening.sources import both_with_pre, open_checkpoint
from zenconvert.verification.engines import TORCH, engine_names
from zenconvert.verification.engines.packed_model import quiet, replaced
from zenconvert.verification.task_model import TaskModel, harness_model

SIGNIFICANT: Final = 0.05


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One yes-or-no metric of one task, item by item."""

    task: str
    metric: str
    """With the harness's filter where it is not ``none``: ``exact_match,strict-match``."""
    items: int
    reference: float
    """Share of items that the reference gets right."""
    candidate: float
    broken: int
    """Right in the reference, wrong in the candidate."""
    mended: int
    """Wrong in the reference, right in the candidate."""

    @property
    def flips(self) -> float:
        """Share of items whose answer turned right or wrong."""
        return (self.broken + self.mended) / self.items

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how likely so uneven flips are by chance."""
        count = self.broken + self.mended
        tail = sum(comb(count, k) for k in range(min(self.broken, self.mended) + 1))
        return min(1.0, float(2 * tail / 2**count))

    @property
    def worse(self) -> bool:
        """More broken than mended, beyond chance."""
        return self.broken > self.mended and self.p_value < SIGNIFICANT

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "flips": self.flips, "p_value": self.p_value, "worse": self.worse}


@dataclass(frozen=True, slots=True)
class TaskDrift:
    """Every task, the one with most flips first."""

    results: tuple[TaskResult, ...]
    unpaired: tuple[str, ...]
    """``task: metric`` that is no yes or no, and so has no flips."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"results": [r.as_dict() for r in self.results], "unpaired": list(self.unpaired)}


def compare_tasks(
    reference: str | Path,
    candidate: str | Path,
    tasks: Sequence[str],
    *,
    engine: str = TORCH,
    reference_engine: str | None = None,
    include: str | Path | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
    config: str | Path | None = None,
    pre: str | None = None,
    ignored_keys: Sequence[str] = (),
    device: str = AUTO,
    progress: Progress | None = None,
) -> TaskDrift:
    """Ask both models the same tasks.

    Args:
        reference: the checkpoint to compare with.
        candidate: the artifact, reopened from disk.
        tasks: names, groups or patterns of lm-evaluation-harness (``mmlu``, ``mgsm_direct_ja``,
            ``arc_*``), or of the folder ``include``.
        engine: what runs the candidate, not ``all``; ``torch`` answers by likelihood alone.
        reference_engine: what runs the reference; ``engine`` by default where it can, else torch.
        include: folder with task files of your own (YAML).
        fewshot: examples before every question; the task's own number by default.
        limit: only so many items of every task.
        config: ``config.json`` of a candidate that is an ONNX graph without one.
        pre: pre-tokenizer of GGUF files that do not say how they cut text.
        ignored_keys: keys of files that no config can say and that change nothing.
        device: torch device; ``auto`` is the GPU where torch has one.
        progress: called as work proceeds.

    Raises UsageError for unknown tasks and engines, MissingDependency without the harness,
    SourceNotFound for a data set that is neither here nor to be had, and the errors of
    ``open_checkpoint`` and of the engines.
    """
    for name in (engine, reference_engine):
        if name is not None and name not in engine_names()[:-1]:
            raise UsageError(f"tasks need one engine of {', '.join(engine_names()[:-1])}: {name!r}")
    device = take_device(device)
    ask = _Asking(*_known_tasks(tasks, include), fewshot, limit)
    first, second = both_with_pre(
        open_checkpoint(reference), open_checkpoint(candidate, config), pre
    )

    def model(checkpoint: Checkpoint, engine: str, stage: str) -> TaskModel:
        def count(done: int, total: int) -> None:
            if progress is not None:
                progress(stage, done, total)

        return TaskModel(checkpoint, engine, device, count)

    own = reference_engine or _fitting(engine, first)
    for checkpoint, runs in ((first, own), (second, engine)):
        if runs == TORCH:
            check_explained(checkpoint, ignored_keys)
    before = ask(model(first, own, "reference"))
    after = ask(model(second, engine, "candidate"))
    return paired(before, after)


def _fitting(engine: str, reference: Checkpoint) -> str:
    from zenconvert.verification.engines import refusal, runs

    if engine == TORCH or runs(engine, reference.format):
        return engine
    return "transformers" if refusal("transformers", reference) is None else TORCH


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.evaluator
        import lm_eval.tasks
    except ImportError as error:
        raise MissingDependency(
            f"tasks need lm-evaluation-harness; install zenconvert[tasks] ({error})"
        ) from error
    return lm_eval


def _known_tasks(tasks: Sequence[str], include: str | Path | None) -> tuple[list[str], Any]:
    """The harness's names of what was asked for, and its index of them.

    The index of the harness's own tasks takes seconds; it is not made where a folder has them all.
    """
    manager_of = _harness().tasks.TaskManager
    path = None if include is None else str(include)
    for defaults in (False, True) if path is not None else (True,):
        with quiet():
            manager = manager_of(include_path=path, include_defaults=defaults)
        found = {wanted: manager.match_tasks([wanted]) for wanted in tasks}
        if all(found.values()):
            break
    if unknown := [wanted for wanted, names in found.items() if not names]:
        raise UsageError(
            f"the harness knows no task {unknown[0]!r}; `lm_eval ls tasks` lists its own, and "
            "--include names a folder of yours"
        )
    if not found:
        raise UsageError("no task was named")
    return list(dict.fromkeys(name for names in found.values() for name in names)), manager


@dataclass(frozen=True)
class _Asking:
    """The same questions for every model."""

    names: list[str]
    manager: Any
    fewshot: int | None
    limit: int | None

    def __call__(self, model: TaskModel) -> Mapping[str, Any]:
        """Items of every task, by its name."""
        from datasets.exceptions import DatasetsError
        from tqdm import tqdm

        harness, silent = _harness(), partialmethod(tqdm.__init__, disable=True)
        describing = harness.evaluator  # of the machine and of the user's folder, by programs there
        try:
            with (
                quiet(),
                replaced(
                    (tqdm, "__init__", silent),
                    (describing, "get_git_commit_hash", _nothing),
                    (describing, "add_env_info", _nothing),
                ),
            ):
                found = harness.simple_evaluate(
                    model=harness_model(model),
                    tasks=list(self.names),
                    task_manager=self.manager,
                    num_fewshot=self.fewshot,
                    limit=self.limit,
                    log_samples=True,
                    bootstrap_iters=0,
                )
        except (DatasetsError, OSError) as error:
            raise SourceNotFound(
                f"the data of {', '.join(self.names)} is neither here nor to be had: {error}"
            ) from error
        samples: Mapping[str, Any] = found["samples"]
        return samples


def _nothing(*_: Any) -> None:
    """In place of what starts git, pip and others in the folder that the user stands in."""


def paired(before: Mapping[str, Any], after: Mapping[str, Any]) -> TaskDrift:
    """Pair the harness's samples of two models, item by item."""
    results, unpaired = [], []
    for task, theirs in before.items():
        ours = {_key(sample): sample for sample in after[task]}
        for metric, filter_name in _metrics(theirs):
            rows = [s for s in theirs if s["filter"] == filter_name]
            pairs = [(_value(s, metric), _value(ours[_key(s)], metric)) for s in rows]
            label = metric if filter_name == "none" else f"{metric},{filter_name}"
            if all(value in (0.0, 1.0) for pair in pairs for value in pair):
                results.append(_result(task, label, pairs))
            else:
                unpaired.append(f"{task}: {label}")
    results.sort(key=lambda r: (-r.flips, r.task, r.metric))
    return TaskDrift(tuple(results), tuple(unpaired))


def _key(sample: Mapping[str, Any]) -> tuple[Any, ...]:
    return sample["doc_id"], sample["doc_hash"], sample["filter"]


def _metrics(samples: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    seen = set()
    for sample in samples:
        for metric in sample.get("metrics", ()):
            if (metric, sample["filter"]) not in seen:
                seen.add((metric, sample["filter"]))
                yield metric, sample["filter"]


def _value(sample: Mapping[str, Any], metric: str) -> float | None:
    value = sample.get(metric)
    return float(value) if isinstance(value, int | float) else None


def _result(
    task: str, metric: str, pairs: Sequence[tuple[float | None, float | None]]
) -> TaskResult:
    return TaskResult(
        task,
        metric,
        items=len(pairs),
        reference=sum(a == 1 for a, _ in pairs) / len(pairs),
        candidate=sum(b == 1 for _, b in pairs) / len(pairs),
        broken=sum(a == 1 and b != 1 for a, b in pairs),
        mended=sum(a != 1 and b == 1 for a, b in pairs),
    )
