"""Samples → windows of token ids, cut at document borders.

A document longer than the context becomes several windows; no window spans two documents. Nothing
is dropped but a single last token that has no context left to be predicted from. Chat samples are
rendered with the model's own template, in a sandboxed process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zenconvert.errors import InvalidInput, UsageError
from zenconvert.texts.samples import Sample
from zenconvert.texts.templates import TemplateFailed, render_template

SHORTEST = 2
"""Tokens of the shortest window: it must predict at least one."""
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


def render(
    sample: Sample, template: str | None, special_tokens: dict[str, str], *, reply: bool = False
) -> str:
    """The text of a sample; chats through ``template``, ChatML where a model has none.

    With ``reply`` a chat ends with what begins the model's answer. Raises InvalidInput when the
    template fails.
    """
    if sample.messages is None:
        return sample.text or ""
    messages: list[dict[str, Any]] = [
        {"role": m.role, "content": m.content} for m in sample.messages
    ]
    values = {
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": reply,
        **special_tokens,
    }
    try:
        return render_template(template or _CHATML, values)
    except TemplateFailed as error:
        raise InvalidInput(f"the chat template fails on sample {sample.id}: {error}") from error


@dataclass(frozen=True)
class Cutter:
    """How documents become windows of at most ``context`` tokens.

    ``prefix`` is put before every window (BOS, where a model expects it). Raises UsageError for a
    context that leaves no room.
    """

    encoder: Encoder
    context: int
    template: str | None
    special_tokens: dict[str, str]
    prefix: int | None
    rows: int | None = None
    """Of the embedding; None where nothing is looked up."""
    tokens: Sequence[str] = ()
    """By id, to be named in errors."""

    def __post_init__(self) -> None:
        if self.context - (self.prefix is not None) < SHORTEST:
            raise UsageError(f"a context of {self.context} tokens is too short; use at least 4")

    def cut(self, sample: Sample) -> list[Window]:
        """The windows of one document; none when it has no token to predict.

        Raises InvalidInput for a token that the embedding has no row for.
        """
        head = () if self.prefix is None else (self.prefix,)
        room = self.context - len(head)
        ids = self.encoder.encode(render(sample, self.template, self.special_tokens))
        if head and ids[:1] == list(head):
            ids = ids[1:]
        if self.rows is not None:
            check_ids((*head, *ids), self.rows, self.tokens, f"sample {sample.id}")
        pieces = ((*head, *ids[begin : begin + room]) for begin in range(0, len(ids), room))
        return [Window(sample.id, sample.language, p) for p in pieces if len(p) >= SHORTEST]


def check_ids(ids: Sequence[int], rows: int, tokens: Sequence[str], where: str) -> None:
    """Raise InvalidInput for the first token id that an embedding of ``rows`` has no row for."""
    wrong = next((one for one in ids if not 0 <= one < rows), None)
    if wrong is not None:
        name = f" ({tokens[wrong]!r})" if 0 <= wrong < len(tokens) else ""
        raise InvalidInput(
            f"{where}: the tokenizer gives the token id {wrong}{name}, and the embedding has "
            f"{rows} rows; the tokenizer is that of another model, or the model was not resized "
            "when tokens were added"
        )


def windows(samples: Sequence[Sample], cutter: Cutter) -> list[Window]:
    """The windows of all samples. Raises UsageError when nothing is left to measure."""
    result = [window for sample in samples for window in cutter.cut(sample)]
    if not result:
        raise UsageError("the texts hold no two tokens in a row; there is nothing to measure")
    return result
