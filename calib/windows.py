"""Samples → windows of token ids, cut at document borders.

A document longer than the context becomes several windows and nothing is dropped; no window spans
two documents. Chat samples are rendered with the model's own template, in a sandbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zenconvert.calib.samples import Sample
from zenconvert.errors import InvalidInput, UsageError

_SHORTEST = 2  # a window must predict at least one token
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
)


class Encoder(Protocol):
    """Text → token ids; special tokens in the text are recognised."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Window:
    """A run of tokens of one document."""

    sample: str
    language: str
    ids: tuple[int, ...]


def render(sample: Sample, template: str | None, special_tokens: dict[str, str]) -> str:
    """The text of a sample; chats through ``template``, ChatML where a model has none.

    Raises InvalidInput when the template fails.
    """
    if sample.messages is None:
        return sample.text or ""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    messages: list[dict[str, Any]] = [
        {"role": m.role, "content": m.content} for m in sample.messages
    ]
    try:
        compiled = environment.from_string(template or _CHATML)
        return compiled.render(messages=messages, add_generation_prompt=False, **special_tokens)
    except (TemplateError, TypeError, ValueError) as error:
        raise InvalidInput(f"the chat template fails on sample {sample.id}: {error}") from error


def windows(
    samples: Sequence[Sample],
    encoder: Encoder,
    *,
    context: int,
    template: str | None,
    special_tokens: dict[str, str],
    prefix: int | None,
) -> list[Window]:
    """Encode every sample and cut it into windows of at most ``context`` tokens.

    ``prefix`` is put before every window (BOS, where a model expects it). Raises UsageError when
    nothing is left to measure.
    """
    room = context - (prefix is not None)
    if room < _SHORTEST:
        raise UsageError(f"a context of {context} tokens is too short; use at least 4")
    head = () if prefix is None else (prefix,)
    result = []
    for sample in samples:
        ids = encoder.encode(render(sample, template, special_tokens))
        if head and ids[:1] == list(head):
            ids = ids[1:]
        for begin in range(0, len(ids), room):
            window = (*head, *ids[begin : begin + room])
            if len(window) >= _SHORTEST:
                result.append(Window(sample.id, sample.language, window))
    if not result:
        raise UsageError("the texts hold no two tokens in a row; there is nothing to measure")
    return result
