"""vLLM: the server that most GPTQ and AWQ files end in, with its own kernels.

vLLM hands out log-probabilities one Python object at a time, which would take days over a whole
vocabulary. Instead a hook keeps the hidden states of a window's prefill, and the model's own
``compute_logits`` turns blocks of them into logits (source: vllm/entrypoints/llm.py ``apply_model``
and vllm/v1/worker/gpu_model_runner.py). Needs vLLM 0.11 or newer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zenconvert.errors import InvalidInput
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.clean_folder import clean_folder

if TYPE_CHECKING:
    import torch

_KEPT: Final = "_zenconvert_states"
_SHARE: Final = 0.7  # of a GPU's memory that weights may take


class VllmEngine:
    """One window at a time, not batched with others: the same numbers on every run."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        *,
        threads: int,
        device: str = "cuda",
        room: int = 0,
    ) -> None:
        # the model stays in this process, or is sent functions of ours: no stranger's pickle
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        import vllm

        self.api: Any = vllm
        self.windows, self.device = windows, device
        # it wants room for a token behind every prompt, and no more than the model's context: where
        # a window fills that, its last token is not read, as nobody asks what follows it
        wanted = max([room, *(len(window.ids) for window in windows)]) + 1
        self.longest = min(wanted, checkpoint.hyperparameters.context)
        try:
            with clean_folder(checkpoint.path) as folder:
                self.model: Any = vllm.LLM(
                    model=str(folder),
                    tensor_parallel_size=_parallel(checkpoint) if device != "cpu" else 1,
                    max_model_len=self.longest,
                    max_num_batched_tokens=max(self.longest, 2048),
                    max_num_seqs=1,
                    enable_prefix_caching=False,
                    enforce_eager=True,
                    trust_remote_code=False,
                    seed=0,
                )
            self.model.apply_model(_watch)
        except Exception as error:  # an odd folder makes vLLM raise anything
            raise InvalidInput(f"{checkpoint.path}: vLLM cannot load it: {error!r}") from error
        self.current = -1

    def logits(self, window: int, begin: int, end: int) -> torch.Tensor:
        """Logits float32[end - begin, vocab] of positions of one window, on the CPU; of all but
        the last where the window fills the model's context."""
        if window != self.current:
            self.model.apply_model(_forget)
            self._run(self.windows[window].ids[: self.longest - 1], 1)
            self.current = window
        parts = self.model.apply_model(partial(_logits, begin=begin, end=end))
        found: torch.Tensor = next(part for part in parts if part is not None)
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids by the tokenizer that vLLM loaded, special tokens recognised."""
        return list(self.model.get_tokenizer().encode(text, add_special_tokens=False))

    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` tokens that follow, each the most probable one."""
        self.current = -1
        return list(self._run(ids, count))[:count]

    def _run(self, ids: Sequence[int], count: int) -> Sequence[int]:
        greedy = self.api.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        prompt = {"prompt_token_ids": list(ids)}
        (output,) = self.model.generate([prompt], greedy, use_tqdm=False)
        found: Sequence[int] = output.outputs[0].token_ids
        return found

    def details(self) -> dict[str, str]:
        """What ran, for the report."""
        config = self.model.llm_engine.vllm_config
        return {
            "version": f"vllm {self.api.__version__}",
            "device": self.device,
            "compute_dtype": str(config.model_config.dtype).removeprefix("torch."),
            "key_value_cache": str(config.cache_config.cache_dtype),
            "kernels": str(config.model_config.quantization or "dense"),
        }

    def close(self) -> None:
        """Free the model."""
        del self.model


def _parallel(checkpoint: Checkpoint) -> int:
    """As few GPUs as hold the weights, a power of two."""
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory * _SHARE
    needed = sum(file.stat().st_size for file in checkpoint.files)
    count = 1
    while count * memory < needed and 2 * count <= torch.cuda.device_count():
        count *= 2
    return count


# What follows runs in vLLM's workers.


def _watch(model: Any) -> None:
    """Keep the states of the first step after :func:`_forget`: the prefill of the window."""

    def keep(module: Any, given: Any, output: Any) -> None:
        if getattr(module, _KEPT, None) is None:
            setattr(module, _KEPT, output)

    model.register_forward_hook(keep)


def _forget(model: Any) -> None:
    setattr(model, _KEPT, None)


def _logits(model: Any, *, begin: int, end: int) -> torch.Tensor | None:
    import torch

    with torch.inference_mode():
        found = model.compute_logits(getattr(model, _KEPT)[begin:end])
    return None if found is None else found.float().cpu()
