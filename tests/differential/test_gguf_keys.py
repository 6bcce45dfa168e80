"""Keys of GGUF files as other tools and other years write them: a folder made from such a file
computes what llama.cpp computes with it, or the plan names the key.

``ZENCONVERT_DIFFERENTIAL`` and its seed as in ``test_differential``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.differential import runs
from tests.differential.configs import LENGTH
from zenconvert import convert, plan
from zenconvert.errors import PlanError
from zenconvert.formats.gguf import container
from zenconvert.formats.gguf.container import KeyValue

COUNT = int(os.environ.get("ZENCONVERT_DIFFERENTIAL", "300")) // 5
FIRST = int(os.environ.get("ZENCONVERT_DIFFERENTIAL_SEED", "0"))
TOLERANCE = 3e-4
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": runs.VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
BASES: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "qwen2": {**SIZES, "model_type": "qwen2"},
}
KEYS: dict[str, tuple[KeyValue | None, ...]] = {
    "rope.scale_linear": (("f32", 4.0), ("f32", 1.0), ("f32", 0.0)),
    "rope.scaling.type": (("str", "linear"), ("str", "yarn"), ("str", "none"), ("str", "longrope")),
    "rope.scaling.factor": (("f32", 2.0), ("f32", 8.0), ("f32", 0.0)),
    "rope.scaling.attn_factor": (("f32", 0.8), ("f32", 1.0)),
    "rope.scaling.original_context_length": (("u32", 16), ("u32", 4096), ("u32", 0)),
    "rope.scaling.yarn_attn_factor": (("f32", 0.5),),
    "rope.scaling.yarn_ext_factor": (("f32", 0.5),),
    "rope.scaling.yarn_beta_fast": (("f32", 16.0), ("f32", 32.0)),
    "rope.scaling.yarn_beta_slow": (("f32", 2.0), ("f32", 1.0)),
    "rope.scaling.finetuned": (("bool", True),),
    "rope.freq_base": (None, ("f32", 500.0)),
    "rope.dimension_count": (None,),
    "vocab_size": (None,),
    "attention.key_length": (None,),
    "attention.value_length": (None,),
    "attention.head_count_kv": (None,),
    "tensor_data_layout": (("str", "Meta AI original pth"),),
    "attention.causal": (("bool", True),),
    "attention.scale": (("f32", 0.5),),
    "logit_scale": (("f32", 0.5),),
    "some.new_thing": (("u32", 3),),
    "attention.head_count": (("arr:u32", np.array([2, 2], dtype=np.uint32)),),
    "feed_forward_length": (("arr:i32", np.array([24, 24], dtype=np.int32)),),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    runs.tokenizer(folder / "tokenizer")
    found = {}
    for name, config in BASES.items():
        runs.write_model(folder / name, config, folder / "tokenizer", 0)
        convert(folder / name, folder / f"{name}.gguf", "gguf:f32")
        found[name] = folder / f"{name}.gguf"
    return found


def changed(source: Path, out: Path, keys: dict[str, KeyValue | None]) -> Path:
    """A file with other metadata; None leaves a key out."""
    file = container.read(source)
    data = source.read_bytes()
    metadata = {k: v for k, v in {**file.metadata, **keys}.items() if v is not None}
    rows, body = [], b""
    for info in file.tensors.values():
        rows.append((info.name, info.shape, info.type_id, len(body)))
        body += data[info.offset : info.offset + info.nbytes]
        body += bytes(-len(body) % 32)
    out.write_bytes(container.pack_header(metadata, rows) + body)
    return out


def test_random_keys(bases: dict[str, Path], tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + COUNT):
        rng = random.Random(seed)
        name = rng.choice(sorted(bases))
        chosen = rng.sample(sorted(KEYS), rng.randint(1, 5))
        keys = {f"{name}.{key}": rng.choice(KEYS[key]) for key in chosen}
        work = tmp_path / "one"
        work.mkdir()
        try:
            outcomes[one(changed(bases[name], work / "m.gguf", keys), keys, work, seed)] += 1
        except Exception as error:
            error.add_note(f"seed {seed}: {json.dumps(keys)}")
            raise
        shutil.rmtree(work)
    print(f"seeds {FIRST}…: {dict(outcomes)}")
    if COUNT >= 50:
        assert outcomes["exact"] > COUNT // 5, outcomes


def one(source: Path, keys: dict[str, KeyValue | None], work: Path, seed: int) -> str:
    text = runs.ids(LENGTH, seed)
    convert(source, work / "same.gguf", "gguf:f32")
    try:
        expected = runs.in_llamacpp(source, text)
    except ValueError:  # llama.cpp does not load it
        return "no source"
    assert np.array_equal(runs.in_llamacpp(work / "same.gguf", text), expected)
    try:
        exact, problem = plan(source, "hf:f32").exact, ""
    except PlanError as error:
        exact, problem = False, str(error)
    if not exact:
        assert any(f": {key} is " in problem for key in keys), problem
        return "refused"
    convert(source, work / "hf", "hf:f32")
    gap = np.abs(runs.in_transformers(work / "hf", text) - expected).max() / expected.std()
    assert gap < TOLERANCE, gap
    convert(source, work / "onnx", "onnx:f32")
    gap = np.abs(runs.in_onnxruntime(work / "onnx", text) - expected).max() / expected.std()
    assert gap < TOLERANCE, gap
    return "exact"


def _numbers(kind: str, *values: int) -> KeyValue:
    return f"arr:{kind}", np.array(values, dtype={"i32": np.int32, "u8": np.uint8}[kind])


OTHER_TYPES: dict[str, tuple[KeyValue, str]] = {
    "llama.block_count": (("u64", 2), "u64"),
    "llama.attention.head_count": (("u16", 2), "u16"),
    "llama.attention.head_count_kv": (_numbers("i32", 2), "arr:i32"),
    "llama.attention.layer_norm_rms_epsilon": (("f64", 1e-5), "f64"),
    "llama.rope.freq_base": (("u32", 10000), "u32"),
    "llama.attention.causal": (("u8", 1), "u8"),
    "tokenizer.ggml.bos_token_id": (("u8", 3), "u8"),
    "tokenizer.ggml.add_bos_token": (("u8", 1), "u8"),
    "tokenizer.ggml.padding_token_id": (("i32", -1), "pad"),
    "tokenizer.ggml.token_type": (_numbers("u8", *[1] * runs.VOCAB), "arr:u8"),
    "llama.vocab_size": (("u32", 400), "embedding has 320 rows"),
    "llama.expert_count": (("u32", 0), ""),
    "llama.attention.sliding_window": (("u32", 0), ""),
}


@pytest.mark.parametrize("key", OTHER_TYPES)
def test_numbers_of_other_types_are_read_and_written_as_llamacpp_reads_them(
    key: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    value, told = OTHER_TYPES[key]
    text = runs.ids(LENGTH, 1)
    expected = runs.in_llamacpp(bases["llama"], text)
    odd = changed(bases["llama"], tmp_path / "odd.gguf", {key: value})
    planned = plan(odd, "hf:f32")
    assert planned.exact
    assert (told == "") == (not planned.warnings)
    assert told in "".join(planned.warnings)
    convert(odd, tmp_path / "same.gguf", "gguf:f32")
    np.testing.assert_array_equal(runs.in_llamacpp(tmp_path / "same.gguf", text), expected)
    convert(odd, tmp_path / "hf", "hf:f32")
    found = runs.in_transformers(tmp_path / "hf", text)
    assert np.abs(found - expected).max() / expected.std() < TOLERANCE
    assert plan(odd, "onnx:f32").exact


@pytest.mark.parametrize("count", [runs.VOCAB - 3, runs.VOCAB + 8])
def test_a_vocabulary_of_another_size_than_the_embedding(
    count: int, bases: dict[str, Path], tmp_path: Path
) -> None:
    """llama.cpp loads no such file; what is written from it has a token for every row."""
    metadata = container.read(bases["llama"]).metadata
    tokens, types = (metadata[f"tokenizer.ggml.{key}"][1] for key in ("tokens", "token_type"))
    further = [f"<x{i}>" for i in range(count - runs.VOCAB)]
    keys: dict[str, KeyValue | None] = {
        "tokenizer.ggml.tokens": ("arr:str", [*tokens, *further][:count]),
        "tokenizer.ggml.token_type": ("arr:i32", np.resize(types, count)),
        "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.eos_token_id": None,
        "tokenizer.ggml.add_bos_token": None,
    }
    odd = changed(bases["llama"], tmp_path / "odd.gguf", keys)
    with pytest.raises(ValueError, match="Failed to load"):
        runs.in_llamacpp(odd, [1])
    told = plan(odd, "hf:f32").warnings[0]
    assert f"there are {count} tokens and the embedding has 320 rows" in told
    convert(odd, tmp_path / "same.gguf", "gguf:f32")
    text = runs.ids(LENGTH, 1)
    expected = runs.in_llamacpp(bases["llama"], text)
    np.testing.assert_array_equal(runs.in_llamacpp(tmp_path / "same.gguf", text), expected)
    convert(odd, tmp_path / "hf", "hf:f32")
    definition = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    assert max(definition["model"]["vocab"].values()) == runs.VOCAB - 1
