"""The reference model, run layer by layer through transformers' own modules.

A one-layer transformers model takes the weights of each decoder block in turn, so that any
architecture and version of transformers works and only one block is in memory. Hidden states of all
windows are kept between the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zenconvert.architecture import TensorName
from zenconvert.calib.windows import Window
from zenconvert.checkpoint import Checkpoint, Tensor
from zenconvert.errors import InvalidInput

if TYPE_CHECKING:
    import torch

ReadRows = Callable[[Tensor, int, int], NDArray[np.float32]]
"""Decoded rows ``[begin, end)`` of a tensor in logical order, float32[n, columns]."""

BATCH_TOKENS = 4096
"""Padded tokens that go through a block at a time."""
_SLAB_ELEMENTS = 1 << 22
_TINY_VOCABULARY = 8  # of the one-layer model, whose embedding is never used


class Reference:
    """Streams the blocks of one checkpoint; ``read_rows`` turns its bytes into numbers."""

    def __init__(self, checkpoint: Checkpoint, read_rows: ReadRows, *, device: str) -> None:
        self.checkpoint, self.read_rows, self.device = checkpoint, read_rows, device
        self.layers = checkpoint.hyperparameters.layers
        self.names = list(checkpoint.architecture.tensor_names(checkpoint.hyperparameters))

    def load(self, name: str) -> torch.Tensor:
        """A whole tensor, float32 in its logical shape, on the CPU."""
        import torch

        tensor = self.checkpoint.tensors[name]
        out = np.empty((tensor.rows, tensor.columns), dtype=np.float32)
        for begin, end in slabs(tensor):
            out[begin:end] = self.read_rows(tensor, begin, end)
        return torch.from_numpy(out.reshape(tensor.shape))

    def embed(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        """Embeddings float32[tokens, hidden] of every window; the table is never held whole."""
        import torch

        table = self.checkpoint.tensors["embed.weight"]
        ids = [np.asarray(window.ids) for window in windows]
        out = [np.empty((len(row), table.columns), dtype=np.float32) for row in ids]
        for begin, end in slabs(table):
            values = self.read_rows(table, begin, end)
            for row, target in zip(ids, out, strict=True):
                here = (row >= begin) & (row < end)
                target[here] = values[row[here] - begin]
        return [torch.from_numpy(row) for row in out]

    def head(self) -> torch.Tensor:
        """The output matrix float32[vocab, hidden]; the embedding where it is tied."""
        tied = "head.weight" not in self.checkpoint.tensors
        return self.load("embed.weight" if tied else "head.weight")

    def block(self, layer: int) -> Any:
        """Decoder block ``layer`` as a transformers base model of one layer.

        Its output is the hidden state after the block; after the last block, the final norm too.

        Raises InvalidInput when transformers refuses the config or the tensors do not fit it.
        """
        import torch
        import transformers

        state = {
            hf: self.load(name.name)
            for name in self.names
            if name.name in self.checkpoint.tensors
            and (hf := _name_in_block(name, layer)) is not None
        }
        tiny = torch.zeros(_TINY_VOCABULARY, self.checkpoint.hyperparameters.hidden)
        state |= {"model.embed_tokens.weight": tiny, "lm_head.weight": tiny}
        where = f"{self.checkpoint.path}: layer {layer}"
        try:
            config = self._block_config(layer)
            # the class itself: the Auto class wants a path, to look for remote code there
            model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            with _quiet(transformers.logging):
                model, loading = model_class.from_pretrained(
                    None,
                    config=config,
                    state_dict=state,
                    torch_dtype=torch.float32,
                    attn_implementation="sdpa",
                    output_loading_info=True,
                )
        except Exception as error:  # an odd config makes transformers raise anything
            raise InvalidInput(f"{where}: transformers refuses the config: {error!r}") from error
        # transformers would fill a gap with random numbers and leave out what it does not know
        for problem in ("missing_keys", "unexpected_keys"):
            if found := sorted(loading[problem]):
                raise InvalidInput(f"{where}: {problem.replace('_', ' ')} for the config: {found}")
        block = model.model.to(self.device).eval()
        if layer < self.layers - 1:
            block.norm = torch.nn.Identity()
        return block

    def _block_config(self, layer: int) -> Any:
        import transformers

        config = self.checkpoint.config
        fields = {k: v for k, v in config.items() if k not in {"model_type", "dtype"}}
        fields |= {
            "vocab_size": _TINY_VOCABULARY,
            "num_hidden_layers": 1,
            "tie_word_embeddings": False,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        if types := fields.get("layer_types"):
            fields["layer_types"] = [types[layer]]
        elif fields.get("use_sliding_window"):
            # Qwen2 slides its window in layers from max_window_layers on
            fields["use_sliding_window"] = layer >= fields.get("max_window_layers", 0)
            fields["max_window_layers"] = 0
        return transformers.AutoConfig.for_model(config["model_type"], **fields)

    def run(self, block: Any, hidden: list[torch.Tensor], batch: Sequence[int]) -> None:
        """Put some windows through a block, in place. Padding stands right, unseen by causality."""
        import torch

        with torch.inference_mode():
            rows = [hidden[i] for i in batch]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
            output = block(inputs_embeds=padded, use_cache=False, return_dict=True)
            states = output.last_hidden_state.cpu()
            for row, index in enumerate(batch):
                hidden[index] = states[row, : len(hidden[index])].clone()


def slabs(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Row ranges that cover a tensor, cut where its row order allows."""
    band = tensor.order.band if tensor.order is not None else 1
    rows = max(band, _SLAB_ELEMENTS // tensor.columns // band * band)
    for begin in range(0, tensor.rows, rows):
        yield begin, min(begin + rows, tensor.rows)


def batches(windows: Sequence[Window]) -> list[list[int]]:
    """Windows of similar length together, about :data:`BATCH_TOKENS` padded tokens a batch."""
    result: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(windows)), key=lambda i: -len(windows[i].ids)):
        if not result or longest * (len(result[-1]) + 1) > BATCH_TOKENS:
            result.append([])
            longest = len(windows[index].ids)
        result[-1].append(index)
    return result


def _name_in_block(name: TensorName, layer: int) -> str | None:
    """The HF name of a tensor inside the one-layer model, None for other layers' tensors."""
    if name.module.role in {"embed", "head"}:
        return None
    template = name.module.hf
    if "{layer}" not in template:
        return name.hf
    here = template.format(layer=layer, expert=name.expert)
    if not name.hf.startswith(f"{here}."):
        return None
    return template.format(layer=0, expert=name.expert) + name.hf.removeprefix(here)


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Silences transformers' loading messages, which speak of the one-layer model."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
