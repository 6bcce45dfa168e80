"""The gate: decided on the bound of the interval, language by language, on true files only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.verification.conftest import SOURCE, Gguf, Verified
from zenconvert import Outcome, Report
from zenconvert.errors import (
    CorruptFile,
    ReportMismatch,
    SourceNotFound,
    UsageError,
)
from zenconvert.verification import file_check as identity
from zenconvert.verification.drift import Drift, Summary
from zenconvert.verification.gate import gate
from zenconvert.verification.policy import Policy
from zenconvert.verification.report import Document, Run

Write = Callable[[str], Policy]

TIERS = """
[tier.4-bit]
bits = [4, 4]
[tier.4-bit.overall]
"kl.mean" = { at_most = 0.1, warn_above = 0.05 }
[tier.4-bit.language]
"kl.mean" = { at_most = 0.2 }
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def policy(text: str) -> Policy:
        path = tmp_path / "policy.toml"
        path.write_text(text, encoding="utf-8")
        return Policy.load(path)

    return policy


@pytest.fixture
def report(verified: Verified, monkeypatch: pytest.MonkeyPatch) -> Report:
    """A real report whose files are taken for true."""
    monkeypatch.setattr("zenconvert.verification.gate.check_files", lambda report, config: ())
    return verified("q4_k_m", "torch")


def changed(report: Report, **bodies: Mapping[str, tuple[float, float, float] | None]) -> Report:
    """The report with other figures: ``(low, value, high)``, None for no interval."""
    run = report.runs[0]
    summary = Summary(
        _changed(run.overall, bodies.get("overall", {})),
        {code: _changed(d, bodies.get(code, {})) for code, d in run.languages.items()},
    )
    return replace(report, runs=(replace(run, summary=summary),))


def _changed(drift: Drift, figures: Mapping[str, tuple[float, float, float] | None]) -> Drift:
    values, intervals = dict(drift.figures), dict(drift.intervals)
    for name, numbers in figures.items():
        if numbers is None:
            del intervals[name]
        else:
            low, values[name], high = numbers
            intervals[name] = (low, high)
    return replace(drift, figures=values, intervals=intervals)


def calm(report: Report, **more: Any) -> Report:
    """Well inside :data:`TIERS`, but for ``more``."""
    inside = {"kl.mean": (0.03, 0.035, 0.04)}
    bodies = {name: {**inside, **more.get(name, {})} for name in ("overall", "en", "de")}
    return changed(report, **bodies)


@pytest.mark.parametrize(
    ("where", "numbers", "outcome"),
    [
        ("overall", (0.03, 0.035, 0.1), Outcome.PASS),
        ("overall", (0.03, 0.035, 0.1001), Outcome.INCONCLUSIVE),
        ("overall", (0.099, 0.12, 0.3), Outcome.INCONCLUSIVE),
        ("overall", (0.1001, 0.12, 0.3), Outcome.FAIL),
        ("de", (0.19, 0.195, 0.199), Outcome.PASS),
        ("de", (0.19, 0.195, 0.21), Outcome.INCONCLUSIVE),
        ("de", (0.201, 0.21, 0.22), Outcome.FAIL),
        ("en", None, Outcome.INCONCLUSIVE),
    ],
)
def test_the_bound_decides_and_every_language_by_itself(
    where: str,
    numbers: tuple[float, float, float] | None,
    outcome: Outcome,
    report: Report,
    write: Write,
) -> None:
    verdict = gate(calm(report, **{where: {"kl.mean": numbers}}), write(TIERS))
    assert verdict.outcome is outcome
    assert verdict.exit_code == {"PASS": 0, "FAIL": 1}.get(outcome, 6)
    assert verdict.tier == "4-bit"
    if outcome is not Outcome.PASS:
        (reason,) = verdict.reasons
        assert reason.startswith(f"{outcome}: torch, {where}: kl.mean")


def test_passing_beyond_a_warning_is_told(report: Report, write: Write) -> None:
    quiet = gate(calm(report), write(TIERS))
    assert quiet.warnings == quiet.reasons == ()
    loud = gate(calm(report, overall={"kl.mean": (0.04, 0.045, 0.06)}), write(TIERS))
    assert loud.outcome is Outcome.PASS
    assert loud.warnings == (
        "torch, overall: kl.mean 0.045 (0.04 to 0.06), at most 0.1, warning above 0.05",
    )


