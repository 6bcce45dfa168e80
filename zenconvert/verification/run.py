"""Verify: the same token ids through reference and candidate, compared position by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from zenconvert.calib.samples import Sample, load_bundled, load_file
from zenconvert.calib.windows import Window, windows
from zenconvert.checkpoint import Checkpoint
from zenconvert.conversion import usable_cores
from zenconvert.errors import InvalidInput, UsageError
from zenconvert.sources import open_checkpoint
from zenconvert.verification.engines.autoawq import AutoAwqEngine
from zenconvert.verification.engines.autogptq import AutoGptqEngine
from zenconvert.verification.engines.llamacpp import LlamaCppEngine
from zenconvert.verification.engines.torch_engine import TorchEngine
from zenconvert.verification.metrics import Scores, score
from zenconvert.verification.report import Report, artifact

EngineName = Literal["torch", "llamacpp", "auto-gptq", "autoawq"]
ENGINES: Final[tuple[EngineName, ...]] = ("torch", "llamacpp", "auto-gptq", "autoawq")

_POSITIONS: Final = 64  # positions scored at a time
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


class Engine(Protocol):
    """Anything that turns windows of token ids into logits."""

    def logits(self, window: int, begin: int, end: int) -> NDArray[np.float32]: ...

    def close(self) -> None: ...


_NATIVE: Final[dict[EngineName, Callable[..., Engine]]] = {
    "llamacpp": LlamaCppEngine,
    "auto-gptq": AutoGptqEngine,
    "autoawq": AutoAwqEngine,
}


def verify(
    reference: str | Path,
    candidate: str | Path,
    *,
    engine: EngineName = "torch",
    languages: Sequence[str] | None = None,
    text: str | Path | None = None,
    context: int = 512,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure how far ``candidate`` has moved from ``reference``.

    Args:
        reference: the checkpoint to compare with, run in float32 through transformers.
        candidate: the artifact, reopened from disk.
        engine: what runs the candidate.
        languages: evaluate only these; all that the texts hold by default.
        text: JSONL with ``language`` and ``text`` (or ``messages``), or plain text; the bundled
            evaluation texts by default.
        context: longest window in tokens.
        device: torch device of the torch engine.
        threads: threads of engines other than torch; all usable cores by default.
        progress: called as work proceeds.

    Raises UsageError for an engine, language, text or device that makes no sense, InvalidInput when
    the models do not share a vocabulary or give no finite logits, MissingDependency when the engine
    is not installed, and the errors of ``open_checkpoint``.
    """
    if engine not in ENGINES:
        raise UsageError(f"there is no engine {engine!r}; known are {', '.join(ENGINES)}")
    _check_device(device)
    first, second = open_checkpoint(reference), open_checkpoint(candidate)
    _check_vocabularies(first, second)
    spans = evaluation_windows(first, _samples(text, languages), context)

    def stage(name: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(name, done, total) if progress is not None else None

    runner: Engine
    if engine == "torch":
        runner = TorchEngine(second, spans, device=device, progress=stage("candidate"))
    else:
        runner = _NATIVE[engine](second, spans, threads=threads or usable_cores())
    try:
        base = TorchEngine(first, spans, device=device, progress=stage("reference"))
        per_language = _score_all(base, runner, spans, stage("scoring"))
    finally:
        runner.close()
    everything = Scores([part for scores in per_language.values() for part in scores.parts])
    return Report(
        engine=engine,
        reference=artifact(first, str(reference)),
        candidate=artifact(second, str(candidate)),
        context=context,
        overall=everything.drift(),
        languages={code: scores.drift() for code, scores in per_language.items()},
    )


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"torch cannot use the device {device!r}: {reason}") from error


def _samples(text: str | Path | None, languages: Sequence[str] | None) -> list[Sample]:
    if text is None:
        return load_bundled("evaluation", languages)
    samples = load_file(Path(text))
    if not samples:
        raise UsageError(f"{text}: there is no text in it")
    if languages is None:
        return samples
    known = {s.language for s in samples}
    if absent := [code for code in languages if code not in known]:
        raise UsageError(
            f"{text}: no text in {', '.join(absent)}; there is {', '.join(sorted(known))}"
        )
    return [s for s in samples if s.language in languages]


def _check_vocabularies(reference: Checkpoint, candidate: Checkpoint) -> None:
    if reference.tokenizer.tokens != candidate.tokenizer.tokens:
        raise InvalidInput(
            f"{candidate.path}: its vocabulary is not that of {reference.path}; only models with "
            "the same tokens can be compared"
        )
    ours, theirs = reference.hyperparameters.vocab, candidate.hyperparameters.vocab
    if ours != theirs:
        raise InvalidInput(f"{candidate.path}: it has {theirs} logits, {reference.path} has {ours}")


def evaluation_windows(
    checkpoint: Checkpoint, samples: Sequence[Sample], context: int
) -> list[Window]:
    """Token ids of the samples under the checkpoint's tokenizer."""
    from zenconvert.formats.hf.tokenizer import TextEncoder

    if context > checkpoint.hyperparameters.context:
        raise UsageError(
            f"the model's context is {checkpoint.hyperparameters.context} tokens; {context} is more"
        )
    tokenizer = checkpoint.tokenizer
    bos = tokenizer.special.get("bos")
    return windows(
        samples,
        TextEncoder(tokenizer),
        context=context,
        template=tokenizer.chat_template,
        special_tokens={
            f"{name}_token": tokenizer.tokens[i] for name, i in tokenizer.special.items()
        },
        prefix=bos if tokenizer.add_bos else None,
    )


def _score_all(
    reference: Engine,
    candidate: Engine,
    spans: Sequence[Window],
    progress: Callable[[int, int], None],
) -> dict[str, Scores]:
    per_language: dict[str, Scores] = {}
    for index, span in enumerate(spans):
        scores = per_language.setdefault(span.language, Scores())
        ids = np.asarray(span.ids, dtype=np.int64)
        for begin in range(0, len(ids) - 1, _POSITIONS):
            end = min(begin + _POSITIONS, len(ids) - 1)
            base = reference.logits(index, begin, end)
            logits = candidate.logits(index, begin, end)
            for name, values in (("reference", base), ("candidate", logits)):
                if not np.isfinite(values).all():
                    raise InvalidInput(
                        f"the {name}'s logits are not finite in sample {span.sample} "
                        f"({span.language}), tokens {begin} to {end}"
                    )
            scores.add(score(base, logits, ids[begin + 1 : end + 1]))
        progress(index + 1, len(spans))
    return dict(sorted(per_language.items()))
