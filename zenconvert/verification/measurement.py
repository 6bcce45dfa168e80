"""Verify: the same token ids through reference and candidate, compared position by position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from zenconvert.base.machine import AUTO, memory_errors, take_device, usable_cores
from zenconvert.base.progress import Count, Progress
from zenconvert.base.stamps import check_unchanged
from zenconvert.errors import EngineFailed, InvalidInput, UsageError, ZenError
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.meaning import check_explained
from zenconvert.opening.sources import both_with_pre, open_checkpoint
from zenconvert.solve.calibration_texts import text_cutter
from zenconvert.texts.samples import Sample, load_bundled, load_file
from zenconvert.texts.windows import Window, windows
from zenconvert.verification.drift import summarise
from zenconvert.verification.engine_check import Proof, prove_tokens, texts_of
from zenconvert.verification.engine_check import Text as ProofText
from zenconvert.verification.engines import ALL, ENGINES, TORCH, check, engine_names, refusal, runs
from zenconvert.verification.engines.torch_engine import TorchEngine
from zenconvert.verification.facts import artifact, facts_of
from zenconvert.verification.histogram import histogram
from zenconvert.verification.metrics import TokenScores, concatenate
from zenconvert.verification.native import NativeJob, RuntimeDied, run_native
from zenconvert.verification.noise import Noise, noise_scores, serving_dtype
from zenconvert.verification.report import EngineFailure, Report, Run, Text, documents
from zenconvert.verification.scoring import HeadOnStates, by_language, score_windows
from zenconvert.verification.states import (
    States,
    ids_digest,
    output_head,
    reference_states,
    states_key,
)
from zenconvert.verification.tokens import byte_lengths, token_bytes, worst_positions
from zenconvert.version import __version__

_BUNDLED: Final = "bundled evaluation texts"


def verify(
    reference: str | Path,
    candidate: str | Path,
    *,
    engine: str | Sequence[str] = TORCH,
    languages: Sequence[str] | None = None,
    text: str | Path | None = None,
    context: int = 512,
    config: str | Path | None = None,
    pre: str | None = None,
    ignored_keys: Sequence[str] = (),
    device: str = AUTO,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure how far ``candidate`` has moved from ``reference``.

    Args:
        reference: the checkpoint to compare with, run in float32 through transformers, layer by
            layer. Its final hidden states are cached: the next candidate needs no reference pass.
        candidate: the artifact, reopened from disk.
        engine: what runs the candidate: a name of ``engines.engine_names()``, or several; ``all``
            for every one that can run it here; the report says which of those for its format could
            not. Where several were asked for, one that dies, hangs or is missing is in
            ``Report.failed``, and the others' figures stay.
        languages: evaluate only these; all that the texts hold by default.
        text: JSONL with ``language`` and ``text`` (or ``messages``), or plain text; the bundled
            evaluation texts by default.
        context: longest window in tokens, up to the model's context.
        config: ``config.json`` of a candidate that is an ONNX graph without one.
        pre: pre-tokenizer of GGUF files that do not say how they cut text.
        ignored_keys: keys of files that no config can say and that change nothing.
        device: torch device of the reference, the torch engine and the scoring; other engines use
            the GPU when it is not ``cpu``. ``auto`` is the GPU where torch has one.
        threads: threads of the native engines; all usable cores by default.
        progress: called as work proceeds.

    Raises UsageError for an engine, language, text or device that makes no sense, InvalidInput when
    the models do not share a vocabulary, NotFinite, MissingDependency when the engine is not
    installed, EngineFailed when the only one does not work here, NotEnoughResources, CorruptFile
    when a model is changed meanwhile, and the errors of ``open_checkpoint``.
    """
    device = take_device(device)
    asked = _known(engine)
    first, second = both_with_pre(
        open_checkpoint(reference), open_checkpoint(candidate, config), pre
    )
    check_explained(first, ignored_keys)
    names, absent = _choose(asked, second, ignored_keys)
    _check_vocabularies(first, second)
    spans = evaluation_windows(first, evaluation_samples(text, languages), context)
    measured = artifact(first, str(reference)), artifact(second, str(candidate))
    facts = facts_of(first), facts_of(second)  # reads the side files: before the work

    def stage(name: str) -> Count:
        return lambda done, total: progress(name, done, total) if progress is not None else None

    key = states_key(first, measured[0].sha256, spans, device)
    states = reference_states(first, spans, key, device=device, progress=stage("reference"))
    work = _Work(first, second, spans, states, key, device, threads or usable_cores(), stage)
    runs, failed = _run_all(work, names)
    noise = work.noise()
    check_unchanged({**first.stamps, **second.stamps})
    return Report(
        reference=measured[0],
        candidate=measured[1],
        reference_facts=facts[0],
        candidate_facts=facts[1],
        context=min(context, first.hyperparameters.context),
        text=Text(str(text) if text is not None else _BUNDLED, ids_digest(spans), len(spans)),
        noise=noise,
        runs=runs,
        absent=absent,
        failed=failed,
        version=__version__,
    )