@pytest.mark.parametrize(
    ("numbers", "outcome"),
    [
        ((0.93, 0.94, 0.95), Outcome.PASS),
        ((0.91, 0.94, 0.95), Outcome.INCONCLUSIVE),
        ((0.89, 0.90, 0.91), Outcome.FAIL),
    ],
)
def test_lower_limits_hold_as_well(
    numbers: tuple[float, float, float], outcome: Outcome, report: Report, write: Write
) -> None:
    policy = write(TIERS.replace('"kl.mean" = { at_most = 0.1', "top1 = { at_least = 0.92"))
    assert gate(calm(report, overall={"top1": numbers}), policy).outcome is outcome


def test_limits_can_count_from_the_noise_floor(report: Report, write: Write) -> None:
    floor = report.noise.summary.overall.kl_mean
    high = 1e-4 + floor / 2
    inside = calm(report, overall={"kl.mean": (high / 2, high / 2, high)})
    for above, outcome in (("false", Outcome.INCONCLUSIVE), ("true", Outcome.PASS)):
        limit = f"at_most = 1e-4, above_noise = {above}"
        policy = write(TIERS.replace("at_most = 0.1, warn_above = 0.05", limit))
        assert gate(inside, policy).outcome is outcome


@pytest.mark.parametrize(
    ("when", "outcome"),
    [
        ("engine = 'torch'", Outcome.FAIL),
        ("engine = 'llamacpp'", Outcome.PASS),
        ("format = 'gguf', encoding = 'q4_k', architecture = 'qwen2'", Outcome.FAIL),
        ("format = 'gguf', encoding = 'q8_0'", Outcome.PASS),
        ("language = 'de'", Outcome.FAIL),
        ("language = 'fr'", Outcome.PASS),
    ],
)
def test_overrides_replace_limits_where_they_apply(
    when: str, outcome: Outcome, report: Report, write: Write
) -> None:
    scope = "language" if "language" in when else "overall"
    policy = write(
        f"{TIERS}\n[[override]]\nname = 'strict'\nwhen = {{ {when} }}\n"
        f"[override.{scope}]\n'kl.mean' = {{ at_most = 0.01 }}\n"
    )
    verdict = gate(calm(report), policy)
    assert verdict.outcome is outcome
    if scope == "language" and outcome is Outcome.FAIL:
        assert [c.scope for c in verdict.checks if c.outcome is Outcome.FAIL] == ["de"]


def test_what_is_too_good_or_has_no_baseline_is_anomalous(report: Report, write: Write) -> None:
    policy = write(f"{TIERS}\n[anomaly]\nlowest_ratio = 0.95\nmoving_bits = 6\nbaseline = 0.25\n")
    better = calm(report, de={"perplexity.ratio": (0.9, 0.92, 0.94)})
    maybe = calm(report, de={"perplexity.ratio": (0.9, 0.92, 0.96)})
    floor = report.noise.summary.overall.kl_mean
    still = calm(report, overall={"kl.mean": (0.0, floor / 3, floor / 2)})
    baseless = calm(report, overall={"perplexity.reference": (2000.0, 2100.0, 2200.0)})
    assert gate(maybe, policy).outcome is Outcome.PASS
    for odd, words in (
        (better, "too good to be true"),
        (still, "moved no further than the reference does from itself in f16"),
        (baseless, "does not model this text"),
    ):
        verdict = gate(odd, policy)
        assert verdict.outcome is Outcome.ANOMALOUS
        assert verdict.exit_code == 6
        assert words in verdict.reasons[0]
    failing = calm(better, en={"kl.mean": (0.3, 0.4, 0.5)})
    failing = changed(failing, de={"perplexity.ratio": (0.9, 0.92, 0.94)})
    assert gate(failing, policy).outcome is Outcome.FAIL


def test_ratios_to_the_median_language_leave_noise_alone(report: Report, write: Write) -> None:
    policy = write(TIERS.replace('"kl.mean" = { at_most = 0.2 }', '"kl.to_median" = {at_most = 2}'))
    uneven = {"kl.to_median": (3.0, 4.0, 5.0)}
    assert gate(calm(report, de=uneven), policy).outcome is Outcome.FAIL
    floor = report.noise.summary.languages["de"].kl_mean
    quiet = {**uneven, "kl.mean": (0.0, floor / 3, floor / 2)}
    assert gate(calm(report, de=quiet), policy).outcome is Outcome.PASS


