"""Quantizes a model with AutoAWQ from given token windows; runs in its own environment.

python autoawq_quantize.py MODEL WINDOWS.json OUT GROUP
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from awq import AutoAWQForCausalLM
from transformers import AutoTokenizer


def main() -> None:
    """Quantize and save: as the tool does it on a GPU, in float32 without one."""
    source, windows, out, group = sys.argv[1:]
    rows = json.loads(Path(windows).read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # a CPU multiplies float32 faster than float16, the tool's own choice
    dtype = torch.float16 if device == "cuda" else torch.float32
    model = AutoAWQForCausalLM.from_pretrained(source, torch_dtype=dtype, device_map=device)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.quantize(
        tokenizer,
        quant_config={
            "zero_point": True, "q_group_size": int(group), "w_bit": 4, "version": "GEMM",
        },
        calib_data=rows,
        max_calib_samples=len(rows),
        max_calib_seq_len=max(map(len, rows)),
    )  # fmt: skip
    model.save_quantized(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
