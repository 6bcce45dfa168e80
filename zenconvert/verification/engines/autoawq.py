"""AutoAWQ's own modules on the CPU, in float32: what its users get from an AWQ folder.

Source: ``awq/models/base.py`` and ``awq/utils/packing_utils.py`` of 0.2.9. On a CPU it wants an
extension of Intel's, which is archived as well, and computes in float16: its unpacking is used with
a plain product instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from zenconvert.errors import InvalidInput, MissingDependency
from zenconvert.model.checkpoint import Checkpoint
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

_BITS = 4


class AutoAwqEngine(PackedModelEngine):
    """An AWQ folder loaded with ``AutoAWQForCausalLM.from_quantized``."""

    package = "autoawq"

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Window],
        *,
        threads: int,
        device: str = "cpu",
        room: int = 0,
    ) -> None:
        """Load. Raises UsageError, MissingDependency, or InvalidInput where AutoAWQ fails."""
        check("autoawq", checkpoint)
        model = _load(checkpoint)
        quantized = {n: m for n, m in model.named_modules() if type(m).__name__ in _WEIGHTS}
        check_modules(checkpoint, list(quantized), "AutoAWQ")
        for module in quantized.values():
            module.forward = partial(_forward, module)
        super().__init__(model, checkpoint, windows, threads=threads)


def _load(checkpoint: Checkpoint) -> Any:
    try:
        with quiet():
            import torch
            from awq import AutoAWQForCausalLM
            from awq.models import base
    except ImportError as error:
        raise MissingDependency(
            f"the autoawq engine needs AutoAWQ: {error}; install zenconvert[autoawq]"
        ) from error
    try:
        with (
            quiet(),
            replaced((base, "get_best_device", lambda: "none")),
            clean_folder(checkpoint.path) as folder,
        ):
            return AutoAWQForCausalLM.from_quantized(
                str(folder),
                max_seq_len=checkpoint.hyperparameters.context,
                trust_remote_code=False,
                fuse_layers=False,
                device_map={"": "cpu"},
                torch_dtype=torch.float32,
            ).model
    except Exception as error:  # an odd folder makes it raise anything
        raise InvalidInput(f"{checkpoint.path}: AutoAWQ cannot load it: {error!r}") from error


def _forward(module: Any, values: torch.Tensor) -> torch.Tensor:
    if not hasattr(module, "decoded"):  # once, not for every token that is generated
        module.decoded = _WEIGHTS[type(module).__name__](module)
    output: torch.Tensor = values @ module.decoded
    return output if module.bias is None else output + module.bias


def _gemm_weight(module: Any) -> torch.Tensor:
    """float32[in, out] by AutoAWQ's own decoder."""
    from awq.utils.packing_utils import dequantize_gemm

    scales = module.scales.float()
    values: torch.Tensor = dequantize_gemm(
        module.qweight, module.qzeros, scales, _BITS, module.group_size
    )
    return values


def _gemv_weight(module: Any) -> torch.Tensor:
    """float32[in, out]; only CUDA kernels read this layout, so the codes go through unpack_awq."""
    from awq.utils.packing_utils import unpack_awq

    codes, zeros = unpack_awq(module.qweight, module.qzeros, _BITS)
    groups = module.in_features // module.group_size
    columns = [part[:, :groups] for part in (zeros & 15, module.scales.float())]
    zeros, scales = (part.repeat_interleave(module.group_size, dim=1) for part in columns)
    values: torch.Tensor = ((codes & 15) - zeros) * scales
    return values.T


_WEIGHTS: dict[str, Callable[[Any], torch.Tensor]] = {
    "WQLinear_GEMM": _gemm_weight,
    "WQLinear_GEMV": _gemv_weight,
}
