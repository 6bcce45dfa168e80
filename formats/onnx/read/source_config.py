"""The config of a model that was read from a graph.

Where there is no ``config.json``, the config is put together from ``genai_config.json`` and the
graph: sizes from weights, constants from the attributes of nodes, the rotation from its tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from zenconvert.errors import InvalidInput, Unsupported
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.onnx.genai_config import NAME as GENAI_CONFIG
from zenconvert.formats.onnx.read.container import ModelFile
from zenconvert.formats.onnx.read.graph_view import GraphView, attributes, inputs
from zenconvert.formats.onnx.read.recognition import Found
from zenconvert.formats.onnx.rotary import rotated
from zenconvert.model.architecture import Architecture, architectures
from zenconvert.model.encoding import Dense

CONFIG: Final = "config.json"
_HINT: Final = f"put the model's {CONFIG} beside it, or name one with --config"
_SINES: Final = {
    ("com.microsoft", "GroupQueryAttention"): 8,
    ("com.microsoft", "RotaryEmbedding"): 3,
    ("", "RotaryEmbedding"): 2,
}
"""Operators → the input that is their table of sines."""
_TOLERANCE: Final = {"f32": 2e-6, "f16": 1e-3}
"""Of cosines and sines."""
_ROWS: Final = 1 << 12
"""Rows of a table of sines that are looked at."""
_SIZES: Final = ("hidden_size", "head_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads")  # fmt: skip
_TOLD_BY_CONFIG: Final = {
    "score_width", "score_softcap", "logit_softcap", "sliding_theta", "score_growth", "score_scale",
    "embedding_factor", "residual_factor", "logit_factor", "logit_divisor",
}  # fmt: skip
_NORMS: Final = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization",
                 "RMSNormalization", "LayerNormalization")  # fmt: skip


def config_of(file: ModelFile, folder: Path, view: GraphView, found: list[Found]) -> dict[str, Any]:
    """The config in the vocabulary of transformers.

    Raises InvalidInput and Unsupported where files and graph do not say enough.
    """
    if (folder / CONFIG).is_file():
        return read_json(folder / CONFIG)
    if not (folder / GENAI_CONFIG).is_file():
        raise InvalidInput(
            f"{file.path}: neither {CONFIG} nor {GENAI_CONFIG} is in {folder}; {_HINT}"
        )
    return _rebuilt(file, read_json(folder / GENAI_CONFIG), view, found)


def _rebuilt(
    file: ModelFile, genai: Mapping[str, Any], view: GraphView, found: list[Found]
) -> dict[str, Any]:
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise InvalidInput(f"{file.path.parent / GENAI_CONFIG}: there is no model.decoder; {_HINT}")
    model_type = model.get("type")
    known = {t: a for a in architectures().values() for t in a.model_types}
    if not isinstance(model_type, str) or model_type not in known:
        raise Unsupported(
            f"{file.path.parent / GENAI_CONFIG}: from the type {model_type!r:.100} alone the model "
            f"cannot be told; {_HINT}"
        )
    if known[model_type].block.scales_embedding or _TOLD_BY_CONFIG & known[model_type].names.keys():
        raise Unsupported(
            f"{file.path}: what {model_type} models compute stands in their config alone; {_HINT}"
        )
    for key in _SIZES:
        if not isinstance(decoder.get(key), int):
            raise InvalidInput(
                f"{file.path.parent / GENAI_CONFIG}: model.decoder.{key} should be an integer, "
                f"found {decoder.get(key)!r:.100}"
            )
    theta = _rotation(file, view, decoder.get("head_size"))
    config: dict[str, Any] = {
        "architectures": [known[model_type].hf_class],
        "model_type": model_type,
        "hidden_size": decoder.get("hidden_size"),
        "intermediate_size": _rows(found, ".gate_proj"),
        "num_hidden_layers": decoder.get("num_hidden_layers"),
        "num_attention_heads": decoder.get("num_attention_heads"),
        "num_key_value_heads": decoder.get("num_key_value_heads"),
        "vocab_size": model.get("vocab_size"),
        "max_position_embeddings": model.get("context_length"),
        "hidden_act": "silu",
        "rms_norm_eps": _epsilon(file, view),
        "rope_theta": theta,
        "tie_word_embeddings": False,
    }
    usual = known[model_type].defaults.get("head_dim") or (
        decoder["hidden_size"] // max(decoder["num_attention_heads"], 1)
    )
    if usual != decoder["head_size"]:
        config["head_dim"] = decoder["head_size"]
    config |= _window(view, decoder)
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    return config | {key: model[key] for key in tokens if model.get(key) is not None}


def _rows(found: list[Found], part: str) -> int | None:
    """Outputs of the first matrix whose name has a part."""
    for item in found:
        if item.matrix is not None and any(part in t.replace("/", ".") for t in item.texts):
            return item.matrix.shape[0]
    return None


def _epsilon(file: ModelFile, view: GraphView) -> float:
    for node in view.nodes:
        epsilon = attributes(node).get("epsilon") if node.op_type in _NORMS else None
        if isinstance(epsilon, float):
            # the attribute is a float32; the config has the decimal that it came from
            return float(str(np.float32(epsilon)))
    raise Unsupported(f"{file.path}: no norm says what its epsilon is; {_HINT}")


def _window(view: GraphView, decoder: Mapping[str, Any]) -> dict[str, Any]:
    sizes = [
        attributes(node).get("local_window_size", -1)
        for node in view.nodes
        if node.op_type == "GroupQueryAttention"
    ]
    if not all(isinstance(size, int) for size in sizes):
        raise InvalidInput(f"{view.file.path}: local_window_size should be an integer everywhere")
    kinds = set(sizes)
    if not kinds or kinds == {-1}:
        declared = decoder.get("sliding_window")
        # the builder of onnxruntime-genai drops Mistral's window from the graph
        size = declared.get("window_size") if isinstance(declared, dict) else None
        return {"sliding_window": size if isinstance(size, int) else None}
    types = ["full_attention" if s == -1 else "sliding_attention" for s in sizes]
    found: dict[str, Any] = {"sliding_window": max(kinds), "use_sliding_window": True}
    return found | ({"layer_types": types} if len(kinds) > 1 else {})


def _rotation(file: ModelFile, view: GraphView, head: Any) -> float:
    """``rope_theta`` of plain rotary embeddings, from their table of sines."""
    for node in view.nodes:
        place = _SINES.get((node.domain, node.op_type))
        if place is None:
            continue
        table = view.initializer(inputs(node, place + 1)[place])
        if table is None or len(table.shape) != 2 or table.dtype not in _TOLERANCE:
            break
        if not isinstance(head, int) or table.shape[1] * 2 != head or table.shape[0] < 2:
            break
        dtype, width = Dense(table.dtype).numpy, table.shape[1]
        data = table.read(_ROWS * width * dtype.itemsize)
        sines = np.frombuffer(data, dtype=dtype).reshape(-1, width).astype(np.float64)
        return _theta(file, sines, _TOLERANCE[table.dtype])
    raise Unsupported(f"{file.path}: the graph does not show how it rotates positions; {_HINT}")


def _theta(file: ModelFile, sines: np.ndarray, tolerance: float) -> float:
    half = sines.shape[1]
    exponents = np.arange(half) / half
    # rotations by one position: small angles, where the sine tells them well
    angles = np.arcsin(np.clip(sines[1], -1, 1))
    rates = angles[1:] if half > 1 else angles
    with np.errstate(all="ignore"):  # whatever the file holds
        theta = float(np.exp(-np.median(np.log(np.abs(rates)) / exponents[1:])))
    if not 0 < theta < float("inf"):
        raise Unsupported(f"{file.path}: its table of sines is none; {_HINT}")
    for candidate in (float(f"{theta:.2g}"), float(f"{theta:.4g}"), round(theta), theta):
        expected = np.sin(np.arange(len(sines))[:, None] * candidate**-exponents)
        # angles were rounded to float32 before their sine was taken
        slack = tolerance + np.arange(len(sines))[:, None] * 2.0**-23
        if bool((np.abs(expected - sines) <= slack).all()):
            return float(candidate)
    raise Unsupported(
        f"{file.path}: its rotary embeddings are scaled in a way of their own; {_HINT}"
    )


def check_rotations(
    view: GraphView, architecture: Architecture, windows: Sequence[int | None]
) -> None:
    """Raise InvalidInput where other layers rotate positions than in the family.

    Graphs that rotate outside of attention are taken at their word.
    """
    found = [
        bool(attributes(node).get("do_rotary", 0))
        for node in view.nodes
        if node.op_type == "GroupQueryAttention"
    ]
    if any(found) and found != (wanted := rotated(architecture, windows)):
        layers = [i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b]
        raise InvalidInput(
            f"{view.file.path}: {architecture.id} models of {len(wanted)} layers rotate positions "
            f"in {sum(wanted)} of them, the graph in {sum(found)} of {len(found)}, otherwise in "
            f"layers {layers[:8]}"
        )
