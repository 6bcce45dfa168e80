"""The evidence of a release: what lies beside the weights, on every shelf and at the root.

::

    recipe.toml  policy.toml  report.json  report.html  SHA256SUMS        at the root and on shelves
    README.md  bom.cdx.json                                              on every shelf
    Modelfile  model.yaml                                                on the GGUF shelf

The same facts and the same weights give the same bytes: no clock, no absolute path, no host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from zenconvert.errors import OutputExists, ReportMismatch, SourceNotFound, UsageError
from zenconvert.publication.bom import BOM, bom, bom_bytes
from zenconvert.publication.card import CARD, card
from zenconvert.publication.checksums import (
    OUTSIDE,
    SIGNATURE,
    SUMS,
    hash_files,
    is_unsafe,
    listed,
    sums_bytes,
)
from zenconvert.publication.facts import ReleaseFacts, VariantFacts
from zenconvert.publication.files import write_file
from zenconvert.publication.lmstudio import MODEL_YAML, model_yaml
from zenconvert.publication.modelfile import MODELFILE, modelfile
from zenconvert.publication.release_report import REPORT, cleaned, record, record_bytes
from zenconvert.verification.comparison import compare
from zenconvert.verification.policy import policy_path
from zenconvert.verification.rendering import comparison_page, report_page

RECIPE: Final = "recipe.toml"
POLICY: Final = "policy.toml"
PAGE: Final = "report.html"
IMATRIX: Final = "imatrix.gguf"
EVIDENCE: Final = frozenset(
    {RECIPE, POLICY, REPORT, PAGE, CARD, BOM, MODELFILE, MODEL_YAML, *OUTSIDE}
)
"""Names on a shelf that are not a variant's, whatever a variant says."""


def assemble(facts: ReleaseFacts, folder: Path) -> tuple[Path, ...]:
    """Write all evidence of a release whose weights lie in ``folder``; returns the files.

    Every file gets its name when it is whole. A signature that what was written made wrong is
    removed. Raises UsageError for names that cannot be, SourceNotFound for a variant's file that is
    not there, OutputExists for files on a shelf that are not of this release, ReportMismatch for a
    policy that is not the one that was judged by.
    """
    told = cleaned(facts)
    policy = policy_bytes(told)
    written = []
    sums: dict[str, str] = {}
    for shelf, variants in told.shelves.items():
        if any(variant.is_made for variant in variants):
            place = folder / shelf
            digests = hash_files(place, _shelf_files(place, variants))
            evidence = shelf_evidence(told, shelf, variants, digests, policy)
            written += write_shelf(place, evidence, digests)
            sums |= {f"{shelf}/{name}": digest for name, digest in digests.items()}
    root = {RECIPE: told.recipe, POLICY: policy, **_reports(told, told.variants)}
    written += _write(folder, root)
    sums |= hash_files(folder, [name for name in listed(folder) if name not in sums])
    written += _write_sums(folder, sums)
    return tuple(written)


def write_shelf(
    place: Path, evidence: Mapping[str, bytes], digests: Mapping[str, str]
) -> list[Path]:
    """Write a shelf's evidence and its sums; ``digests`` are those of its other files."""
    written = _write(place, evidence)
    ours = {name: hashlib.sha256(data).hexdigest() for name, data in evidence.items()}
    return [*written, *_write_sums(place, {**digests, **ours})]


def shelf_evidence(
    facts: ReleaseFacts,
    shelf: str,
    variants: Sequence[VariantFacts],
    digests: Mapping[str, str],
    policy: bytes,
) -> dict[str, bytes]:
    """Name → bytes of a shelf's evidence, but for its sums.

    ``facts`` are cleaned, ``digests`` are those of all files on the shelf that are not evidence.
    """
    of_variants = {name for variant in variants for name in variant.files}
    extra = [name for name in digests if name not in of_variants]
    found = {
        RECIPE: facts.recipe,
        POLICY: policy,
        CARD: card(facts, shelf, variants, extra).encode(),
        BOM: bom_bytes(bom(facts, shelf, variants, digests)),
        **_reports(facts, variants),
    }
    if variants[0].is_file:
        found[MODELFILE] = modelfile(facts, variants).encode()
        found[MODEL_YAML] = model_yaml(facts, variants).encode()
    return found


def _reports(facts: ReleaseFacts, variants: Sequence[VariantFacts]) -> dict[str, bytes]:
    found = {REPORT: record_bytes(record(facts, variants))}
    measured = [v for v in variants if v.report is not None]
    reports = [v.report for v in measured if v.report is not None]
    failures = {v.name: v.error for v in variants if v.error is not None}
    if len(reports) == 1 and not failures:
        found[PAGE] = report_page(reports[0], measured[0].verdict).encode()
    elif reports:
        verdicts = {v.label: v.verdict for v in measured if v.verdict is not None}
        found[PAGE] = comparison_page(compare(reports), verdicts, failures).encode()
    return found


def policy_bytes(facts: ReleaseFacts) -> bytes:
    """The policy file. Raises ReportMismatch where it is not the one that was judged by."""
    data = facts.policy_file or policy_path("default").read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != facts.policy_sha256:
        raise ReportMismatch(
            f"the policy {facts.policy} is not the one that the variants were judged by: expected "
            f"sha256:{facts.policy_sha256[:16]}…, found sha256:{found[:16]}…; judge them again"
        )
    return data


def _shelf_files(place: Path, variants: Sequence[VariantFacts]) -> list[str]:
    """The files on a shelf that are weights or come with them, sorted."""
    wanted = {name for v in variants if v.is_made for name in v.files} - EVIDENCE
    for name in (*wanted, place.name):
        if is_unsafe(name) or not name.isprintable():
            raise UsageError(f"{name!r} cannot be the name of a file in a release")
    for name in sorted(wanted):
        if not (place / name).is_file():
            raise SourceNotFound(f"{place / name}: the variant's file is not there")
    found = [name for name in listed(place) if name not in EVIDENCE]
    if foreign := sorted(set(found) - wanted - {IMATRIX}):
        raise OutputExists(
            f"{place}: not of this release: {', '.join(foreign)}; remove it or use another folder"
        )
    return found


def _write(place: Path, files: Mapping[str, bytes]) -> list[Path]:
    for name, data in files.items():
        write_file(place / name, data)
    return [place / name for name in files]


def _write_sums(place: Path, digests: Mapping[str, str]) -> list[Path]:
    data, path = sums_bytes(digests), place / SUMS
    if not path.is_file() or path.read_bytes() != data:
        (place / SIGNATURE).unlink(missing_ok=True)
        write_file(path, data)
    return [path]