@dataclass(frozen=True)
class _Work:
    """One verification under way."""

    reference: Checkpoint
    candidate: Checkpoint
    windows: Sequence[Window]
    states: States
    key: str
    device: str
    threads: int
    stage: Callable[[str], Count]

    @cached_property
    def tokens(self) -> list[bytes]:
        return token_bytes(self.reference.tokenizer)

    @cached_property
    def texts(self) -> list[ProofText]:
        return texts_of(self.reference)

    def noise(self) -> Noise:
        """The noise floor in the type that the candidate is served in."""
        wanted = serving_dtype(self.candidate)
        dtype, scores = noise_scores(
            self.reference, self.states, self.windows, self.key, wanted,
            device=self.device, progress=self.stage("noise floor"),
        )  # fmt: skip
        summary = summarise(by_language(self.windows, scores), byte_lengths(self.tokens))
        counts = histogram(concatenate(scores).kl)
        return Noise(dtype, summary, counts, overflows=dtype != wanted)

    def run(self, engine: str) -> Run:
        """The candidate in one engine."""
        if engine == TORCH:
            return self._result(engine, *self._torch())
        job = NativeJob(
            engine, self.candidate, self.reference, self.states, self.windows, self.texts,
            prefix=_prefix(self.reference), device=self.device, threads=self.threads,
        )  # fmt: skip
        found = run_native(job, self.stage(engine))
        return self._result(engine, found.scores, found.proof, found.details)

    def _torch(self) -> tuple[list[TokenScores], Proof, dict[str, str]]:
        import torch
        import transformers

        from zenconvert.formats.hf.tokenizer import TextEncoder

        runner = TorchEngine(
            self.candidate, self.windows, device=self.device, progress=self.stage("candidate")
        )
        base = HeadOnStates(self.states.rows, output_head(self.reference, device=self.device))
        vocab = self.reference.hyperparameters.vocab
        scores = score_windows(base, runner, self.windows, vocab, self.stage("scoring"))
        details = {
            "version": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "device": self.device,
            "compute_dtype": "float32",
        }
        return scores, prove_tokens(TextEncoder(self.candidate.tokenizer), self.texts), details

    def _result(
        self,
        engine: str,
        scores: Sequence[TokenScores],
        proof: Proof,
        details: Mapping[str, str],
    ) -> Run:
        languages = by_language(self.windows, scores)
        return Run(
            engine=engine,
            details=details,
            summary=summarise(languages, byte_lengths(self.tokens)),
            proof=proof,
            histogram=histogram(concatenate(scores).kl),
            worst=tuple(worst_positions(self.windows, scores, self.tokens)),
            documents=documents(languages),
        )


def _known(engine: str | Sequence[str]) -> list[str]:
    """The engines that were asked for, each once. Raises UsageError for one that there is not."""
    asked = list(dict.fromkeys([engine] if isinstance(engine, str) else engine))
    for name in asked or [""]:
        if name not in engine_names():
            known = ", ".join(engine_names())
            raise UsageError(f"there is no engine {name!r}; known are {known}")
    return asked


def _choose(
    asked: Sequence[str], candidate: Checkpoint, ignored_keys: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The engines to run, and why others cannot."""
    if TORCH in asked or ALL in asked:
        check_explained(candidate, ignored_keys)
    if ALL not in asked:
        if len(asked) == 1 and asked[0] != TORCH:
            check(asked[0], candidate)
        return list(asked), {}
    fitting = [name for name in ENGINES if runs(name, candidate.format)]
    problems = {name: refusal(name, candidate) for name in fitting}
    able = [name for name, problem in problems.items() if problem is None]
    return [TORCH, *able], {name: str(p) for name, p in problems.items() if p is not None}


def _run_all(work: _Work, names: Sequence[str]) -> tuple[tuple[Run, ...], dict[str, EngineFailure]]:
    """What every engine measured, and why others did not; raises where none did."""
    runs, problems = [], dict[str, ZenError]()
    for name in names:
        try:
            if name != TORCH:
                check(name, work.candidate)
            with memory_errors(f"{work.candidate.path}: the {name} engine"):
                runs.append(work.run(name))
        except RuntimeDied as died:
            alone = len(names) == 1
            problems[name] = died if alone else _engine_or_artifact(name, died)
        except ZenError as error:
            problems[name] = error
    if not runs:
        raise next(iter(problems.values()))
    return tuple(runs), {name: EngineFailure.of(error) for name, error in problems.items()}


def _engine_or_artifact(engine: str, died: RuntimeDied) -> ZenError:
    """An engine that dies on the bundled model as well is to blame itself."""
    from zenconvert.verification.probing import probe

    found = probe(engine)
    if found.works:
        return died
    return EngineFailed(f"{died.what}\nIt dies on the bundled model as well. {found.mend}")


def evaluation_samples(text: str | Path | None, languages: Sequence[str] | None) -> list[Sample]:
    """The texts that are evaluated. Raises UsageError for languages that they do not have."""
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
    """Token ids of the samples under the checkpoint's tokenizer, in windows of at most ``context``
    tokens, and no more than the model takes."""
    return windows(
        samples, text_cutter(checkpoint, min(context, checkpoint.hyperparameters.context))
    )


def _prefix(checkpoint: Checkpoint) -> list[int]:
    """BOS, where the model expects it."""
    tokenizer = checkpoint.tokenizer
    return [tokenizer.special["bos"]] if tokenizer.add_bos else []
