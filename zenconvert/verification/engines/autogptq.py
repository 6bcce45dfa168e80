"""AutoGPTQ's own modules on the CPU, in float32: what its users get from a GPTQ folder.

Source: ``auto_gptq/modeling/_base.py`` of 0.7.1. It reads version 1 whatever the label says, and
takes every linear weight of a block for quantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zenconvert.errors import InvalidInput, MissingDependency, UsageError
from zenconvert.formats.gptq.codec import GptqCodec
from zenconvert.formats.quantization import GPTQ_FILE
from zenconvert.model.checkpoint import Checkpoint, StoredPieces
from zenconvert.texts.windows import Window
from zenconvert.verification.engines import check
from zenconvert.verification.engines.clean_folder import clean_folder
from zenconvert.verification.engines.packed_model import (
    PackedModelEngine,
    check_modules,
    quiet,
    replaced,
)

if TYPE_CHECKING:
    import torch

_INITIALIZERS: Final = ("kaiming_uniform_", "uniform_", "normal_")
_MODULE: Final = "QuantLinear"


class AutoGptqEngine(PackedModelEngine):
    """A GPTQ folder loaded with ``AutoGPTQForCausalLM.from_quantized``."""

    package = "auto-gptq"

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        *,
        threads: int,
        device: str = "cpu",
        room: int = 0,
    ) -> None:
        """Load. Raises UsageError, MissingDependency, or InvalidInput where AutoGPTQ fails."""
        check("auto-gptq", checkpoint)
        _check_readable(checkpoint)
        model = _load(checkpoint)
        quantized = [name for name, m in model.named_modules() if type(m).__name__ == "QuantLinear"]
        check_modules(checkpoint, quantized, "AutoGPTQ")
        super().__init__(model, checkpoint, windows, threads=threads)


def _check_readable(checkpoint: Checkpoint) -> None:
    """Raise UsageError for what AutoGPTQ would read as something else without a word."""
    if not (checkpoint.path / GPTQ_FILE).is_file():
        raise UsageError(f"{checkpoint.path}: AutoGPTQ needs {GPTQ_FILE}, which is not there")
    for tensor in checkpoint.tensors.values():
        codec = tensor.stored.codec if isinstance(tensor.stored, StoredPieces) else None
        if isinstance(codec, GptqCodec) and codec.zeros == "as_is":
            raise UsageError(
                f"{checkpoint.path}: zeros are stored as version 2 has them, and AutoGPTQ takes "
                "them for version 1; where every zero is the midpoint, zenconvert repacks it "
                "without loss (--to gptq:w4g128 or the like)"
            )


def _load(checkpoint: Checkpoint) -> Any:
    try:
        with quiet():
            import torch
            import transformers
            from auto_gptq import AutoGPTQForCausalLM
    except ImportError as error:
        raise MissingDependency(
            f"the auto-gptq engine needs AutoGPTQ: {error}; install zenconvert[auto-gptq]"
        ) from error
    # AutoGPTQ disables initialisation for the whole process
    changes = [(torch.nn.init, name, getattr(torch.nn.init, name)) for name in _INITIALIZERS]
    modeling = transformers.modeling_utils
    changes.append((modeling, "_init_weights", getattr(modeling, "_init_weights", True)))
    try:
        with quiet(), replaced(*changes), clean_folder(checkpoint.path) as folder:
            model = AutoGPTQForCausalLM.from_quantized(
                str(folder),
                device="cpu",
                use_safetensors=True,
                use_triton=False,
                disable_exllama=True,
                disable_exllamav2=True,
                inject_fused_attention=False,
                inject_fused_mlp=False,
                use_marlin=False,
                trust_remote_code=False,
                torch_dtype=torch.float32,
            ).model
    except Exception as error:  # an odd folder makes it raise anything
        raise InvalidInput(f"{checkpoint.path}: AutoGPTQ cannot load it: {error!r}") from error
    for module in model.modules():
        if type(module).__name__ == _MODULE:
            module.forward = partial(_forward, module)
    return model


def _forward(module: Any, values: torch.Tensor) -> torch.Tensor:
    if not hasattr(module, "decoded"):  # once, not for every token that is generated
        module.decoded = _weight(module)
    output: torch.Tensor = values @ module.decoded
    return output if module.bias is None else output + module.bias


def _weight(module: Any) -> torch.Tensor:
    """float32[in, out]: what a module multiplies with, caught on the way into its product."""
    import torch

    caught: list[torch.Tensor] = []

    def product(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        caught.append(weight)
        return values @ weight

    with replaced((torch, "matmul", product)):
        type(module).forward(module, torch.zeros(1, module.infeatures))
    return caught[-1]
