"""Folders of compressed-tensors, made and decoded by that library alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
PACK, INT, FLOAT, NAIVE = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


def parameters(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros of every group, as the library calculates them."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        low, high = weight.min().reshape(1), weight.max().reshape(1)
    elif args.strategy == "block":
        high_rows, wide = args.block_structure
        counts = -(-rows // high_rows), -(-columns // wide)
        padded = torch.nn.functional.pad(
            weight, (0, counts[1] * wide - columns, 0, counts[0] * high_rows - rows)
        )
        blocks = padded.reshape(counts[0], high_rows, counts[1], wide)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    else:
        groups = weight.reshape(rows, -1, args.group_size or columns)
        low, high = groups.amin(-1), groups.amax(-1)
    scales, zeros = calculate_qparams(low, high, args)
    return scales, zeros


def make_ct(
    source: Path,
    out: Path,
    format_name: str,
    *,
    scale: torch.dtype = torch.float32,
    activations: bool = False,
    **arguments: Any,
) -> Tensors:
    """Write a folder whose linear weights are compressed; all weights as the library decodes them,
    by name, in ``scale`` for those."""
    out.mkdir(parents=True)
    for file in source.iterdir():
        if file.name not in {"model.safetensors", "config.json"}:
            (out / file.name).write_bytes(file.read_bytes())
    args = QuantizationArgs(**arguments)
    inputs = QuantizationArgs(num_bits=8, type=args.type, dynamic=True, strategy="token")
    scheme = QuantizationScheme(
        targets=["Linear"], weights=args, input_activations=inputs if activations else None
    )
    compressor = BaseCompressor.get_value_from_registry(format_name)
    stored, decoded = Tensors(), Tensors()
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if (
            tensor.dim() < 2
            or ("_proj" not in name and ".experts." not in name)
            or not name.endswith(".weight")
        ):
            stored[name], decoded[name] = tensor, tensor.float()
            continue
        weight = tensor.to(scale)
        scales, zeros = parameters(weight, args)
        given = {"weight": weight, "weight_scale": scales.to(scale), "weight_zero_point": zeros}
        made = compressor.compress(given, scheme)
        stored |= {f"{module}.{key}": value.contiguous() for key, value in made.items()}
        decoded[name] = compressor.decompress(made, scheme)["weight"]
    save_file(stored, out / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    group = json.loads(scheme.model_dump_json(exclude_none=True))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": format_name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
    (out / "config.json").write_text(json.dumps(config))
    return decoded
