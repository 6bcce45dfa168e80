"""An artifact as lm-evaluation-harness sees a model: texts in, log-likelihoods and texts out.

What runs it is one of our engines, so that any format can be asked, and the ``torch`` engine asks
all questions in one walk over the layers, without the whole model in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from zenconvert.base.machine import usable_cores
from zenconvert.base.progress import Count
from zenconvert.errors import UsageError
from zenconvert.formats.hf.tokenizer import TextEncoder
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engines import ENGINES, TORCH, check, runs
from zenconvert.verification.engines.torch_engine import TorchEngine

if TYPE_CHECKING:
    import torch

_ROWS: Final = 128
"""Positions whose logits are held."""
_NEW_TOKENS: Final = 256
"""Most tokens of an answer where the task does not say."""


@dataclass(frozen=True)
class TaskModel:
    """A checkpoint in an engine, asked in token ids."""

    checkpoint: Checkpoint
    engine: str
    device: str
    progress: Count

    @cached_property
    def encoder(self) -> TextEncoder:
        """The checkpoint's own tokenizer."""
        return TextEncoder(self.checkpoint.tokenizer)

    @cached_property
    def start(self) -> int:
        """The token that begins a text: BOS, or else EOS. Raises UsageError without either."""
        special = self.checkpoint.tokenizer.special
        for name in ("bos", "eos"):
            if name in special:
                return special[name]
        raise UsageError(f"{self.checkpoint.path}: its tokenizer has neither BOS nor EOS")

    def likelihoods(self, asked: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """``(context ids, continuation ids)`` → log-likelihood in nats, and whether greedy.

        Contexts lose their beginning where both do not fit into the model's context.
        """
        room = self.checkpoint.hyperparameters.context
        windows = [Window("task", "", tuple([*front, *rest][-room:])) for front, rest in asked]
        found = []
        with self._loaded(windows, room=0) as engine:
            for number, (window, (_, rest)) in enumerate(zip(windows, asked, strict=True)):
                first = max(len(window.ids) - len(rest), 1)
                found.append(_likelihood(engine, number, window.ids, first))
        return found

    def generate(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> list[list[int]]:
        """The most probable tokens after each prompt. Raises UsageError for the torch engine."""
        if self.engine == TORCH:
            raise UsageError(
                "a task wants text, which the torch engine does not write; choose another engine, "
                f"e.g. --engine {_native_for(self.checkpoint)}"
            )
        longest = max((len(p) + n for p, n in zip(prompts, counts, strict=True)), default=0)
        with self._loaded([], room=longest) as engine:
            return [engine.generate(p, n) for p, n in zip(prompts, counts, strict=True)]

    @contextmanager
    def _loaded(self, windows: Sequence[Window], *, room: int) -> Iterator[Any]:
        if self.engine == TORCH:
            device, progress = self.device, self.progress
            yield TorchEngine(self.checkpoint, windows, device=device, progress=progress)
            return
        check(self.engine, self.checkpoint)
        load, threads = ENGINES[self.engine].load(), usable_cores()
        engine = load(self.checkpoint, windows, threads=threads, device=self.device, room=room)
        try:
            yield engine
        finally:
            engine.close()


def _likelihood(engine: Any, window: int, ids: Sequence[int], first: int) -> tuple[float, bool]:
    """Of the tokens from ``first`` on."""
    import torch

    total, greedy = 0.0, True
    for begin in range(first, len(ids), _ROWS):
        end = min(begin + _ROWS, len(ids))
        logits: torch.Tensor = engine.logits(window, begin - 1, end - 1).float()
        wanted = torch.tensor(ids[begin:end], device=logits.device)
        picked = torch.log_softmax(logits, -1).gather(1, wanted[:, None])
        total += float(picked.double().sum())
        greedy = greedy and bool((logits.argmax(-1) == wanted).all())
    return total, greedy


def _native_for(checkpoint: Checkpoint) -> str:
    able = [name for name in ENGINES if runs(name, checkpoint.format)]
    return able[0] if able else "transformers"


def harness_model(model: TaskModel) -> Any:
    """The model as an ``lm_eval.api.model.LM``."""
    from lm_eval.api.model import LM

    class HarnessModel(LM):  # type: ignore[misc, unused-ignore]
        """Requests of the harness, answered by a :class:`TaskModel`."""

        tokenizer_name = model.checkpoint.architecture.id

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return model.likelihoods([_pair(model, *request.args) for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            asked = []
            for request in requests:
                ids = model.encoder.encode(request.args[0])
                room = model.checkpoint.hyperparameters.context - 1
                asked += [
                    (begin == 0, ids[begin : begin + room])
                    for begin in range(0, max(len(ids), 1), room)
                ]
            found = [n for n, _ in model.likelihoods([([model.start], ids) for _, ids in asked])]
            totals: list[float] = []
            for (new, _), value in zip(asked, found, strict=True):
                if new:
                    totals.append(0.0)
                totals[-1] += value
            return totals

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            settings = [dict(request.args[1]) for request in requests]
            counts = [int(s.get("max_gen_toks", _NEW_TOKENS)) for s in settings]
            room = model.checkpoint.hyperparameters.context
            prompts = [
                _prefixed(model, model.encoder.encode(request.args[0]))[-(room - count) :]
                for request, count in zip(requests, counts, strict=True)
            ]
            answers = model.generate(prompts, counts)
            return [
                _until(model, ids, given) for ids, given in zip(answers, settings, strict=True)
            ]  # fmt: skip

    return HarnessModel()


def _pair(model: TaskModel, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Both in tokens, cut where the tokens of the whole text and of the context part."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = model.encoder.encode(context + continuation)
    front = model.encoder.encode(context)
    begin = _prefixed(model, [])
    if not front and not begin:
        begin = [model.start]
    return [*begin, *whole[: len(front)]], whole[len(front) :]


def _prefixed(model: TaskModel, ids: list[int]) -> list[int]:
    return [model.start, *ids] if model.checkpoint.tokenizer.add_bos else ids


def _until(model: TaskModel, ids: Sequence[int], settings: Mapping[str, Any]) -> str:
    """The answer up to the first of the task's stops, or the model's own end."""
    stops = settings.get("until", [])
    end = model.checkpoint.tokenizer.special.get("eos")
    text = model.encoder.decode(list(takewhile(lambda token: token != end, ids)))
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
