"""What a folder says of its model beside config and weights: the model card, how to generate text.

Both are optional. Whatever is wrong with them never stops anything: their facts are left out, and
a warning says so. Source of the keys: the Hub's model cards, transformers' GenerationConfig.
"""

from __future__ import annotations

import datetime
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

from zenconvert.base.source_files import is_there, read_text
from zenconvert.errors import InvalidInput, SourceNotFound
from zenconvert.formats.hf.json_file import read_json

CARD: Final = "README.md"
GENERATION: Final = "generation_config.json"
_MOST_CARD: Final = 48 * 1024
"""Bytes of front matter: YAML of this size is read in less than a second."""
_MOST_README: Final = 16 * 1024 * 1024
_MOST_GENERATION: Final = 1024 * 1024
_RULE: Final = "---"
_DEEPEST: Final = 64

_WORDS: Final = frozenset(
    {
        "name", "model_name", "author", "model_author", "model_creator", "version", "model_version",
        "organization", "model_organization", "finetune", "model_finetune", "basename",
        "model_basename", "model_type", "description", "model_description", "size_label",
        "model_size_label", "license_name", "license_link", "url", "model_url", "doi", "model_doi",
        "uuid", "model_uuid", "repo_url", "model_repo_url", "pipeline_tag",
    }
)  # fmt: skip
_LISTS: Final = frozenset(
    {"license", "tags", "language", "languages", "dataset", "datasets", "base_model", "base_models"}
)
_MAPPINGS: Final = frozenset({"dataset", "datasets", "base_model", "base_models"})
"""Lists whose members may be tables of words."""
_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_COUNTS: Final = (
    "top_k", "penalty_last_n", "mirostat", "max_length", "max_new_tokens", "min_length",
    "min_new_tokens", "num_beams", "num_beam_groups", "num_return_sequences",
    "no_repeat_ngram_size",
)  # fmt: skip
_NUMBERS: Final = (
    "temperature", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold",
    "penalty_repeat", "repetition_penalty", "mirostat_tau", "mirostat_eta", "length_penalty",
    "diversity_penalty",
)  # fmt: skip
_TRUTH: Final = "tag:yaml.org,2002:bool"
_WORD_BITS: Final = 64
_FLAGS: Final = ("do_sample", "early_stopping")
_INT32: Final = 1 << 31
_FLOAT32: Final = 3.4028234663852886e38


@cache
def _loader() -> Any:
    """YAML's loader, for which ``no`` is Norwegian and no truth value."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers: ClassVar = {
            first: [row for row in rows if row[0] != _TRUTH]
            for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver(_TRUTH, re.compile("true|True|TRUE|false|False|FALSE"), "tTfF")
    return Loader


def _parsed(text: str) -> Any:
    """YAML without aliases, by which a few lines stand for gigabytes, and without deep nesting.

    Raises YAMLError. libyaml reads it where PyYAML has it: in a tenth of the time.
    """
    import yaml

    loader = _loader()
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        depth += isinstance(event, yaml.events.CollectionStartEvent)
        depth -= isinstance(event, yaml.events.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"nested more than {_DEEPEST} deep")
    try:
        return yaml.load(text, Loader=loader)
    except (LookupError, AttributeError, TypeError) as error:  # of values that no tag fits
        raise yaml.YAMLError(f"a value is not of its tag: {error!r}") from error


def read_card(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Front matter of the model card and warnings; {} where there is none, or none that is read."""
    path = folder / CARD
    if not is_there(path):
        return {}, []
    import yaml  # slow to load

    try:
        card = _front_matter(read_text(path, _MOST_README))
        facts = {key: value for key, value in card.items() if _is_right(key, value)}
        return facts, _left_out(path, card, facts)
    except SourceNotFound:
        raise
    except (InvalidInput, yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        text = " ".join(str(error).split())
        return {}, [f"{path}: the card is not understood, and its facts are left out: {text:.200}"]


def _front_matter(text: str) -> dict[str, Any]:
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != _RULE:
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == _RULE), None)
    if end is None:
        return {}
    block = "\n".join(lines[1:end])
    if len(block) > _MOST_CARD:
        raise ValueError(f"front matter of {len(block)} characters; at most {_MOST_CARD} are read")
    card = _parsed(block)
    if card is None:
        return {}
    if not isinstance(card, dict):
        raise ValueError(f"expected keys and values, found {type(card).__name__}")  # noqa: TRY004
    return card


