"""A consumer of GPTQ and AWQ folders that shares nothing with ours: it goes by the settings and
decodes bit by bit, by the formulas that the formats' own tools document.

::

    GPTQ  code i of a column is at bits [b·i, b·i + b) of its stream of little-endian words
          version 1: w = scale · (code − (stored zero + 1)); version 2: w = scale · (code − zero)
    AWQ   GEMM: nibble n of a word along the outputs is output [0, 2, 4, 6, 1, 3, 5, 7][n] of 8;
          GEMV: nibbles along the inputs, in order; both: w = scale · (code − zero)
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Arrays = dict[str, NDArray[Any]]
_OUTPUT_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)
_OF_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_SIDES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def codes(words: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """Codes of int32[n, words] along its rows, int64[n, words·32 / bits]."""
    rows = np.ascontiguousarray(words).astype("<i4").view(np.uint8).reshape(len(words), -1)
    stream = np.unpackbits(rows, axis=1, bitorder="little")
    digits = stream.reshape(len(words), -1, bits).astype(np.int64)
    return digits @ (1 << np.arange(bits))


def gptq_settings(settings: dict[str, Any], module: str) -> dict[str, Any] | None:
    """What GPTQModel's ``dynamic`` says of a module: its settings, None where it is skipped."""
    for rule, own in (settings.get("dynamic") or {}).items():
        kind, pattern = (rule[:2], rule[2:]) if rule[:2] in ("-:", "+:") else ("+:", rule)
        if re.match(pattern, module):
            return None if kind == "-:" else {**settings, **own}
    if module == "lm_head" and not settings["lm_head"]:
        return None
    return settings


def gptq_weight(pieces: Arrays, settings: dict[str, Any]) -> NDArray[np.float32]:
    """float32[out, in] of a module."""
    bits, scales = settings["bits"], pieces["scales"].astype(np.float32)
    levels = codes(pieces["qweight"].T, bits)
    zeros = codes(pieces["qzeros"], bits)[:, : scales.shape[1]]
    if settings["checkpoint_format"] == "gptq":
        zeros = zeros + 1
    group = settings["group_size"] if settings["group_size"] > 0 else levels.shape[1]
    plain = np.arange(levels.shape[1]) // group
    index = pieces["g_idx"]
    assert settings["desc_act"] or np.array_equal(index, plain), "an order that nothing announces"
    if settings["sym"]:
        assert (zeros == 1 << (bits - 1)).all(), "called symmetric, and zeros are not the midpoint"
    weights: NDArray[np.float32] = scales.T[:, index] * (levels - zeros.T[:, index])
    return weights.astype(np.float32)


def awq_weight(pieces: Arrays, settings: dict[str, Any]) -> NDArray[np.float32]:
    """float32[out, in] of a module."""
    if settings["version"] == "gemm":
        order = np.argsort(_OUTPUT_OF_NIBBLE)
        levels, zeros = (
            codes(pieces[name], 4).reshape(len(pieces[name]), -1, 8)[..., order]
            for name in ("qweight", "qzeros")
        )
        levels, zeros = (v.reshape(len(v), -1).T for v in (levels, zeros))
        scales = pieces["scales"].T
    else:
        levels, zeros, scales = (
            codes(pieces["qweight"], 4), codes(pieces["qzeros"], 4), pieces["scales"],
        )  # fmt: skip
    group = settings["group_size"] if settings["group_size"] > 0 else levels.shape[1]
    index = np.arange(levels.shape[1]) // group
    weights: NDArray[np.float32] = scales[:, index].astype(np.float32) * (levels - zeros[:, index])
    return weights.astype(np.float32)


def is_packed(settings: dict[str, Any], module: str) -> bool:
    """Whether a tool makes a packed linear of a module of decoder blocks, or of the head."""
    if settings["quant_method"] == "gptq":
        return gptq_settings(settings, module) is not None
    kept = settings["modules_to_not_convert"] or []
    return module != "lm_head" and not any(part in module for part in kept)


def decoded(folder: Path, out: Path, linears: set[str]) -> Path:
    """The folder as float32 without settings, its weights decoded.

    ``linears`` are the modules of the model that are linear, as the folder calls them; each is
    packed exactly where the settings say so.
    """
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    assert config.pop("torch_dtype", config.pop("dtype", None)) is not None
    arrays: Arrays = {}
    for file in folder.glob("*.safetensors"):
        arrays |= load_file(file)
    found: Arrays = {}
    packed = {n.removesuffix(".qweight") for n in arrays if n.endswith(".qweight")}
    for module in packed:
        pieces = {
            piece: arrays.pop(f"{module}.{piece}")
            for piece in ("qweight", "qzeros", "scales", "g_idx")
            if f"{module}.{piece}" in arrays
        }
        if settings["quant_method"] == "gptq":
            own = gptq_settings(settings, module)
            assert own is not None, f"{module} is packed, and the settings leave it out"
            found[f"{module}.weight"] = gptq_weight(pieces, own)
        else:
            found[f"{module}.weight"] = awq_weight(pieces, settings)
    told = {module for module in linears if is_packed(settings, module)}
    if config["model_type"] == "mixtral":
        found, arrays = _as_released(found), _as_released(arrays)
    assert packed == told, f"the settings differ from the data in {sorted(packed ^ told)}"
    out.mkdir()
    found |= arrays
    contiguous = {n: np.ascontiguousarray(a, dtype=np.float32) for n, a in found.items()}
    save_file(contiguous, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    for name in _SIDES:
        if (folder / name).is_file():
            (out / name).write_bytes((folder / name).read_bytes())
    return out


def in_memory(module: str) -> str:
    """What transformers 5 calls a module of a Mixtral once it is loaded."""
    for theirs, released in _OF_MIXTRAL.items():
        module = re.sub(rf"\.experts\.(\d+)\.{released}$", rf".experts.\1.{theirs}", module)
    return module.replace(".block_sparse_moe.", ".mlp.")


def _as_released(arrays: Arrays) -> Arrays:
    """Tensors of a Mixtral under the names of its release."""
    found = {}
    for name, array in arrays.items():
        for theirs, released in _OF_MIXTRAL.items():
            name = re.sub(rf"\.experts\.(\d+)\.{theirs}\.", rf".experts.\1.{released}.", name)
        found[re.sub(r"\.mlp\.", ".block_sparse_moe.", name)] = array
    return found


def grids(folder: Path) -> set[tuple[int, int]]:
    """Bits and group of all packed modules by their shapes alone."""
    arrays = load_file(folder / "model.safetensors")
    found = set()
    for name in [n for n in arrays if n.endswith(".g_idx")]:
        columns, module = len(arrays[name]), name.removesuffix(".g_idx")
        bits = len(arrays[f"{module}.qweight"]) * 32 // columns
        found.add((bits, columns // len(arrays[f"{module}.scales"])))
    return found