def test_too_little_text_is_inconclusive(report: Report, write: Write) -> None:
    enough = gate(calm(report), write(f"min_tokens = 200\nmin_blocks = 4\n{TIERS}"))
    assert enough.outcome is Outcome.PASS
    for few in ("min_tokens = 100000", "min_blocks = 5"):
        verdict = gate(calm(report), write(f"{few}\n{TIERS}"))
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "too few" in verdict.reasons[0]


def test_bits_without_a_tier_are_inconclusive(report: Report, write: Write) -> None:
    verdict = gate(calm(report), write(TIERS.replace("[4, 4]", "[8, 8]")))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.tier is None
    assert "no tier for 4 bits" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("bits", "fails"), [(4, False), (5, True), (6, True), (8, True), (16, True)]
)
def test_the_default_policy_tells_one_class_of_bits_from_the_next(
    bits: int, fails: bool, report: Report
) -> None:
    """A q4_k_m file is an honest 4-bit one, and would be a ruined one of more bits."""
    claimed = replace(report, candidate_facts=replace(report.candidate_facts, bits=bits))
    verdict = gate(claimed)
    assert verdict.tier == ("16-bit" if bits == 16 else f"small-{bits}-bit")
    failed = {c.what for c in verdict.checks if c.outcome is Outcome.FAIL}
    assert ("kl.mean" in failed) is fails
    assert fails or not failed
    large = replace(claimed.candidate_facts, parameters=10**9)
    tier = gate(replace(claimed, candidate_facts=large)).tier
    assert tier == f"{bits}-bit"


def test_every_mistake_of_a_policy_is_told(write: Write) -> None:
    with pytest.raises(UsageError) as caught:
        write(
            "min_tokens = 'many'\nmin_blockz = 3\n[tier.4-bit]\nbits = [4]\n"
            '[tier.4-bit.overall]\n"kl.maen" = 3\nspeed = { at_most = 1 }\n'
            '"kl.mean" = { at_mots = 1 }\n"kl.to_median" = { at_most = 1 }\n'
            '"perplexity.ratio" = { at_most = 1, above_noise = true }\n'
            "[[override]]\nwhen = { colour = 'red' }\n[anomaly]\nbaseline = -1\n"
        )
    words = (
        "'min_tokens' must be a number", "min_blockz", "'bits' must be", "'kl.maen': expected",
        "'speed': there is no such", "at_mots", "'kl.to_median': there is no such", "'above_noise'",
        "colour", "must have a 'name'", "'baseline'",
    )  # fmt: skip
    for word in words:
        assert word in str(caught.value), word
    for text, word in (("", "no tier"), ("= 3", "not TOML"), ("override = 3", "array of tables")):
        with pytest.raises(UsageError, match=word):
            write(text)
    with pytest.raises(UsageError, match="cannot be read"):
        Policy.load("absent.toml")


def documents(report: Report, factor: float, *, code: str | None = None) -> Report:
    """The report with the drift of one language, or all, multiplied."""
    run = report.runs[0]

    def more(document: Document) -> Document:
        here = code is None or document.language == code
        return replace(document, kl=document.kl * (factor if here else 1))

    grown: Run = replace(run, documents=tuple(more(d) for d in run.documents))
    return replace(report, runs=(grown,))


def test_a_release_may_not_drift_further_than_the_last(report: Report, write: Write) -> None:
    policy = write(f"[against]\nregression = 0.1\n{TIERS}")
    now = calm(report)

    def verdict(earlier: Report) -> Any:
        return gate(now, policy, against=earlier)

    assert verdict(documents(now, 1.0)).outcome is Outcome.PASS
    assert verdict(documents(now, 2.0)).outcome is Outcome.PASS
    worse = verdict(documents(now, 0.5))
    assert worse.outcome is Outcome.FAIL
    assert "is 2.000 (2.000 to 2.000) of the earlier release's" in worse.reasons[0]
    one = verdict(documents(now, 0.8, code="de"))
    assert [c.scope for c in one.checks if c.outcome is Outcome.FAIL] == ["overall", "de"]
    floor = report.noise.summary.overall.kl_mean
    tiny = documents(now, floor / now.overall.kl_mean / 50)
    assert gate(tiny, policy, against=documents(tiny, 0.5)).outcome is Outcome.PASS


