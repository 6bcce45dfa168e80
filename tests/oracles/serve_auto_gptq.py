"""AutoGPTQ, in its own environment: loads folders, and writes them with its own packing."""

from __future__ import annotations

import numpy as np
import torch
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from auto_gptq.modeling._utils import pack_model
from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP
from auto_gptq.quantization.quantizer import Quantizer
from transformers import AutoModelForCausalLM

from tests.oracles.here import engine_refusal, verified
from tests.oracles.serve import copy_tokenizer, multipliers, rounded, save, serve
from zenconvert import open_checkpoint
from zenconvert.texts.windows import Window
from zenconvert.verification.engines.autogptq import AutoGptqEngine


def logits(folder: str, ids: list[int], out: str) -> None:
    """float32[tokens, vocab] of a folder in AutoGPTQ's modules."""
    engine = AutoGptqEngine(open_checkpoint(folder), [Window("a", "und", tuple(ids))], threads=2)
    np.save(out, engine.logits(0, 0, len(ids)).numpy())


def weights(folder: str, out: str) -> None:
    """What AutoGPTQ's modules multiply with."""
    model = AutoGPTQForCausalLM.from_quantized(
        folder, device="cpu", use_safetensors=True, disable_exllama=True, disable_exllamav2=True,
        inject_fused_attention=False, inject_fused_mlp=False, torch_dtype=torch.float32,
    ).model  # fmt: skip
    modules = {n: m for n, m in model.named_modules() if type(m).__name__ == "QuantLinear"}
    save(out, multipliers(modules, {n: m.infeatures for n, m in modules.items()}))


def write(source: str, out: str, bits: int, group: int, sym: bool, act_order: bool) -> None:
    """Round a model to nearest and save it as AutoGPTQ does."""
    torch.manual_seed(0)
    settings = BaseQuantizeConfig(bits=bits, group_size=group, sym=sym, desc_act=act_order)
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float16)
    quantizers = {
        name: _quantize(module, settings)
        for name, module in model.model.layers.named_modules(prefix="model.layers")
        if isinstance(module, torch.nn.Linear) and not name.endswith(".gate")
    }
    pack_model(model, quantizers, bits, group, desc_act=act_order)
    wrapped = GPTQ_CAUSAL_LM_MODEL_MAP[model.config.model_type](model, True, settings)
    wrapped.save_quantized(out, use_safetensors=True)
    copy_tokenizer(source, out)


def _quantize(module: torch.nn.Linear, settings: BaseQuantizeConfig) -> tuple[object, ...]:
    weight = module.weight.data.float()
    columns = weight.shape[1]
    group = columns if settings.group_size == -1 else settings.group_size
    order = torch.randperm(columns) if settings.desc_act else torch.arange(columns)
    parameters = []
    for begin in range(0, columns, group):
        quantizer = Quantizer()
        quantizer.configure(settings.bits, perchannel=True, sym=settings.sym)
        quantizer.find_params(weight[:, order[begin : begin + group]], weight=True)
        parameters.append((quantizer.scale, quantizer.zero))
    scale = torch.cat([s for s, _ in parameters], dim=1).half().float()
    zero = torch.cat([z for _, z in parameters], dim=1)
    index = torch.empty(columns, dtype=torch.int32)
    index[order] = torch.arange(columns, dtype=torch.int32) // group
    values = rounded(weight, scale, zero, index.long(), settings.bits)
    module.weight.data = values.to(module.weight.dtype)
    return None, scale, zero, index


if __name__ == "__main__":
    serve(
        {
            "logits": logits,
            "weights": weights,
            "write": write,
            "refusal": engine_refusal(AutoGptqEngine),
            "verify": verified,
        }
    )
