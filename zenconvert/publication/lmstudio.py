"""LM Studio's ``model.yaml`` for a shelf of GGUF files.

Source: lmstudio.ai/docs/app/modelyaml, a draft: ``model`` (publisher/model), ``base`` (entries with
a key and the sources to fetch them from), ``metadataOverrides`` (for display only), ``config``
(fields of loading and of prediction).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from zenconvert.publication.facts import ReleaseFacts, VariantFacts
from zenconvert.publication.modelfile import USUAL_CONTEXT
from zenconvert.publication.names import repository_name
from zenconvert.verification.figures import parameter_count

MODEL_YAML: Final = "model.yaml"
_LOCAL: Final = "local"
_OTHER: Final = re.compile(r"[^a-z0-9._-]+")


def model_yaml(facts: ReleaseFacts, variants: Sequence[VariantFacts]) -> str:
    """The file. Without a place on the Hub its base is what ``lms import`` made of the files."""
    import yaml

    source = facts.source
    shelf = variants[0].shelf
    repository = repository_name(facts, shelf)
    base: dict[str, Any] = {"key": f"{facts.hub or _LOCAL}/{repository}".lower()}
    if facts.hub is not None:
        base["sources"] = [{"type": "huggingface", "user": facts.hub, "repo": repository}]
    context = min(source.context, USUAL_CONTEXT)
    value = {
        "model": f"{facts.hub or _LOCAL}/{_OTHER.sub('-', facts.name.lower()).strip('-.')}",
        "base": [base],
        "metadataOverrides": {
            "domain": "llm",
            "architectures": [source.model_type],
            "compatibilityTypes": ["gguf"],
            "paramsStrings": [parameter_count(source.parameters)],
            "minMemoryUsageBytes": min(v.size for v in variants if v.is_made),
            "contextLengths": [source.context],
            "vision": False,
        },
        "config": {"load": {"fields": [{"key": "llm.load.contextLength", "value": context}]}},
    }
    return yaml.safe_dump(value, sort_keys=False)
