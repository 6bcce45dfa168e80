"""Whose names and places the files of a graph have.

onnxruntime-genai: ``model.onnx`` and ``model.onnx.data`` beside ``genai_config.json``.
transformers.js: ``onnx/model_q4.onnx`` and ``onnx/model_q4.onnx_data``, which ``config.json``
announces; the name says what the graph is made of.

Sources: onnxruntime-genai ``src/config.cpp``; transformers.js ``src/utils/dtypes.js`` and
``src/models/session.js`` and ``src/models/registry.js``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zenconvert.errors import UsageError
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.hf.tokenizer_files import TokenizerFiles
from zenconvert.formats.onnx.genai_config import NAME as GENAI_CONFIG
from zenconvert.formats.onnx.genai_config import genai_config
from zenconvert.formats.onnx.write.target_type import TargetType
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layout import Choice

GENAI: Final = "genai"
TRANSFORMERS_JS: Final = "transformers.js"
SETTINGS: Final = "tokenizer_config.json"
_CHUNK: Final = 2_000_000_000
"""Largest file that browsers take into one buffer."""
# (bits of the linear weights, type of the activations) → dtype of transformers.js
_DTYPES: Final = {
    (None, "f32"): "fp32",
    (None, "f16"): "fp16",
    (8, "f32"): "int8",
    (4, "f32"): "q4",
    (4, "f16"): "q4f16",
    (2, "f32"): "q2",
    (2, "f16"): "q2f16",
}
# fmt: off
TRANSFORMERS_JS_TYPES: Final = frozenset({
    "arcee", "cohere", "cohere2", "deepseek_v3", "ernie4_5", "exaone", "falcon", "gemma", "gemma2",
    "gemma3_text", "glm", "gpt2", "gpt_neox", "gpt_oss", "granite", "helium", "lfm2", "llama",
    "ministral", "mistral", "nemotron_h", "olmo", "olmo2", "olmo3", "phi", "phi3", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
})
# fmt: on
"""Model types that transformers.js 4.3 has, of those that are text models here or may become so."""


@dataclass(frozen=True, slots=True)
class Names:
    """Where the graph and its data go."""

    folder: str
    """With a slash at its end, or empty."""
    graph: str
    data: str
    """Of the first data file; further ones add ``_1`` …"""
    dtype: str = ""
    """Of transformers.js."""
    limit: int | None = None
    """Largest data file in bytes, where the layout has one."""


def names(layout: str | None, kind: TargetType, choices: Sequence[Choice]) -> Names:
    """The names in a layout. Raises UsageError for an unknown one, or a mixture without a name."""
    if layout in {None, GENAI}:
        return Names("", "model.onnx", "model.onnx.data")
    if layout != TRANSFORMERS_JS:
        raise UsageError(
            f"there is no layout {layout!r} of ONNX files; known are {GENAI} and {TRANSFORMERS_JS}"
        )
    bits = [grid.bits for c in choices if (grid := c.encoding.grouped) is not None]
    most = max(bits, key=bits.count) if bits else None
    key = (most, str(kind.floats))
    if key not in _DTYPES:
        raise UsageError(f"transformers.js has no name for {most} bits with {kind.floats}")
    dtype = _DTYPES[key]
    graph = "model.onnx" if dtype == "fp32" else f"model_{dtype}.onnx"
    return Names("onnx/", graph, f"{graph}_data", dtype, _CHUNK)


def tables(
    found: Names, config: Mapping[str, Any], checkpoint: Checkpoint, kind: TargetType, files: int
) -> dict[str, dict[str, Any]]:
    """The JSON files of a layout; ``files`` is the number of data files."""
    if not found.dtype:
        genai = genai_config(checkpoint, found.graph, shares_cache=not kind.standard)
        return {"config.json": dict(config), GENAI_CONFIG: genai}
    announced: dict[str, Any] = {
        "dtype": found.dtype,
        "use_external_data_format": {found.graph: files},
    }
    if str(kind.floats) == "f16":
        announced["kv_cache_dtype"] = {found.dtype: "float16"}
    found_tables = {"config.json": {**config, "transformers.js_config": announced}}
    settings = _with_templates(checkpoint)
    return found_tables if settings is None else {**found_tables, SETTINGS: settings}


def _with_templates(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """tokenizer_config.json with the chat templates of files beside it, where there are some.

    transformers.js looks for templates there alone.
    """
    file = (checkpoint.side_files or {}).get(SETTINGS)
    folder = next(
        (p.parent for n, p in (checkpoint.side_files or {}).items() if "/" not in n), None
    )
    if folder is None:
        return None
    files = TokenizerFiles(folder, checkpoint.hyperparameters.vocab)
    default, named = files.templates()
    template: Any = default
    if named:
        rows = {"default": default, **named} if default is not None else named
        template = [{"name": name, "template": text} for name, text in rows.items()]
    settings = read_json(file) if file is not None else {}
    if template is None or settings.get("chat_template") == template:
        return None
    return {**settings, "chat_template": template}
