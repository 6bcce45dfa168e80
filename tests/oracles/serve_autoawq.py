"""AutoAWQ, in its own environment: loads folders, and writes them with its own packing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP
from awq.modules.linear import WQLinear_GEMM, WQLinear_GEMV
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.oracles.here import engine_refusal, verified
from tests.oracles.serve import copy_tokenizer, rounded, serve
from zenconvert import open_checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.autoawq import AutoAwqEngine

_CLASSES = {"gemm": WQLinear_GEMM, "gemv": WQLinear_GEMV}


def logits(folder: str, ids: list[int], out: str) -> None:
    """float32[tokens, vocab] of a folder in AutoAWQ's modules."""
    engine = AutoAwqEngine(open_checkpoint(folder), [Window("a", "und", tuple(ids))], threads=2)
    np.save(out, engine.logits(0, 0, len(ids)).numpy())


def types() -> list[str]:
    """Model types that it has."""
    return list(AWQ_CAUSAL_LM_MODEL_MAP)


def write(source: str, out: str, group: int, version: str) -> None:
    """Round a model to nearest on a grid with zeros, and save it as AutoAWQ does."""
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float16)
    own = AWQ_CAUSAL_LM_MODEL_MAP[model.config.model_type]
    left = getattr(own, "modules_to_not_convert", None)
    layers = model.model.layers
    for name, module in list(layers.named_modules()):
        if isinstance(module, torch.nn.Linear) and not any(part in name for part in left or ()):
            parent, _, own = name.rpartition(".")
            setattr(layers.get_submodule(parent), own, _packed(module, group, version))
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    settings |= {"version": version, "modules_to_not_convert": left}
    model.config.quantization_config = settings
    model.save_pretrained(out)
    copy_tokenizer(source, out)


def _packed(module: torch.nn.Linear, group: int, version: str) -> torch.nn.Module:
    weight = module.weight.data.float()
    parts = weight.reshape(len(weight), -1, group)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scale = ((high - low) / 15).half().float()
    zero = torch.round(-low / scale).clamp(0, 15)
    index = torch.arange(weight.shape[1]) // group
    module.weight.data = rounded(weight, scale, zero, index, 4)
    if version == "gemm":
        scale, zero = scale.T.contiguous(), zero.T.contiguous()
    kind = _CLASSES[version]
    packed: torch.nn.Module = kind.from_linear(module, 4, group, scales=scale, zeros=zero)
    return packed


def repack(folder: str, decoded: str) -> list[str]:
    """Pieces of ``folder`` that AutoAWQ packs otherwise from the decoded weights and our grid."""
    settings = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    ours, dense = (load_file(Path(f) / "model.safetensors") for f in (folder, decoded))
    wrong = []
    for name in [n.removesuffix(".qweight") for n in ours if n.endswith(".qweight")]:
        weight = dense[f"{name}.weight"].float()
        pieces = {p: ours[f"{name}.{p}"] for p in ("qweight", "qzeros", "scales")}
        scale, zero = _grid(pieces, settings["version"], weight.shape[1] // settings["group_size"])
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        kind = _CLASSES[settings["version"]]
        packed = kind.from_linear(linear, 4, settings["group_size"], scales=scale, zeros=zero)
        state = packed.state_dict()
        wrong += [f"{name}.{p}" for p, array in pieces.items() if not torch.equal(state[p], array)]
    return wrong


def _grid(
    pieces: dict[str, torch.Tensor], version: str, groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros as ``from_linear`` wants them."""
    from awq.utils.packing_utils import reverse_awq_order, unpack_awq

    codes, zeros = unpack_awq(pieces["qweight"], pieces["qzeros"], 4)
    scales = pieces["scales"].float()
    if version == "gemm":
        _, zeros = reverse_awq_order(codes, zeros, 4)
        return scales, (zeros & 15).float()
    return scales[:, :groups], (zeros & 15).float()[:, :groups]


if __name__ == "__main__":
    serve(
        {
            "logits": logits,
            "types": types,
            "write": write,
            "repack": repack,
            "refusal": engine_refusal(AutoAwqEngine),
            "verify": verified,
        }
    )
