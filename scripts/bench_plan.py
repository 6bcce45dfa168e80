"""``scripts/bench plan``: what planning from headers alone takes, for models of many tensors.

The models are files of zeros that take no room on a disk: a mixture of 128 experts in 94 layers
(36,945 tensors), a dense model of 80 layers, and two mixtures of 61 layers in 8-bit floats, whose
scales are tensors of their own. Seconds are those of the processor, as machines are
shared, of a process of its own each; the import of the program is among them.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from math import prod
from os import SEEK_CUR
from pathlib import Path
from typing import Any, Final

import numpy as np

from scripts.bench_convert import measure
from zenconvert.formats import safetensors_container
from zenconvert.model.architecture import TensorName, for_model_type
from zenconvert.model.encoding import BF16, DENSE, F32, Dense

_COMMON: Final[dict[str, Any]] = {
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "num_attention_heads": 64, "vocab_size": 151936,
    "max_position_embeddings": 40960,
}  # fmt: skip
_LATENTS: Final[dict[str, Any]] = {
    **_COMMON, "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128,
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}  # fmt: skip
MODELS: Final[dict[str, dict[str, Any]]] = {
    "94 layers of 128 experts": {
        **_COMMON, "model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_key_value_heads": 4,
        "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    },
    "80 dense layers": {
        **_COMMON, "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_key_value_heads": 8,
    },
    "61 layers of 256 experts": {
        **_LATENTS, "num_attention_heads": 128, "num_key_value_heads": 128,
        "first_k_dense_replace": 3, "n_routed_experts": 256, "n_group": 8, "topk_group": 4,
    },
    "61 layers of 384 experts": {
        **_LATENTS, "model_type": "kimi_k2", "num_key_value_heads": 64,
        "first_k_dense_replace": 1, "n_routed_experts": 384, "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip
TARGETS: Final = ("gguf:q4_k_m", "gptq:w4g128")
_SHARDS: Final = 118


def sparse_model(folder: Path, config: dict[str, Any]) -> int:
    """Headers of all tensors in many files, and holes for their data; the number of tensors."""
    architecture = for_model_type(config["model_type"])
    hp = architecture.sizes(config, where="bench")
    names = [name for name in architecture.tensor_names(hp) if name.required]
    folder.mkdir()
    step, places = -(-len(names) // _SHARDS), dict[str, str]()
    files = [names[begin : begin + step] for begin in range(0, len(names), step)]
    for number, part in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        rows = [row for name in part for row in _stored(name, config)]
        header, _ = safetensors_container.pack_header(rows, {"format": "pt"})
        with (folder / file).open("wb") as out:
            out.write(header)
            for _, encoding, shape in rows:
                size = encoding.row_bytes(prod(shape))
                if encoding is F32:  # a scale is no zero
                    out.write(np.ones(shape, np.float32).tobytes())
                else:
                    out.seek(size, SEEK_CUR)
            out.truncate()
        places |= {row[0]: file for row in rows}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return len(places)


def _stored(name: TensorName, config: dict[str, Any]) -> list[tuple[str, Dense, tuple[int, ...]]]:
    """Name, type and shape of the arrays that a tensor is stored in."""
    if "quantization_config" not in config or name.module.role != "linear":
        return [(name.hf, BF16, name.shape)]
    tiles = tuple(-(-size // 128) for size in name.shape)
    return [(name.hf, DENSE["f8_e4m3"], name.shape), (f"{name.hf}_scale_inv", F32, tiles)]


def main() -> None:
    """Print one line for every model and target."""
    argparse.ArgumentParser(prog="scripts/bench plan", description=__doc__).parse_args()
    from zenconvert.models import builtin_path

    with tempfile.TemporaryDirectory() as work:
        for number, (title, config) in enumerate(MODELS.items()):
            folder = Path(work) / f"model-{number}"
            count = sparse_model(folder, config)
            for side in ("tokenizer.json", "tokenizer_config.json"):
                (folder / side).write_bytes((builtin_path("zen-nano") / side).read_bytes())
            for target in TARGETS:
                command = [sys.executable, "-m", "zenconvert", "plan", str(folder), "--to", target]
                command += ["--allow-requantize"] * ("quantization_config" in config)
                before = _processor()
                peak = measure(command).peak_rss / 1e6
                told = f"{_processor() - before:.1f} s of the processor, {peak:.0f} MB at most"
                print(f"{title} ({count} tensors) → {target}: {told}", flush=True)


def _processor() -> float:
    """Seconds of the processor that finished children took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
