"""The reference graph on any artifact: bytes reopened, decoded and run through transformers.

The model runs layer by layer: a one-layer transformers model takes the weights of each block in
turn, so that any architecture and version of transformers works, and only one block is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.architecture import TensorName
from zenconvert.calib.windows import Window
from zenconvert.checkpoint import Checkpoint, Tensor
from zenconvert.difference import logical_rows
from zenconvert.planning import SLAB_ELEMENTS

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 4096
"""Tokens that go through a block at a time."""

Progress = Callable[[int, int], None]


class TorchEngine:
    """Final hidden states of every window, and logits of any positions on demand, float32."""

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        import torch

        self.device = device
        with torch.inference_mode():
            self.hidden = _final_hidden_states(checkpoint, windows, device, progress)
            head = checkpoint.tensors.get("head.weight") or checkpoint.tensors["embed.weight"]
            self.head = load_tensor(head).to(device)

    def logits(self, window: int, begin: int, end: int) -> NDArray[np.float32]:
        """Logits float32[end - begin, vocab] of positions of one window."""
        import torch

        with torch.inference_mode():
            hidden = self.hidden[window][begin:end].to(self.device)
            values: NDArray[np.float32] = (hidden @ self.head.T).cpu().numpy()
        return values

    def close(self) -> None:
        """Free the states and the head."""
        del self.hidden, self.head


def load_tensor(tensor: Tensor) -> torch.Tensor:
    """A whole tensor decoded to float32 in its logical shape."""
    import torch

    band = tensor.order.band if tensor.order is not None else 1
    rows = max(band, SLAB_ELEMENTS // tensor.columns // band * band)
    out = np.empty((tensor.rows, tensor.columns), dtype=np.float32)
    for begin in range(0, tensor.rows, rows):
        end = min(begin + rows, tensor.rows)
        out[begin:end] = logical_rows(tensor, begin, end)
    return torch.from_numpy(out.reshape(tensor.shape))


def _embed(table: Tensor, windows: Sequence[Window]) -> list[torch.Tensor]:
    """Embedding rows of every window; the table is read in slabs and never held whole."""
    import torch

    ids = [np.asarray(window.ids) for window in windows]
    out = [np.empty((len(row), table.columns), dtype=np.float32) for row in ids]
    rows = max(1, SLAB_ELEMENTS // table.columns)
    for begin in range(0, table.rows, rows):
        end = min(begin + rows, table.rows)
        values = logical_rows(table, begin, end)
        for row, target in zip(ids, out, strict=True):
            here = (row >= begin) & (row < end)
            target[here] = values[row[here] - begin]
    return [torch.from_numpy(row) for row in out]


def _final_hidden_states(
    checkpoint: Checkpoint, windows: Sequence[Window], device: str, progress: Progress | None
) -> list[torch.Tensor]:
    hidden = _embed(checkpoint.tensors["embed.weight"], windows)
    layers = checkpoint.hyperparameters.layers
    batches = _batches(windows)
    for layer in range(layers):
        block = _block(checkpoint, layer, device, last=layer == layers - 1)
        for batch in batches:
            _run(block, hidden, batch, device)
        if progress is not None:
            progress(layer + 1, layers)
    return hidden


def _batches(windows: Sequence[Window]) -> list[list[int]]:
    """Windows of similar length together, about :data:`BATCH_TOKENS` padded tokens a batch."""
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(windows)), key=lambda i: -len(windows[i].ids)):
        if not batches or longest * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
            longest = len(windows[index].ids)
        batches[-1].append(index)
    return batches


def _run(block: Any, hidden: list[torch.Tensor], batch: list[int], device: str) -> None:
    """Put one batch through a block, in place. Padding stands right, where causality hides it."""
    import torch

    padded = torch.nn.utils.rnn.pad_sequence([hidden[i] for i in batch], batch_first=True)
    output = block(inputs_embeds=padded.to(device), use_cache=False).last_hidden_state.cpu()
    for row, index in enumerate(batch):
        hidden[index] = output[row, : len(hidden[index])].clone()


def _block(checkpoint: Checkpoint, layer: int, device: str, *, last: bool) -> Any:
    """A transformers model of one decoder layer with the weights of ``layer``."""
    import torch
    import transformers

    names = checkpoint.architecture.tensor_names(checkpoint.hyperparameters)
    state = {
        hf: load_tensor(checkpoint.tensors[n.name])
        for n in names
        if n.name in checkpoint.tensors and (hf := _block_name(n, layer)) is not None
    }
    config = _block_config(checkpoint, layer)
    tiny = torch.zeros(config.vocab_size, config.hidden_size)
    state |= {"model.embed_tokens.weight": tiny, "lm_head.weight": tiny}
    with _Quiet(transformers):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            None,
            config=config,
            state_dict=state,
            torch_dtype=torch.float32,
            attn_implementation="sdpa",
        )
    block = model.model.to(device).eval()
    if not last:
        block.norm = torch.nn.Identity()
    return block


def _block_name(name: TensorName, layer: int) -> str | None:
    """The HF name of a tensor inside the one-layer model, None for other layers' tensors."""
    if name.module.role in {"embed", "head"}:
        return None
    if "{layer}" not in name.module.name:
        return name.hf
    template = name.module.hf
    here = template.format(layer=layer, expert=name.expert)
    if not name.hf.startswith(f"{here}."):
        return None
    return template.format(layer=0, expert=name.expert) + name.hf.removeprefix(here)


def _block_config(checkpoint: Checkpoint, layer: int) -> Any:
    import transformers

    fields = {k: v for k, v in checkpoint.config.items() if k not in {"model_type", "dtype"}}
    fields |= {"vocab_size": 8, "num_hidden_layers": 1, "tie_word_embeddings": False}
    fields |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if types := fields.get("layer_types"):
        fields["layer_types"] = [types[layer]]
    elif fields.get("use_sliding_window") and layer < fields.get("max_window_layers", 0):
        fields["use_sliding_window"] = False
    return transformers.AutoConfig.for_model(checkpoint.config["model_type"], **fields)


class _Quiet:
    """Silences transformers' loading messages, which speak of the one-layer model."""

    def __init__(self, transformers: Any) -> None:
        self.logging = transformers.logging

    def __enter__(self) -> None:
        self.verbosity = self.logging.get_verbosity()
        self.logging.set_verbosity_error()
        self.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self.logging.set_verbosity(self.verbosity)
        self.logging.enable_progress_bar()
