"""What runtimes compute with files: transformers, llama.cpp and onnxruntime, all in float32."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from tests.onnx_runs import onnx_logits, session
from tests.tiny import as_filed, in_files
from tests.tokenizers_for_tests import llama3
from zenconvert.formats import safetensors_container
from zenconvert.model.architecture import for_model_type
from zenconvert.model.encoding import F32

Logits = NDArray[np.float32]
VOCAB = 320
_CONFUSED = (ValueError, KeyError, TypeError, RuntimeError, AttributeError)  # by odd configs


class Refused(Exception):
    """A runtime that does not take the source itself."""


def tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of :data:`VOCAB` tokens, with its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    llama3(folder, VOCAB)


def write_model(folder: Path, config: dict[str, Any], tokenizer_of: Path, seed: int) -> Path:
    """A folder of random float32 weights for a config."""
    architecture = for_model_type(config["model_type"])
    sizes = architecture.sizes(config, where="test")
    random_numbers = np.random.default_rng(seed)
    names = [
        n
        for n in architecture.tensor_names(sizes)
        if n.required or (not n.is_weight and architecture.announces(config, n.module))
    ]
    names = as_filed(names)
    header, _ = safetensors_container.pack_header(in_files(names, F32), {"format": "pt"})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for side in tokenizer_of.iterdir():
        (folder / side.name).write_bytes(side.read_bytes())
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        for name in names:
            scale = 0.5 / np.sqrt(name.shape[-1]) if len(name.shape) > 1 else 0.3
            values = random_numbers.standard_normal(name.shape) * scale
            if name.module.role == "norm":
                values += 1
            if name.module.role == "embed":
                values = values / scale
            if ".attn." in name.name and len(name.shape) > 1:
                values *= 3  # attention that depends on positions
            file.write(values.astype(np.float32).tobytes())
    return folder


def ids(length: int, seed: int) -> list[int]:
    """A random text."""
    return [random.Random(seed + i).randrange(VOCAB) for i in range(length)]


def in_transformers(folder: Path, text: list[int]) -> Logits:
    """float32[tokens, vocab]. Raises Refused where tensors and config do not fit together."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
        )
        with torch.inference_mode():
            logits: Logits = model.eval()(torch.tensor([text])).logits[0].numpy()
    except (*_CONFUSED, StrictDataclassError) as error:
        raise Refused(repr(error)) from error
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise Refused(str(info))
    return logits


def in_llamacpp(file: Path, text: list[int]) -> Logits:
    """float32[tokens, vocab]."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(file), n_ctx=len(text), n_batch=len(text), n_threads=1, n_threads_batch=1,
        logits_all=True, verbose=False, type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32, yarn_beta_fast=-1.0, yarn_beta_slow=-1.0,
    )  # fmt: skip
    try:
        model.eval(text)
        return np.array(model.scores[: len(text)], dtype=np.float32)
    finally:
        model.close()


def in_onnxruntime(folder: Path, text: list[int]) -> Logits:
    """float32[tokens, vocab], the last tokens one by one with the cache."""
    ids = np.array([text], dtype=np.int64)
    logits: Logits = onnx_logits(session(folder / "model.onnx"), ids)[0]
    return logits
