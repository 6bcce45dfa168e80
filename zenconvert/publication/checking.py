"""``zenconvert release verify``: is a folder, a release or one shelf of it, what it says? Offline.

Everything is read again: bytes against sums, weights against the report, the verdict against report
and policy, the card against the report, the bill of materials and the signature against the bytes,
and the artifacts against one another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from zenconvert.base.progress import Count
from zenconvert.base.source_files import parse_json, read_text
from zenconvert.errors import BadSignature, CorruptFile, InvalidInput, ZenError
from zenconvert.model.checkpoint import Checkpoint
from zenconvert.opening.sources import open_checkpoint
from zenconvert.publication.bom import BOM, bom_digests
from zenconvert.publication.card import CARD, language_tables, measured_table
from zenconvert.publication.checksums import SIGNATURE, SUMS, hash_files, listed, read_sums
from zenconvert.publication.evidence import EVIDENCE, IMATRIX, POLICY
from zenconvert.publication.facts import VariantFacts
from zenconvert.publication.ledger import STATE
from zenconvert.publication.release_report import REPORT, read_record, variants_of
from zenconvert.publication.signing import is_keyless, statement_digests, verify_signature
from zenconvert.verification.agreement import check_agreement
from zenconvert.verification.digests import combined
from zenconvert.verification.facts import facts_of
from zenconvert.verification.gate import Check, decide
from zenconvert.verification.policy import Policy

_SHORT: Final = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a check found."""

    where: str
    """Path below the folder; ``.`` is the folder."""
    what: str
    is_problem: bool = True
    """False for a note: what could not be checked."""

    def __str__(self) -> str:
        return f"{'' if self.is_problem else 'note: '}{self.where}: {self.what}"


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder with a record: the release, or a shelf."""

    folder: Path
    name: str
    digests: Mapping[str, str]
    """Every file below, by its name from here, read now."""
    record: Mapping[str, Any]
    variants: tuple[VariantFacts, ...]

    def finding(self, name: str, what: str, *, is_problem: bool = True) -> Finding:
        where = name if self.name == "." else f"{self.name}/{name}"
        return Finding(where, what, is_problem)


def check_release(
    folder: Path, *, public_key: Path | None = None, progress: Count | None = None
) -> tuple[Finding, ...]:
    """Check a release or a shelf; empty, or notes alone, where everything holds.

    ``public_key`` is whose signature is expected. Raises CorruptFile where there is no report of a
    release to begin with, MissingDependency and UsageError for a key that cannot be used.
    """
    _look_at(folder)
    digests = hash_files(folder, listed(folder), fresh=True, progress=progress)
    record = read_record(folder / REPORT)
    top = _Place(folder, ".", digests, record, variants_of(record, REPORT))
    findings = [*_sums(top)]
    shelves: list[_Place] = []
    if not (folder / BOM).is_file():  # only shelves have one
        for shelf in dict.fromkeys(v.shelf for v in top.variants if v.is_made):
            try:
                shelves.append(_shelf(top, shelf))
            except ZenError as error:
                findings.append(Finding(shelf, str(error)))
        findings += _foreign(top, shelves)
    else:
        shelves.append(top)
    opened: dict[str, Checkpoint] = {}
    for place in shelves:
        findings += _shelf_findings(place, opened, public_key)
    findings += _policy(top)
    findings += _agreement(opened)
    if top not in shelves:
        findings += _signature(top, public_key)
    return tuple(dict.fromkeys(findings))


def _look_at(folder: Path) -> None:
    """Raise CorruptFile for a folder that is no release, before all of it is read."""
    if os.path.lexists(folder / REPORT):
        return
    inside = sorted(path.parent.name for path in folder.glob(f"*/{REPORT}"))
    if (folder / STATE).is_dir():
        what = "a release that is not finished: run `zenconvert release` with its recipe again"
    elif inside:
        what = f"no release; {inside[0]!r} in it may be one"
    elif (folder / "config.json").is_file() or any(folder.glob("*.gguf")):
        what = "a model and no release; `zenconvert verify REFERENCE CANDIDATE` measures models"
    else:
        what = "no release"
    raise CorruptFile(
        f"{folder}: this is {what}. Pass the folder that a recipe's [output] names, or one shelf "
        f"of it: both hold {REPORT} and {SUMS}"
    )


def _shelf(top: _Place, shelf: str) -> _Place:
    folder, start = top.folder / shelf, f"{shelf}/"
    record = read_record(folder / REPORT)
    digests = {n.removeprefix(start): d for n, d in top.digests.items() if n.startswith(start)}
    digests.pop(SUMS, None)
    ours = [v for v in top.record["variants"] if v["shelf"] == shelf]
    if record["variants"] != ours:
        raise CorruptFile(f"{REPORT} of the shelf does not say what that of the release says")
    return _Place(folder, shelf, digests, record, variants_of(record, f"{shelf}/{REPORT}"))


def _foreign(top: _Place, shelves: list[_Place]) -> Iterator[Finding]:
    known = {place.name for place in shelves}
    for name in top.digests:
        first, slash, _ = name.partition("/")
        if slash and first not in known:
            yield top.finding(name, "no variant of the release is on this shelf")


def _shelf_findings(
    place: _Place, opened: dict[str, Checkpoint], public_key: Path | None
) -> Iterator[Finding]:
    if place.name != ".":
        yield from _sums(place)
    of_variants = {name for v in place.variants if v.is_made for name in v.files}
    for name in place.digests:
        if name not in of_variants and name not in EVIDENCE and name != IMATRIX:
            yield place.finding(name, "it belongs to no variant of the release")
    for variant in place.variants:
        if variant.is_made:
            yield from _artifact(place, variant, opened)
    yield from _card(place)
    yield from _bom(place)
    yield from _policy(place)
    yield from _signature(place, public_key)


def _sums(place: _Place) -> Iterator[Finding]:
    try:
        sums = read_sums(place.folder / SUMS)
    except ZenError as error:
        yield place.finding(SUMS, str(error))
        return
    for name, expected in sums.items():
        found = place.digests.get(name)
        if found is None:
            yield place.finding(name, f"{SUMS} names it, and it is not there")
        elif found != expected:
            yield place.finding(name, f"its bytes changed: {_differ(expected, found)}")
    for name in place.digests:
        if name not in sums:
            yield place.finding(name, f"{SUMS} does not name it")


def _differ(expected: str, found: str) -> str:
    return f"expected sha256 {expected[:_SHORT]}…, found {found[:_SHORT]}…"


def _artifact(
    place: _Place, variant: VariantFacts, opened: dict[str, Checkpoint]
) -> Iterator[Finding]:
    """The files are there, and the report is about them."""
    name = variant.files[0] if variant.is_file else REPORT
    absent = [file for file in variant.files if file not in place.digests]
    if absent:
        yield place.finding(absent[0], f"it is part of {variant.name}, and it is not there")
        return
    path = place.folder / variant.files[0] if variant.is_file else place.folder
    try:
        checkpoint = open_checkpoint(path)
        facts = facts_of(checkpoint)
    except ZenError as error:
        yield place.finding(name, f"{variant.name} cannot be opened: {error}")
        return
    opened[variant.name] = checkpoint
    weights = [file.relative_to(place.folder).as_posix() for file in checkpoint.files]
    if foreign := [file for file in weights if file not in variant.files]:
        yield place.finding(foreign[0], f"{variant.name} reads it, and does not name it")
        return
    if variant.report is None:
        return
    found = combined(checkpoint.files, [place.digests[file] for file in weights])
    expected = variant.report.candidate
    if found != expected.sha256 or checkpoint.format != expected.format:
        yield place.finding(
            name, f"the report is about other weights: {_differ(expected.sha256, found)}"
        )
    ours, theirs = variant.report.candidate_facts.as_dict(), facts.as_dict()
    for key in (key for key in theirs if ours[key] != theirs[key]):
        yield place.finding(
            name, f"the report says {key} {ours[key]!r}, the file has {theirs[key]!r}"
        )


def _policy(place: _Place) -> Iterator[Finding]:
    """Verdicts follow from the reports and the policy beside them."""
    expected = place.record["policy"]["sha256"]
    try:
        policy = Policy.load(place.folder / POLICY)
    except ZenError as error:
        yield place.finding(POLICY, str(error))
        return
    if policy.sha256 != expected:
        yield place.finding(
            POLICY, f"it is not what was judged by: {_differ(expected, policy.sha256)}"
        )
        return
    for variant, told in zip(place.variants, place.record["variants"], strict=True):
        for problem in _verdict(variant, told, policy):
            yield place.finding(REPORT, f"{variant.name}: {problem}")


def _verdict(variant: VariantFacts, told: Mapping[str, Any], policy: Policy) -> Iterator[str]:
    if told["outcome"] != variant.outcome:
        yield f"its outcome is {told['outcome']}, and its verdict says {variant.outcome}"
    report, verdict = variant.report, variant.verdict
    if verdict is None:
        return
    if told["verdict"]["outcome"] != verdict.outcome:
        yield f"its verdict is {told['verdict']['outcome']}, and its checks say {verdict.outcome}"
    if report is None:
        yield "there is a verdict without a report"
        return
    if verdict.policy_sha256 != policy.sha256:
        yield "it was judged by another policy"
        return
    ours = decide(report, replace(policy, name=verdict.policy))
    # a comparison with an earlier release cannot be made again without it
    theirs = tuple(check for check in verdict.checks if check.what != "against")
    if (ours.checks, ours.tier) != (theirs, verdict.tier):
        yield f"the policy does not say so of this report: {_first_other(ours.checks, theirs)}"


def _first_other(ours: tuple[Check, ...], theirs: tuple[Check, ...]) -> str:
    only = [check for check in ours if check not in theirs] or list(ours)
    if not only:
        return "it has nothing to check there"
    return f"{only[0].engine}, {only[0].scope}: {only[0].outcome}, {only[0].reason}"


def _card(place: _Place) -> Iterator[Finding]:
    try:
        lines = set(read_text(place.folder / CARD).splitlines())
    except InvalidInput as error:
        yield place.finding(CARD, f"the card cannot be read: {error}")
        return
    wanted = [*measured_table(place.variants)]
    wanted += [line for v in place.variants for line in language_tables(v) if line]
    if absent := [line for line in wanted if line not in lines]:
        yield place.finding(CARD, f"a line of its tables is not what the report says: {absent[0]}")


def _bom(place: _Place) -> Iterator[Finding]:
    try:
        told = bom_digests(parse_json(place.folder / BOM))
    except (InvalidInput, KeyError, TypeError, AttributeError) as error:
        yield place.finding(BOM, f"the bill of materials cannot be read: {error!r}")
        return
    for name, digest in told.items():
        found = place.digests.get(name, "")
        if found != digest:
            yield place.finding(BOM, f"{name} is not what it says: {_differ(digest, found or '–')}")
    for variant in place.variants:
        for name in (n for n in variant.files if n not in EVIDENCE and n not in told):
            yield place.finding(BOM, f"it does not name {name} of {variant.name}")


def _signature(place: _Place, public_key: Path | None) -> Iterator[Finding]:
    path = place.folder / SIGNATURE
    if not path.is_file():
        missing = "there is no signature"
        yield place.finding(SIGNATURE, missing, is_problem=public_key is not None)
        return
    try:
        told, keyless = statement_digests(path), is_keyless(path)
        if public_key is not None:
            verify_signature(place.folder, public_key)
    except (CorruptFile, BadSignature) as error:
        yield place.finding(SIGNATURE, str(error))
        return
    if told.get(REPORT) != place.digests.get(REPORT):
        yield place.finding(SIGNATURE, f"its statement is not about this {REPORT}")
    for name, digest in place.digests.items():
        if told.get(name) != digest:
            yield place.finding(SIGNATURE, f"its statement does not hold for {name}")
    if public_key is None:
        how = "its identity (model_signing verify)" if keyless else "a public key (--public-key)"
        note = f"whose signature it is was not checked; {how} tells"
        yield place.finding(SIGNATURE, note, is_problem=False)


def _agreement(opened: Mapping[str, Checkpoint]) -> Iterator[Finding]:
    """Artifacts of one release look the same to a client; the first is what others are held to."""
    if opened:
        first, *others = opened.items()
        for found in check_agreement(first[1], dict(others)):
            yield Finding(
                found.candidate,
                f"not as {first[0]}: {found.what}: expected {found.expected}, found {found.found}",
            )
