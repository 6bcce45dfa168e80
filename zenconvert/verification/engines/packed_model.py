"""What the engines of GPTQ and AWQ tools share: a whole model of theirs, held in memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from zenconvert.errors import InvalidInput
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.reference.batches import make_batches, most_tokens
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.clean_folder import clean_folder

if TYPE_CHECKING:
    import torch


class PackedModelEngine:
    """Final hidden states of every window, and logits of any positions on demand, float32.

    Such tools decode their weights in every call; engines keep them, 4 bytes a weight.
    """

    package = ""
    """The tool, as pip knows it."""

    def __init__(
        self, model: Any, checkpoint: Checkpoint, windows: Sequence[Window], *, threads: int
    ) -> None:
        """``model`` has the interface of transformers' causal models."""
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.model = model
        with clean_folder(checkpoint.path) as folder:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        self.hidden = [torch.empty(0)] * len(windows)
        languages = list(dict.fromkeys(window.language for window in windows))
        border = checkpoint.hyperparameters.length_border
        for batch in make_batches(windows, languages, most_tokens("cpu"), border):
            # padding stands right, unseen by causality
            rows = [torch.tensor(windows[i].ids) for i in batch.windows]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            with torch.inference_mode():
                states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            for row, index in enumerate(batch.windows):
                self.hidden[index] = states[row, : len(rows[row])].float()

    def logits(self, window: int, begin: int, end: int) -> torch.Tensor:
        """Logits float32[end - begin, vocab] of positions of one window."""
        from zenconvert.reference.head import logits_of

        return logits_of(self.model, self.hidden[window][begin:end]).float()

    def encode(self, text: str) -> list[int]:
        """Token ids by the tokenizer of the folder, special tokens recognised."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` tokens that follow, each the most probable one."""
        import torch

        from zenconvert.reference.head import logits_of

        tokens = list(ids)
        with torch.inference_mode():
            for _ in range(count):
                states = self.model.base_model(input_ids=torch.tensor([tokens]), use_cache=False)
                tokens.append(int(logits_of(self.model, states.last_hidden_state[0, -1:]).argmax()))
        return tokens[len(ids) :]

    def details(self) -> dict[str, str]:
        """What ran, for the report."""
        name = self.package
        version = f"{name} {metadata.version(name)}"
        return {"version": version, "device": "cpu", "compute_dtype": "float32"}

    def close(self) -> None:
        """Free the model and the states."""
        del self.hidden, self.model


def check_modules(checkpoint: Checkpoint, quantized: Sequence[str], tool: str) -> None:
    """Raise InvalidInput unless a tool took those modules for quantized that are.

    ``quantized`` are HF names. Whatever a tool takes for something else it fills with nonsense.
    """
    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    stored = {
        n.hf_file.removesuffix(".weight")
        for n in names
        if (t := checkpoint.tensors.get(n.name)) is not None and t.encoding.grouped is not None
    }
    if wrong := sorted(stored ^ set(quantized)):
        raise InvalidInput(
            f"{checkpoint.path}: {tool} cannot tell which modules of this folder are quantized; it "
            f"is wrong about {len(wrong)}, the first is {wrong[0]}"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silences log lines and warnings of archived packages."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Sets attributes ``(object, name, value)`` and puts the old values back."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