def _is_right(key: object, value: Any) -> bool:
    """Whether a value is of the kind that belongs under its key."""
    if not isinstance(key, str) or not _is_text(key):
        return False
    if value is None:
        return True
    if key in _WORDS:
        return _is_word(value)
    if key in _LISTS:
        members = value if isinstance(value, list) else [value]
        return all(
            _is_word(member)
            or member is None
            or (key in _MAPPINGS and isinstance(member, dict) and _is_table(member))
            for member in members
        )
    return True


def _is_table(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and (v is None or _is_word(v)) for k, v in value.items())


def _is_word(value: Any) -> bool:
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, int):
        return value.bit_length() <= _WORD_BITS
    return isinstance(value, float | datetime.date)


def _is_text(value: str) -> bool:
    """Whether a text can be written: half a surrogate pair is no character."""
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)


def is_carried(path: Path) -> bool:
    """Whether a ``generation_config.json`` can go into an output as it is."""
    try:
        read_json(path, _MOST_GENERATION)
    except SourceNotFound:
        raise
    except InvalidInput:
        return False
    return True


def read_generation(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """``generation_config.json`` and warnings; {} where there is none, or none that is read."""
    path = folder / GENERATION
    if not is_there(path):
        return {}, []
    try:
        given = read_json(path, _MOST_GENERATION)
        facts = {key: value for key, value in given.items() if _generates(key, value)}
        return facts, _left_out(path, given, facts)
    except SourceNotFound:
        raise
    except (InvalidInput, RecursionError) as error:
        return {}, [f"{path}: not understood, and its facts are left out: {error!s:.300}"]


def _generates(key: str, value: Any) -> bool:
    if value is None:
        return True
    if key in _TOKENS:
        members = value if isinstance(value, list) else [value]
        return all(_is_number(m) and m == int(m) and 0 <= m < _INT32 for m in members)
    if key in _COUNTS:
        return _is_number(value) and value == int(value) and -_INT32 <= value < _INT32
    if key in _NUMBERS:
        return _is_number(value) and abs(value) <= _FLOAT32
    if key in _FLAGS:
        return isinstance(value, bool | str)
    if key == "sequence":
        return isinstance(value, str) and _is_text(value)
    return _is_finite(value)


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and (isinstance(value, int) or math.isfinite(value))


def _is_finite(value: Any) -> bool:
    """No number in it is infinite or none, and every text can be written."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return _is_text(value)
    parts: Iterator[Any] = iter(())
    if isinstance(value, dict):
        parts = iter([*value, *value.values()])
    elif isinstance(value, list):
        parts = iter(value)
    return all(_is_finite(part) for part in parts)


def _left_out(path: Path, given: Mapping[Any, Any], kept: Mapping[Any, Any]) -> list[str]:
    """One line on the facts that are of the wrong kind."""
    wrong = {key: value for key, value in given.items() if key not in kept}
    if not wrong:
        return []
    shown = ", ".join(f"{_shown(key)}: {_shown(value)}" for key, value in list(wrong.items())[:3])
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return [f"{path}: left out, since these values make no sense there: {shown}{more}"]


def _shown(value: object) -> str:
    """A value in a few words; a long number has no digits that Python would print."""
    if isinstance(value, int) and value.bit_length() > _WORD_BITS:
        return f"a number of {value.bit_length()} bits"
    return reprlib.repr(value)
