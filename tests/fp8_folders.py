"""Folders of 8-bit floats as they are released, made and decoded by torch alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LARGEST = 448.0
Tensors = dict[str, torch.Tensor]
Block = tuple[int, int]


def spread(scales: torch.Tensor, shape: torch.Size, block: Block) -> torch.Tensor:
    """A scale for every weight, as llama.cpp's converter repeats and crops them."""
    rows = scales.repeat_interleave(block[0], 0)[: shape[0]]
    return rows.repeat_interleave(block[1], 1)[:, : shape[1]]


def quantized(weight: torch.Tensor, block: Block, *, powers: bool) -> tuple[torch.Tensor, Any]:
    """Codes in float8_e4m3fn, and scales float32 of every block."""
    counts = [-(-size // part) for size, part in zip(weight.shape, block, strict=True)]
    scales = torch.empty(counts)
    for i in range(counts[0]):
        for j in range(counts[1]):
            rows = slice(i * block[0], (i + 1) * block[0])
            part = weight[rows, j * block[1] : (j + 1) * block[1]]
            scales[i, j] = part.abs().max() / LARGEST
    if powers:
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    codes = (weight / spread(scales, weight.shape, block)).to(torch.float8_e4m3fn)
    return codes, scales


def make_fp8(
    source: Path,
    out: Path,
    block: Block | None = (128, 128),
    *,
    scale: torch.dtype = torch.float32,
    suffix: str = "weight_scale_inv",
    shape: tuple[int, ...] | None = None,
    powers: bool = False,
) -> Tensors:
    """Write a folder whose linear weights are 8-bit floats; its weights decoded, by name.

    Without a block, the scales are one for each row, or one number where ``shape`` says so.
    """
    out.mkdir(parents=True)
    for file in source.iterdir():
        if file.name not in {"model.safetensors", "config.json"}:
            (out / file.name).write_bytes(file.read_bytes())
    stored, decoded = Tensors(), Tensors()
    for name, tensor in load_file(source / "model.safetensors").items():
        stored[name], decoded[name] = tensor, tensor.float()
        if (
            tensor.dim() < 2
            or ("_proj" not in name and ".experts." not in name)
            or not name.endswith(".weight")
        ):
            continue
        weight = tensor.float()
        own = block or ((1, weight.shape[1]) if shape is None else (weight.shape[0],) * 2)
        own = (own[0], weight.shape[1]) if block is None else own
        codes, scales = quantized(weight, own, powers=powers)
        stored[name] = codes
        scales = scales.to(scale)
        decoded[name] = codes.float() * spread(scales.float(), weight.shape, own)
        plain = scales if shape is None else scales.reshape(shape)
        stored[f"{name.removesuffix('.weight')}.{suffix}"] = plain
    save_file({n: t.contiguous() for n, t in stored.items()}, out / "model.safetensors")
    settings: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    if block is not None:
        settings |= {"weight_block_size": list(block), "fmt": "e4m3"}
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return decoded


def stacked(stored: Tensors) -> None:
    """Put the experts of every layer into one array, as transformers 5 keeps them in memory."""
    suffixes = {".weight": "", ".weight_scale_inv": "_scale_inv"}
    found: dict[tuple[str, str], dict[tuple[int, int], torch.Tensor]] = {}
    for name in [n for n in stored if ".experts." in n]:
        prefix, number, module, suffix = re.fullmatch(
            r"(.*\.experts)\.(\d+)\.(\w+)(\.\w+)", name
        ).groups()  # type: ignore[union-attr]
        joined = "down_proj" if module == "down_proj" else "gate_up_proj"
        part = found.setdefault((f"{prefix}.{joined}", suffixes[suffix]), {})
        value = stored.pop(name)
        part[int(number), int(module == "up_proj")] = value.reshape(
            -1, value.shape[-1] if value.ndim else 1
        )
    for (name, suffix), parts in found.items():
        experts = sorted({number for number, _ in parts})
        rows = [[parts[n, half] for half in (0, 1) if (n, half) in parts] for n in experts]
        stored[name + suffix] = torch.stack([torch.cat(part) for part in rows])


def change(folder: Path, tensors: Any = None, **settings: Any) -> Path:
    """Change the tensors of a folder in place, by a function, and its settings."""
    if tensors is not None:
        stored = load_file(folder / "model.safetensors")
        tensors(stored)
        save_file({n: t.contiguous() for n, t in stored.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder
