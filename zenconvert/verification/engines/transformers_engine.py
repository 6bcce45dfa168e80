"""transformers itself: the folder as users load it, GPTQ and AWQ through their own kernels,
compressed-tensors decoded.

Weights stay in the type that the config names. Only the hidden states of one window are held; the
output head is applied to a block of positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from zenconvert.errors import InvalidInput, MissingDependency
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engines import check
from zenconvert.verification.engines.clean_folder import clean_folder

if TYPE_CHECKING:
    import torch


class TransformersEngine:
    """A whole model by ``AutoModelForCausalLM.from_pretrained``."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        *,
        threads: int,
        device: str = "cpu",
        room: int = 0,
    ) -> None:
        check("transformers", checkpoint)
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.windows, self.device = windows, device
        try:
            with clean_folder(checkpoint.path) as folder:
                where = {"pretrained_model_name_or_path": folder, "local_files_only": True}
                self.model: Any
                self.model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                    **where, torch_dtype="auto", trust_remote_code=False, output_loading_info=True
                )
                self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                    **where, trust_remote_code=False
                )
            self.model = self.model.to(device).eval()
            _run_once(self.model)
        except ImportError as error:
            raise MissingDependency(
                f"{checkpoint.path}: transformers needs a package to run it: {error}"
            ) from error
        except Exception as error:  # an odd folder makes transformers raise anything
            raise InvalidInput(f"{checkpoint.path}: transformers cannot load it: {error!r}") from (
                error
            )
        _refuse_noise(checkpoint, loading["missing_keys"])
        self.current = -1
        self.hidden: torch.Tensor = torch.empty(0)

    def logits(self, window: int, begin: int, end: int) -> torch.Tensor:
        """Logits float32[end - begin, vocab] of positions of one window, on the engine's device."""
        import torch

        from zenconvert.reference.head import logits_of

        with torch.inference_mode():
            if window != self.current:
                ids = torch.tensor([self.windows[window].ids], device=self.device)
                output = self.model.base_model(input_ids=ids, use_cache=False)
                self.hidden, self.current = output.last_hidden_state[0], window
            return logits_of(self.model, self.hidden[begin:end]).float()

    def encode(self, text: str) -> list[int]:
        """Token ids by the tokenizer of the folder, special tokens recognised."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def generate(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` tokens that follow, each the most probable one."""
        import torch

        given = torch.tensor([list(ids)], device=self.device)
        with torch.inference_mode():
            output = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                generation_config=self._greedy(count),
            )
        return [int(token) for token in output[0, len(ids) :]]

    def _greedy(self, count: int) -> Any:
        """Nothing of the folder's own settings: no sampling, no penalty, no early end."""
        import transformers

        return transformers.GenerationConfig(
            do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
        )

    def details(self) -> dict[str, str]:
        """What ran, for the report."""
        import transformers

        quantization = getattr(self.model.config, "quantization_config", None)
        found = {
            "version": f"transformers {transformers.__version__}",
            "device": self.device,
            "compute_dtype": str(self.model.dtype).removeprefix("torch."),
        }
        if quantization is not None:
            found["kernels"] = _kernels(self.model)
        return found

    def close(self) -> None:
        """Free the model."""
        del self.model, self.hidden


def _run_once(model: Any) -> None:
    """Let quantized weights be decoded that wait for the whole model's first run."""
    import torch

    if getattr(model.config, "quantization_config", None) is not None:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[0]], device=model.device), use_cache=False)


def _refuse_noise(checkpoint: Checkpoint, missing: Iterable[str]) -> None:
    """Raise InvalidInput where weights were made up, which transformers only warns of."""
    if names := sorted(missing):
        raise InvalidInput(
            f"{checkpoint.path}: transformers finds no {names[0]} in it (nor "
            f"{len(names) - 1} others) and fills what it misses with noise"
        )


def _kernels(model: Any) -> str:
    """Classes of the quantized linear layers."""
    names = {type(m).__module__.partition(".")[0] + "." + type(m).__name__ for m in model.modules()}
    return ", ".join(sorted(n for n in names if not n.startswith(("torch.", "transformers."))))
