"""Keys of JSON files that name code to run, or that belong to the program that wrote the file.

transformers looks some of them up as modules, kernels or files of the Hub (``auto_map``,
``attn_implementation``; CVE-2026-4372: ``_attn_implementation_internal`` although remote code is
off). What begins with an underscore is transformers' own state. None of them says what a model
computes: they are not handed on, neither to an engine nor into an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zenconvert.errors import InvalidInput
from zenconvert.formats.hf.json_file import read_json
from zenconvert.formats.hf.side_facts import GENERATION
from zenconvert.formats.hf.spare import usable

FILES: Final = (
    "config.json",
    GENERATION,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Files of a model folder in which transformers looks for such keys."""

_NAMED: Final = {
    "attn_implementation",
    "auto_map",
    "code_revision",
    "custom_generate",
    "custom_pipelines",
    "experts_implementation",
    "trust_remote_code",
    "use_kernels",
}
_USUAL: Final = {"_commit_hash", "_from_model_config", "_name_or_path"}
"""What every folder has that transformers saved; nobody needs to be told."""


def is_foreign(key: object, value: object = None) -> bool:
    """Whether a key is none of a model's."""
    if key == "__type" and value == "AddedToken":  # how transformers 4 writes a token with flags
        return False
    return isinstance(key, str) and (key.startswith("_") or key in _NAMED)


def without_foreign(value: Any) -> Any:
    """JSON without such keys, at any depth."""
    if isinstance(value, Mapping):
        return {k: without_foreign(v) for k, v in value.items() if not is_foreign(k, v)}
    if isinstance(value, list):
        return [without_foreign(item) for item in value]
    return value


def foreign_keys(value: Any) -> list[str]:
    """Such keys at any depth, sorted."""
    if isinstance(value, Mapping):
        inner = [name for v in value.values() for name in foreign_keys(v)]
        return sorted({*inner, *(key for key, v in value.items() if is_foreign(key, v))})
    if isinstance(value, list):
        return sorted({name for item in value for name in foreign_keys(item)})
    return []


def foreign_files(folder: Path) -> dict[str, Any]:
    """Name → JSON without such keys, of every file of a folder that has some.

    Raises CorruptFile for a file that is no JSON object.
    """
    return {n: without_foreign(v) for n, v in _tables(folder).items() if foreign_keys(v)}


def foreign_warnings(folder: Path) -> list[str]:
    """What is left out of a folder's files, one line a file. Raises as :func:`foreign_files`."""
    told = []
    for name, table in _tables(folder).items():
        keys = [k for k in foreign_keys(table) if k not in _USUAL]
        if keys:
            told.append(
                f"{folder / name}: {', '.join(map(repr, keys))} may name code or state of a "
                "program and say nothing of the model; left out"
            )
    return told


def _tables(folder: Path) -> dict[str, dict[str, Any]]:
    """The files that there are; generation settings that are no table do not travel anyway."""
    found = {}
    for name in FILES:
        if usable(folder, name):
            try:
                found[name] = read_json(folder / name)
            except InvalidInput:
                if name != GENERATION:
                    raise
    return found
