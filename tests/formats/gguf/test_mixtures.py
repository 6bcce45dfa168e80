"""Types of tensors: the same as llama.cpp's quantizer chooses, on many shapes of models."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracles.llama_quantize import quantize
from zenconvert.errors import UsageError
from zenconvert.formats.gguf import container, mixtures
from zenconvert.formats.gguf.container import KeyValue
from zenconvert.formats.gguf.mixtures import ModelFacts, TensorFacts
from zenconvert.model.architecture import architectures

HIDDEN = 256
MODELS: dict[str, dict[str, Any]] = {
    "qwen2, 16 layers": {"arch": "qwen2", "layers": 16, "heads": 4, "kv": 2},
    "qwen2, tied, grouped by 4": {"arch": "qwen2", "layers": 9, "heads": 4, "kv": 1, "tied": True},
    "llama, no grouping": {"arch": "llama", "layers": 32, "heads": 4, "kv": 4},
    "llama, grouped by 8": {"arch": "llama", "layers": 8, "heads": 8, "kv": 1},
    "llama of the 70B class": {"arch": "llama", "layers": 80, "heads": 8, "kv": 1},
    "llama, 80 layers, no grouping": {"arch": "llama", "layers": 80, "heads": 4, "kv": 4},
    "qwen2 of the 110B class": {"arch": "qwen2", "layers": 80, "heads": 8, "kv": 1},
    "8 experts": {"arch": "llama", "layers": 16, "heads": 4, "kv": 1, "experts": 8},
    "4 experts": {"arch": "llama", "layers": 4, "heads": 4, "kv": 2, "experts": 4},
    "odd rows": {"arch": "qwen2", "layers": 16, "heads": 4, "kv": 2, "ffn": 288},
    "very odd rows": {"arch": "qwen2", "layers": 16, "heads": 4, "kv": 2, "ffn": 272},
}
# ask nothing of the rules for importance that the others do not ask
SAME_WITH_IMPORTANCE = {"llama, 80 layers, no grouping", "qwen2 of the 110B class", "very odd rows"}
# what llama.cpp quantizes without importance weights
FILE_TYPES = [
    "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l",
    "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0",
    "mxfp4_moe", "iq3_s", "iq3_m",
]  # fmt: skip
# what it quantizes with them only, and what else they change
WITH_IMPORTANCE = [
    "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s",
    "iq3_s", "iq3_m", "q4_0", "iq4_xs",
]  # fmt: skip


def tensors_of(model: dict[str, Any]) -> list[TensorFacts]:
    ffn, experts = model.get("ffn", 256), model.get("experts", 0)
    kv = HIDDEN // model["heads"] * model["kv"]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (8, HIDDEN)}
    for i in range(model["layers"]):
        block = {
            "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
        }  # fmt: skip
        stack, end = ((experts,), "_exps") if experts else ((), "")
        block |= {f"ffn_gate{end}": (*stack, ffn, HIDDEN), f"ffn_up{end}": (*stack, ffn, HIDDEN)}
        block |= {f"ffn_down{end}": (*stack, HIDDEN, ffn)}
        if experts:
            block["ffn_gate_inp"] = (experts, HIDDEN)
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    shapes["output_norm.weight"] = (HIDDEN,)
    if not model.get("tied"):
        shapes["output.weight"] = (8, HIDDEN)
    return [TensorFacts(name, shape) for name, shape in shapes.items()]


def facts_of(model: dict[str, Any]) -> ModelFacts:
    family = next(a for a in architectures().values() if a.gguf == model["arch"]).in_gguf
    sizes = {"layers": model["layers"], "heads": model["heads"], "kv_heads": model["kv"]}
    experts, tied = model.get("experts", 0), model.get("tied", False)
    return ModelFacts(**sizes, experts=experts, tied=tied, is_70b=family.is_70b(**sizes))


def write_model(path: Path, model: dict[str, Any]) -> None:
    arch = model["arch"]
    keys: dict[str, tuple[str, Any]] = {
        "block_count": ("u32", model["layers"]), "context_length": ("u32", 64),
        "embedding_length": ("u32", HIDDEN), "feed_forward_length": ("u32", model.get("ffn", 256)),
        "attention.head_count": ("u32", model["heads"]),
        "attention.head_count_kv": ("u32", model["kv"]),
        "attention.layer_norm_rms_epsilon": ("f32", 1e-6), "rope.freq_base": ("f32", 10000.0),
        "vocab_size": ("u32", 8), "rope.dimension_count": ("u32", HIDDEN // model["heads"]),
    }  # fmt: skip
    if model.get("experts"):
        keys |= {"expert_count": ("u32", model["experts"]), "expert_used_count": ("u32", 2)}
    metadata: dict[str, KeyValue] = {
        "general.architecture": ("str", arch),
        **{f"{arch}.{key}": value for key, value in keys.items()},
        "general.file_type": ("u32", 1),
    }
    infos, at, sizes = [], 0, []
    for tensor in tensors_of(model):
        infos.append((tensor.name, tensor.shape, 1, at))
        sizes.append(int(np.prod(tensor.shape)))
        at += -(-2 * sizes[-1] // 32) * 32
    with path.open("wb") as file:
        file.write(container.pack_header(metadata, infos))
        for size in sizes:
            file.write(bytes(-(-2 * size // 32) * 32))  # zeros are quantized at once


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    paths = {name: folder / f"{i}.gguf" for i, name in enumerate(MODELS)}
    for name, path in paths.items():
        write_model(path, MODELS[name])
    return paths


def chosen(file_type: str, model: dict[str, Any], **options: Any) -> dict[str, str]:
    choices = mixtures.choose(file_type, facts_of(model), tensors_of(model), **options)
    assert all(choice.why for choice in choices.values())
    return {name: choice.type for name, choice in choices.items()}


def written(path: Path) -> dict[str, str]:
    return {t.name: t.type.name for t in container.read(path).tensors.values() if t.type}


def keeps_f16(types: dict[str, str]) -> dict[str, str]:
    """The quantizer keeps vectors of an f16 source in f16, where the converter makes them f32."""
    kept = ("_norm.weight", "ffn_gate_inp.weight")
    return {name: "f16" if name.endswith(kept) else kind for name, kind in types.items()}


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_types_are_llama_cpps(
    name: str, file_type: str, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    quantize(files[name], out, mixtures.FILE_TYPES[file_type])
    assert written(out) == keeps_f16(chosen(file_type, MODELS[name]))


@pytest.mark.parametrize("file_type", WITH_IMPORTANCE)
@pytest.mark.parametrize("name", [n for n in MODELS if n not in SAME_WITH_IMPORTANCE])
def test_types_with_importance_are_llama_cpps(
    name: str, file_type: str, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    importance = {
        t.name: np.ones((*t.shape[:-2], t.shape[-1]), dtype=np.float32)
        for t in tensors_of(MODELS[name])
        if len(t.shape) > 1
    }
    quantize(files[name], out, mixtures.FILE_TYPES[file_type], importance=importance)
    assert written(out) == keeps_f16(chosen(file_type, MODELS[name], importance=True))


@pytest.mark.parametrize("file_type", ["q4_k_m", "q4_0", "q8_0"])
def test_pure_and_named_types(file_type: str, files: dict[str, Path], tmp_path: Path) -> None:
    for number, name in enumerate(("odd rows", "qwen2, tied, grouped by 4", "8 experts")):
        out = tmp_path / f"{number}.gguf"
        quantize(files[name], out, mixtures.FILE_TYPES[file_type], pure=True)
        assert written(out) == keeps_f16(chosen(file_type, MODELS[name], pure=True))
        quantize(files[name], out, mixtures.FILE_TYPES[file_type], output_type=13, embedding_type=8)
        types = chosen(file_type, MODELS[name], output_type="q5_k", embedding_type="q8_0")
        assert written(out) == keeps_f16(types)


def test_every_file_type_and_its_number() -> None:
    import llama_cpp

    for name, number in mixtures.FILE_TYPES.items():
        constant = {"f32": "ALL_F32"}.get(name, f"MOSTLY_{name.upper()}")
        assert getattr(llama_cpp, f"LLAMA_FTYPE_{constant}") == number


def test_overrides_win_in_order_and_fall_back_with_a_reason() -> None:
    model = MODELS["odd rows"]
    choices = mixtures.choose(
        "f16", facts_of(model), tensors_of(model),
        overrides=[(r"blk\.[01]\.ffn_down", "q6_k"), ("ffn_down", "q4_0"), ("norm", "q4_0")],
    )  # fmt: skip
    assert choices["blk.1.ffn_down.weight"].type == "q8_0"
    assert "288" in choices["blk.1.ffn_down.weight"].why
    assert choices["blk.2.ffn_down.weight"].type == "q4_0"
    assert choices["blk.0.attn_norm.weight"].type == "f32"
    assert choices["blk.0.ffn_up.weight"].type == "f16"


@pytest.mark.parametrize(
    ("file_type", "options"),
    [
        ("q9_k", {}),
        ("q4_k_m", {"overrides": [("ffn", "q9")]}),
        ("q4_k_m", {"overrides": [("(", "q4_0")]}),
        ("q4_k_m", {"output_type": "none"}),
        ("q4_k_m", {"embedding_type": "Q4"}),
    ],
)
def test_mistakes_are_usage_errors(file_type: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        chosen(file_type, MODELS["8 experts"], **options)


@pytest.mark.parametrize("file_type", WITH_IMPORTANCE)
def test_file_types_refused_without_importance_are_llama_cpps(
    file_type: str, files: dict[str, Path], tmp_path: Path
) -> None:
    types = chosen(file_type, MODELS["qwen2, 16 layers"])
    is_refused = any(mixtures.requires_importance(file_type, *item) for item in types.items())
    with pytest.raises(AssertionError) if is_refused else nullcontext():
        quantize(files["qwen2, 16 layers"], tmp_path / "out", mixtures.FILE_TYPES[file_type])


def test_what_needs_importance() -> None:
    assert mixtures.requires_importance("iq2_xs", "blk.0.ffn_up.weight", "iq2_xs")
    assert mixtures.requires_importance("q2_k_s", "blk.0.ffn_up.weight", "q2_k")
    assert not mixtures.requires_importance("q2_k", "blk.0.ffn_up.weight", "q2_k")
    assert not mixtures.requires_importance("iq2_m", "output.weight", "iq2_s")
    assert mixtures.requires_importance("iq2_xs", "output.weight", "iq2_xs")  # libggml itself stops
