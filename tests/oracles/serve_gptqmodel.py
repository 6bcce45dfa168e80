"""GPTQModel with transformers 5, in its own environment: quantizes models and loads folders."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch_awq import dequantize_gemm
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

from tests.oracles.here import engine_refusal
from tests.oracles.serve import save, serve
from zenconvert.verification.engines.transformers_engine import TransformersEngine

_TOKENS = 64  # the smallest calibration that it takes without complaint
_BACKENDS = {"gptq": BACKEND.GPTQ_TORCH, "awq": BACKEND.AWQ_TORCH}
_CONFIGS: dict[str, Any] = {
    "gptq": (GPTQConfig, BACKEND.GPTQ_TORCH),
    "awq": (AwqConfig, "torch_awq"),
}


def write(source: str, out: str, settings: dict[str, Any]) -> None:
    """Quantize a model on random tokens and save it."""
    model = GPTQModel.load(source, QuantizeConfig(**settings, pack_impl="original"))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 500, (4, _TOKENS), generator=generator).tolist()
    samples = [{"input_ids": row, "attention_mask": [1] * _TOKENS} for row in rows]
    method = settings.get("method", "gptq")
    model.quantize(samples, batch_size=1, backend=_BACKENDS[method] if method == "awq" else None)
    model.save(out)


def weights(folder: str, out: str) -> None:
    """The weights of quantized modules as GPTQModel decodes them, with scales in float32."""
    settings = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    backend = _BACKENDS[settings["quant_method"]]
    loaded = GPTQModel.load(folder, backend=backend, device="cpu", dtype=torch.float16)
    found = {}
    for name, module in loaded.model.named_modules():
        if hasattr(module, "qweight"):
            module.scales = module.scales.float()
            values = (
                _awq_weight(module) if backend.startswith("awq") else module.dequantize_weight()
            )
            found[name] = values.T
    save(out, found)


def _awq_weight(module: Any) -> torch.Tensor:
    values: torch.Tensor = dequantize_gemm(
        module.qweight, module.qzeros, module.scales, module.bits, module.group_size
    )
    return values


def logits(folder: str, ids: list[int], out: str, loader: str) -> None:
    """float32[tokens, vocab] of a folder, loaded by transformers or by GPTQModel itself."""
    model: Any
    if loader == "transformers":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        settings = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
        backend = _BACKENDS[settings["quant_method"]]
        model = GPTQModel.load(folder, backend=backend, device="cpu", dtype=torch.float16).model
    with torch.inference_mode():
        np.save(out, model.eval()(torch.tensor([ids])).logits[0].float().numpy())


def in_floats(folder: str, ids: list[int], out: str, loader: str) -> list[str]:
    """float32[tokens, vocab] by the tool's modules and the weights that it decodes, multiplied in
    float32, as its kernels for the CPU compute in less. Returns the modules that it holds in
    codes; every other one is the model's own."""
    settings = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    backend = _BACKENDS[settings["quant_method"]]
    if loader == "transformers":
        kind, kernels = _CONFIGS[settings["quant_method"]]
        chosen = kind(**settings, backend=kernels)
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=chosen, dtype=torch.float16
        )
    else:
        model = GPTQModel.load(folder, backend=backend, device="cpu", dtype=torch.float16).model
    model.set_attn_implementation("eager")
    quantized = [name for name, module in model.named_modules() if hasattr(module, "qweight")]
    for name in quantized:
        module = model.get_submodule(name)
        module.scales = module.scales.float()
        awq = settings["quant_method"] == "awq"
        weight = _awq_weight(module) if awq else module.dequantize_weight()
        module.forward = partial(_product, weight.float(), module.bias)
    with torch.inference_mode():
        np.save(out, torch.nn.Module.float(model).eval()(torch.tensor([ids])).logits[0].numpy())
    return quantized


def _product(weight: torch.Tensor, bias: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    product = values @ weight
    return product if bias is None else product + bias.float()


if __name__ == "__main__":
    serve(
        {
            "write": write,
            "weights": weights,
            "logits": logits,
            "in_floats": in_floats,
            "refusal": engine_refusal(TransformersEngine),
        }
    )
