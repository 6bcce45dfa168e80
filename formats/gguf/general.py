"""``general.*`` key/values of a model that was not GGUF before.

Sources, strongest first: the model card's front matter, the config's name, the folder's name.
As ``gguf.Metadata`` of llama.cpp's gguf-py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

from zenconvert.formats.gguf import model_name as naming
from zenconvert.formats.gguf.container import KeyValue
from zenconvert.formats.gguf.generation import sampling_keys
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.model.layout import Choice

_CARD_KEYS: Final = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
_FROM_NAME: Final = ("organization", "basename", "finetune", "version", "size_label")
_ORDER: Final = (
    "name", "author", "version", "organization", "finetune", "basename", "description",
    "size_label", "license", "license.name", "license.link",
    "source.url", "source.doi", "source.uuid", "source.repo_url",
)  # fmt: skip
_RELATED_KEYS: Final = (
    "name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url",
)  # fmt: skip
_HUB: Final = "https://huggingface.co/"


def general_metadata(checkpoint: Checkpoint, choices: Sequence[Choice]) -> dict[str, KeyValue]:
    """``general.*`` in the converter's order, without architecture, file type and version."""
    metadata = checkpoint.metadata
    total, shared, one_expert, experts = _parameters(choices)
    values: dict[str, Any] = {}
    for key, sources in _CARD_KEYS.items():
        found = next((metadata.card[s] for s in sources if metadata.card.get(s) is not None), None)
        if found is not None:
            values[key] = found
    for model_id in _model_ids(checkpoint):
        _fill_from_name(values, naming.parse(model_id, total))
    values.setdefault("size_label", naming.size_label(total, shared, one_expert, experts))
    if isinstance(values.get("license"), list):
        values["license"] = ",".join(str(name) for name in values["license"] if name is not None)
    return {
        "general.type": ("str", "model"),
        **sampling_keys(metadata.generation),
        **{f"general.{key}": ("str", str(values[key])) for key in _ORDER if key in values},
        **_related("base_model", _listed(metadata.card, "base_model", "base_models"), total),
        **_related("dataset", _listed(metadata.card, "datasets", "dataset"), total),
        **_lists(metadata.card),
    }


def name_of(checkpoint: Checkpoint) -> str:
    """``general.name`` of a file of the checkpoint; empty for none."""
    carried = {k: v for k, v in checkpoint.metadata.carried.items() if k.startswith("general.")}
    keys = carried or general_metadata(checkpoint, ())
    return str(keys.get("general.name", ("str", ""))[1])


def _parameters(choices: Sequence[Choice]) -> tuple[int, int, int, int]:
    """Total, shared, one expert's parameters and the number of experts, as stored."""
    total = shared = one_expert = experts = 0
    for choice in choices:
        size = prod(choice.shape)
        total += size
        if "_exps." in choice.name and len(choice.shape) >= 3:
            experts = choice.shape[0]
            one_expert += size // experts
        else:
            shared += size
    return total, shared, one_expert, experts


def _model_ids(checkpoint: Checkpoint) -> list[str]:
    """Names to read, strongest first; a local path in the config is no name."""
    named = checkpoint.config.get("_name_or_path")
    ids = [named] if isinstance(named, str) and named and named.count("/") <= 1 else []
    return [*ids, checkpoint.metadata.label]


def _fill_from_name(values: dict[str, Any], parts: naming.NameParts) -> None:
    values.setdefault("name", naming.title(parts.name))
    for field in _FROM_NAME:
        found = getattr(parts, field)
        if found is not None:
            values.setdefault(field, naming.title(found) if field == "organization" else found)


def _listed(card: Mapping[str, Any], *keys: str) -> list[Any] | None:
    for key in keys:
        if key in card:
            value = card[key]
            return value if isinstance(value, list) else [] if value is None else [value]
    return None


def _related(kind: str, entries: list[Any] | None, parameters: int) -> dict[str, KeyValue]:
    """Base models or data sets: a count and facts for each."""
    if entries is None:
        return {}
    keys: dict[str, KeyValue] = {f"general.{kind}.count": ("u32", len(entries))}
    for number, entry in enumerate(entries):
        facts = entry if isinstance(entry, Mapping) else _related_facts(str(entry), parameters)
        for key in _RELATED_KEYS:
            if key in facts:
                keys[f"general.{kind}.{number}.{key}"] = ("str", str(facts[key]))
    return keys


def _related_facts(entry: str, parameters: int) -> dict[str, str]:
    facts: dict[str, str] = {}
    model_id: str | None = entry
    if entry.startswith(("http://", "https://", "ssh://")):
        facts["repo_url"] = entry
        match = re.fullmatch(r"https?://huggingface\.co/([^/]+/[^/]+)", entry)
        model_id = match[1] if match else None
    if model_id is None:
        return facts
    parts = naming.parse(model_id, parameters)
    facts["name"] = naming.title(parts.name)
    if parts.organization is not None:
        facts["organization"] = naming.title(parts.organization)
        facts.setdefault("repo_url", f"{_HUB}{parts.organization}/{parts.name}")
    if parts.version is not None:
        facts["version"] = parts.version
    return facts


def _lists(card: Mapping[str, Any]) -> dict[str, KeyValue]:
    keys: dict[str, KeyValue] = {}
    for name, sources in (
        ("tags", ("tags", "pipeline_tag")),
        ("languages", ("languages", "language")),
    ):
        found = [_listed(card, source) for source in sources if card.get(source) is not None]
        if found:
            keys[f"general.{name}"] = (
                "arr:str",
                [str(v) for values in found for v in values or ()],
            )
    return keys