def test_releases_that_cannot_be_compared_are_told(report: Report, write: Write) -> None:
    policy, now = write(TIERS), calm(report)
    other = replace(report.reference, sha256="0" * 64)
    text = replace(report.text, ids_sha256="0" * 64)
    native = replace(now, runs=(replace(now.runs[0], engine="llamacpp"),))
    moved = changed(now, overall={"perplexity.reference": (30.0, 31.0, 32.0)})
    for earlier, outcome, words in (
        (replace(now, reference=other), Outcome.INCONCLUSIVE, "another reference"),
        (replace(now, text=text), Outcome.INCONCLUSIVE, "another text"),
        (native, Outcome.INCONCLUSIVE, "no run of the engine torch"),
        (moved, Outcome.ANOMALOUS, "on the same text"),
    ):
        verdict = gate(now, policy, against=earlier)
        assert verdict.outcome is outcome
        assert words in verdict.reasons[0]


def test_a_report_on_other_bytes_is_refused(
    verified: Verified, gguf: Gguf, tmp_path: Path, write: Write
) -> None:
    """Replaced files, edited digests and edited facts."""
    true, policy = verified("q4_k_m", "torch"), write(TIERS)
    assert gate(true, policy).notes == ()
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf(SOURCE, "q8_0").read_bytes())
    elsewhere = replace(true.candidate, path=str(file))
    with pytest.raises(ReportMismatch, match="about other bytes"):
        gate(replace(true, candidate=elsewhere), policy)
    with pytest.raises(ReportMismatch, match="about other bytes"):
        gate(replace(true, reference=replace(true.reference, sha256="0" * 64)), policy)
    lies: tuple[dict[str, Any], ...] = (
        {"bits": 2}, {"encoding": "q2_k"}, {"bytes": 1}, {"encodings": {"f32": 1}},
    )  # fmt: skip
    for lie in lies:
        facts = replace(true.candidate_facts, **lie)
        with pytest.raises(ReportMismatch, match=f"does not describe it: .*{next(iter(lie))}"):
            gate(replace(true, candidate_facts=facts), policy)
    side = replace(true.reference_facts, side_files_sha256="0" * 64)
    with pytest.raises(ReportMismatch, match="side_files"):
        gate(replace(true, reference_facts=side), policy)


def test_the_candidate_is_looked_for_beside_the_report(
    verified: Verified, gguf: Gguf, tmp_path: Path
) -> None:
    report = verified("q4_k_m", "torch")
    gone = replace(report, candidate=replace(report.candidate, path="built/here/model.gguf"))
    path = tmp_path / "report.json"
    path.write_text(json.dumps(gone.as_dict()), encoding="utf-8")
    moved = Report.from_json(path)
    with pytest.raises(SourceNotFound, match=r"built/here/model\.gguf: the candidate"):
        identity.check_files(moved)
    (tmp_path / "model.gguf").write_bytes(gguf(SOURCE, "q4_k_m").read_bytes())
    assert identity.check_files(moved) == ()
    remote = replace(moved, reference=replace(moved.reference, path="organisation/model"))
    (note,) = identity.check_files(remote)
    assert "organisation/model is not at hand" in note


def test_reports_come_back_from_their_files(verified: Verified, tmp_path: Path) -> None:
    report = verified("q4_k_m", "llamacpp")
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.as_dict(), allow_nan=False), encoding="utf-8")
    assert Report.from_json(path) == report
    assert Report.from_json(path).as_dict() == report.as_dict()
    with pytest.raises(UsageError, match="cannot be read"):
        Report.from_json(tmp_path / "absent.json")
    for text, words in (
        ("{", "no valid JSON"),
        ("[]", "no report of zenconvert"),
        ('{"schema_version": 2}', "expected schema_version 1"),
        ('{"schema_version": 1}', "malformed"),
    ):
        path.write_text(text)
        with pytest.raises(CorruptFile, match=words):
            Report.from_json(path)
