"""Which texts calibrate a model, and how they become windows of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zenconvert.errors import UsageError

if TYPE_CHECKING:
    from zenconvert.calib.walk import Sequential, WalkSettings
    from zenconvert.model.checkpoint import Checkpoint
    from zenconvert.texts.selection import Selection
    from zenconvert.texts.windows import Cutter

CONTEXT: Final = 2048
"""Longest window by default, where the model takes that much."""
TOKENS_PER_LANGUAGE: Final = 25_600
FISHER_TOKENS: Final = 2_560
"""Most tokens of each language that a walk back takes."""


@dataclass(frozen=True)
class Calibrating:
    """Texts that go through the reference model; fields are arguments of ``calibrate``."""

    samples: str | Path | None = None
    """File, folder or ``hub:NAME[:SPLIT]``; the bundled texts by default."""
    languages: Sequence[str] | None = None
    language_weights: Mapping[str, float] | None = None
    tokens_per_language: int | None = TOKENS_PER_LANGUAGE
    context: int | None = None
    seed: int = 0
    dtype: str | None = None
    all_experts: bool = False
    fisher: bool = False
    """Walk back, too: by their gradients the embedding is quantized."""
    sequential: bool = False
    """Every module sees what the quantized modules before it put out."""
    max_vram: int | None = None
    max_ram: int | None = None
    ignored_keys: Sequence[str] = ()
    """Keys of the files that no config can say and that change nothing, as somebody says."""

    @property
    def arguments(self) -> dict[str, Any]:
        """As arguments of :func:`zenconvert.calibrate`."""
        fields = asdict(self)
        del fields["sequential"]
        return fields

    @property
    def name(self) -> str:
        """What the texts are called in files that others read: of a path, the last part."""
        if self.samples is None:
            return "bundled"
        name = str(self.samples)
        return name if name.startswith("hub:") else Path(name).name

    def selection(self, checkpoint: Checkpoint) -> Selection:
        """The windows that are read. Raises as :func:`zenconvert.calibrate`."""
        from zenconvert.texts.sample_sources import load_samples
        from zenconvert.texts.selection import select

        return select(
            load_samples(self.samples, self.languages),
            text_cutter(checkpoint, self.context).cut,
            vocabulary=checkpoint.hyperparameters.vocab,
            weights=self.language_weights,
            tokens_per_language=self.tokens_per_language,
            seed=self.seed,
        )

    def settings(
        self, device: str, *, moments: bool, sequential: Sequential = "off"
    ) -> WalkSettings:
        """How the walk computes."""
        from zenconvert.calib.walk import WalkSettings

        return WalkSettings(
            device, self.dtype, moments, self.all_experts, sequential, self.max_vram, self.max_ram
        )  # fmt: skip


def text_cutter(checkpoint: Checkpoint, context: int | None = None) -> Cutter:
    """How texts become windows under a checkpoint's tokenizer and chat template.

    Raises UsageError for a context that the model does not take.
    """
    from zenconvert.formats.hf.tokenizer import TextEncoder
    from zenconvert.texts.windows import Cutter

    length, tokenizer = window_length(checkpoint, context), checkpoint.tokenizer
    special = {f"{name}_token": tokenizer.tokens[i] for name, i in tokenizer.special.items()}
    prefix = tokenizer.special.get("bos") if tokenizer.add_bos else None
    return Cutter(
        TextEncoder(tokenizer), length, tokenizer.chat_template, special, prefix,
        rows=embedding_rows(checkpoint), tokens=tokenizer.tokens,
    )  # fmt: skip


def embedding_rows(checkpoint: Checkpoint) -> int:
    """How many token ids a model has embeddings for."""
    return checkpoint.tensors["embed.weight"].rows


def window_length(checkpoint: Checkpoint, context: int | None) -> int:
    """Tokens of the longest window. Raises UsageError for more than the model takes."""
    most = checkpoint.hyperparameters.context
    if context is not None and context > most:
        raise UsageError(f"the model's context is {most} tokens; {context} is more")
    return context or min(CONTEXT, most)
