"""``bom.cdx.json``: a CycloneDX 1.6 machine-learning bill of materials of a shelf.

Source: the CycloneDX 1.6 JSON schema and ECMA-424. A variant is a ``machine-learning-model`` whose
pedigree names the original, whose model card has the figures per language, and whose components are
its files with their digests; texts are ``data`` components. The serial number is a UUIDv5 of the
content and there is no timestamp: the same release has the same bill.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from zenconvert.base.escaping import json_text
from zenconvert.publication.facts import CalibrationFacts, ReleaseFacts, VariantFacts
from zenconvert.publication.names import repository_name
from zenconvert.verification.drift import Drift
from zenconvert.verification.report import Report

BOM: Final = "bom.cdx.json"
_MODEL: Final = "machine-learning-model"
_CALIBRATION: Final = "data:calibration"
_EVALUATION: Final = "data:evaluation"
_METRICS: Final = {
    "kl.mean": "mean KL divergence from the original, nats a token",
    "perplexity.ratio": "perplexity over the original's",
    "top1": "share of positions with the original's first choice",
}


def bom(
    facts: ReleaseFacts, shelf: str, variants: Sequence[VariantFacts], digests: Mapping[str, str]
) -> dict[str, Any]:
    """The bill; ``digests`` has the SHA-256 of every file of the shelf that it is to name.

    Files that belong to no variant (an importance matrix) are components of their own.
    """
    made = [v for v in variants if v.is_made]
    of_variants = {name for variant in made for name in variant.files}
    evaluation = next((v.report for v in made if v.report is not None), None)
    components = [
        *(_model(facts, v, {n: digests[n] for n in v.files if n in digests}) for v in made),
        *(_file(shelf, n, d) for n, d in digests.items() if n not in of_variants),
        *_texts(facts.calibration, evaluation),
    ]
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {"type": "application", "name": "zenconvert", "version": facts.version}
                ]
            },
            "component": {
                "type": _MODEL,
                "bom-ref": f"shelf:{shelf}",
                "name": repository_name(facts, shelf),
                **_licences(facts),
            },
        },
        "components": components,
        "dependencies": [
            {"ref": f"shelf:{shelf}", "dependsOn": [c["bom-ref"] for c in components]}
        ],
    }
    return {"serialNumber": f"urn:uuid:{_serial(content)}", **content}


def bom_bytes(value: Mapping[str, Any]) -> bytes:
    """The file."""
    return (json_text(value, indent=1) + "\n").encode()


def bom_digests(value: Mapping[str, Any]) -> dict[str, str]:
    """File → SHA-256 as a bill says it. Raises KeyError, TypeError or AttributeError."""
    found = {}
    pending = list(value["components"])
    while pending:
        component = pending.pop()
        pending += component.get("components", [])
        if component["type"] == "file":
            hashes = {entry["alg"]: entry["content"] for entry in component["hashes"]}
            found[str(component["name"])] = str(hashes["SHA-256"])
    return found


def _serial(content: Mapping[str, Any]) -> uuid.UUID:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{digest}")


def _licences(facts: ReleaseFacts) -> dict[str, Any]:
    licence = facts.source.licence
    return {} if licence is None else {"licenses": [{"license": {"name": licence}}]}


def _file(owner: str, name: str, digest: str) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{owner}:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def _model(
    facts: ReleaseFacts, variant: VariantFacts, digests: Mapping[str, str]
) -> dict[str, Any]:
    source = facts.source
    parameters: dict[str, Any] = {
        "task": "text-generation",
        "architectureFamily": source.architecture,
        "modelArchitecture": source.model_type,
    }
    if facts.calibration is not None and not variant.exact:
        parameters["datasets"] = [{"ref": _CALIBRATION}]
    card: dict[str, Any] = {"modelParameters": parameters}
    if variant.report is not None:
        card["quantitativeAnalysis"] = {"performanceMetrics": list(_metrics(variant.report))}
    return {
        "type": _MODEL,
        "bom-ref": f"variant:{variant.name}",
        "name": variant.name,
        "description": f"{source.name} as {variant.target}",
        **_licences(facts),
        "pedigree": {
            "ancestors": [_ancestor(facts)],
            "notes": "exact" if variant.exact else "; ".join(variant.losses),
        },
        "modelCard": card,
        "components": [_file(variant.name, name, digest) for name, digest in digests.items()],
        "properties": [
            {"name": "zenconvert:target", "value": variant.target},
            {"name": "zenconvert:outcome", "value": variant.outcome},
            {"name": "zenconvert:policy:sha256", "value": facts.policy_sha256},
        ],
    }


def _ancestor(facts: ReleaseFacts) -> dict[str, Any]:
    source = facts.source
    found = {"type": _MODEL, "bom-ref": "source", "name": source.base_model or source.name}
    if source.revision is not None:
        found["version"] = source.revision
        found["purl"] = f"pkg:huggingface/{source.path.partition('@')[0]}@{source.revision}"
    properties = [{"name": "zenconvert:weights:sha256", "value": source.sha256}]
    return {**found, "properties": properties}


def _metrics(report: Report) -> Iterator[dict[str, Any]]:
    for run in report.runs:
        bodies: dict[str, Drift] = {"all languages": run.overall, **run.languages}
        for name, drift in bodies.items():
            for figure, title in _METRICS.items():
                metric: dict[str, Any] = {
                    "type": f"{title} ({run.engine})",
                    "value": repr(drift.figures[figure]),
                    "slice": name,
                }
                if figure in drift.intervals:
                    low, high = drift.intervals[figure]
                    bounds = {"lowerBound": repr(low), "upperBound": repr(high)}
                    metric["confidenceInterval"] = bounds
                yield metric


def _texts(
    calibration: CalibrationFacts | None, evaluation: Report | None
) -> Iterator[dict[str, Any]]:
    if calibration is not None:
        held = {
            "token ids sha256": calibration.samples_sha256,
            "statistics sha256": calibration.statistics_sha256,
            "seed": str(calibration.seed),
            **{f"tokens {code}": str(count) for code, count in calibration.tokens.items()},
        }
        yield _data(_CALIBRATION, calibration.samples, "read by quantizers", held)
    if evaluation is not None:
        held = {
            "token ids sha256": evaluation.text.ids_sha256,
            **{f"tokens {c}": str(drift.tokens) for c, drift in evaluation.languages.items()},
        }
        yield _data(_EVALUATION, evaluation.text.source, "read to measure", held)


def _data(ref: str, name: str, why: str, held: Mapping[str, str]) -> dict[str, Any]:
    properties = [{"name": key, "value": value} for key, value in held.items()]
    content = {
        "type": "dataset",
        "name": name,
        "description": why,
        "contents": {"properties": properties},
    }
    return {"type": "data", "bom-ref": ref, "name": name, "data": [content]}
