"""A report, or several side by side, as one self-contained HTML page (``report.html.jinja``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zenconvert.base.escaping import plain
from zenconvert.errors import several
from zenconvert.verification.charts import (
    Point,
    Spot,
    distribution,
    lane,
    linear_axis,
    size_against_drift,
)
from zenconvert.verification.comparison import Compared, Comparison
from zenconvert.verification.drift import Drift
from zenconvert.verification.figures import (
    DIVERGENCE,
    PREDICTION,
    Figure,
    figure,
    megabytes,
    share,
    span,
)
from zenconvert.verification.gate import Verdict
from zenconvert.verification.intervals import CONFIDENCE, RESAMPLES, SEED
from zenconvert.verification.report import Report, Run

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE: Final = "report.html.jinja"
_SIGNS: Final = str.maketrans({"\n": "⏎\n", "\t": "⇥", "\x00": "␀"})


def report_page(report: Report, verdict: Verdict | None = None) -> str:
    """The page of one report, the verdict first."""
    return _page(
        kind="zenconvert: drift of an artifact from its reference",
        title=Path(report.candidate.path).name,
        verdicts={} if verdict is None else {report.candidate.path: verdict},
        failures={},
        boards=[],
        runs=[_run(report, run) for run in report.runs],
        noise=_noise(report),
        provenance=_provenance(report),
    )


def comparison_page(
    comparison: Comparison,
    verdicts: Mapping[str, Verdict] | None = None,
    failures: Mapping[str, str] | None = None,
) -> str:
    """The page of several variants; ``verdicts`` by candidate path, ``failures`` of others."""
    reports = comparison.reports
    return _page(
        kind="zenconvert: variants of one model",
        title=several(len(reports), "variant", "variants")
        + f" of {Path(reports[0].reference.path).name}",
        verdicts=verdicts or {},
        failures=failures or {},
        boards=[_board(engine, variants) for engine, variants in comparison.engines.items()],
        runs=[],
        noise=_noise(reports[0]),
        provenance=[
            *_shared_provenance(reports[0]),
            *((r.candidate.path, f"sha256 {r.candidate.sha256}") for r in reports),
        ],
    )


def _page(**values: Any) -> str:
    """The page: what is foreign was escaped for HTML, and no sign of it is obeyed or hidden."""
    return plain(_template().render(**values))


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = _visible
    return environment.get_template(_TEMPLATE)


def _visible(text: str) -> str:
    """White space that would be lost, as signs."""
    shown = text.translate(_SIGNS)
    return shown if shown.strip() else shown.replace(" ", "␣") or "∅"


def _noise(report: Report) -> str:
    noise = report.noise
    note = "; f16 overflows" if noise.overflows else ""
    return f"the reference in {noise.label}: {noise.summary.overall.kl_mean:.3g} nats{note}"


def _run(report: Report, run: Run) -> dict[str, Any]:
    noise = report.noise
    by_drift = sorted(run.languages, key=lambda c: -run.languages[c].kl_mean)
    bodies = {"all": run.overall, **{code: run.languages[code] for code in by_drift}}
    floors = {"all": noise.summary.overall, **noise.summary.languages}
    points = {n: Point(n, d.kl_mean, d.intervals.get("kl.mean")) for n, d in bodies.items()}
    axis = linear_axis(v for p in points.values() for v in (p.value, *(p.interval or ())))
    drawn, decades = distribution(run.histogram, noise.histogram)
    still = ["all"] if noise.covers(run.overall) else []
    still += [code for code, drift in run.languages.items() if noise.covers(drift, code)]
    return {
        "engine": run.engine,
        "details": ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in run.details.items()),
        "tiles": _tiles(report, run),
        "lanes": [
            {
                "label": name,
                "plot": lane(point, axis, floors[name].kl_mean),
                "value": f"{point.value:.4g}",
            }
            for name, point in points.items()
        ],
        "axis": axis.ticks,
        "still": still,
        "tables": [_table(figures, bodies) for figures in (DIVERGENCE, PREDICTION)],
        "worst_language": run.summary.worst_language,
        "distribution": drawn,
        "decades": decades,
        "worst": [
            {
                **p.as_dict(),
                "kl": f"{p.kl:.3g}",
                **{k: share(v) for k, v in p.as_dict().items() if k.endswith("_p")},
            }
            for p in run.worst
        ],
        "problems": run.proof.problems,
        "texts": run.proof.texts,
        "proved": run.proof.languages,
        "generations": run.proof.generations,
    }


def _tiles(report: Report, run: Run) -> list[dict[str, str]]:
    overall, facts = run.overall, report.candidate_facts

    def tile(value: str, label: str, name: str | None = None) -> dict[str, str]:
        interval = span(overall, name) if name is not None else ""
        return {"value": value, "label": f"{label} {interval}".strip()}

    worst = run.summary.worst_language
    return [
        tile(figure(overall, "kl.mean"), "mean KL divergence, nats", "kl.mean"),
        tile(figure(overall, "top1"), "same first choice", "top1"),
        tile(figure(overall, "perplexity.ratio"), "perplexity ratio", "perplexity.ratio"),
        tile(f"{worst} {figure(run.languages[worst], 'kl.mean')}", "worst language"),
        tile(
            megabytes(facts.bytes), f"{facts.bits_per_weight:.2f} bits a weight, {facts.encoding}"
        ),
        tile(f"{overall.tokens:,}", f"tokens in {overall.blocks} documents"),
    ]


def _table(figures: Sequence[Figure], bodies: Mapping[str, Drift]) -> dict[str, Any]:
    return {
        "head": [f.title for f in figures],
        "rows": [
            {
                "name": name,
                "tokens": f"{drift.tokens:,}",
                "cells": [(figure(drift, f.name), span(drift, f.name)) for f in figures],
            }
            for name, drift in bodies.items()
        ],
    }


def _board(engine: str, variants: Sequence[Compared]) -> dict[str, Any]:
    floor = variants[0].report.noise.summary.overall.kl_mean
    spots = [
        Spot(
            number,
            v.name,
            v.bytes,
            v.run.overall.kl_mean,
            v.run.overall.intervals.get("kl.mean"),
            v.on_front,
        )
        for number, v in enumerate(variants, 1)
    ]
    languages = list(variants[0].run.languages)
    return {
        "engine": engine,
        "scatter": size_against_drift(spots, floor),
        "variants": [_variant(v, languages) for v in variants],
        "languages": languages,
        "still": [v.name for v in variants if v.report.noise.covers(v.run.overall)],
    }


def _variant(variant: Compared, languages: Sequence[str]) -> dict[str, Any]:
    overall, facts = variant.run.overall, variant.report.candidate_facts
    worst = variant.run.summary.worst_language
    return {
        "name": variant.name,
        "rank": variant.rank,
        "on_front": variant.on_front,
        "size": megabytes(facts.bytes),
        "bits": f"{facts.bits_per_weight:.2f}",
        "kl": figure(overall, "kl.mean"),
        "kl_interval": span(overall, "kl.mean"),
        "ratio": figure(overall, "perplexity.ratio"),
        "ratio_interval": span(overall, "perplexity.ratio"),
        "top1": figure(overall, "top1"),
        "top1_interval": span(overall, "top1"),
        "worst": worst,
        "worst_kl": figure(variant.run.languages[worst], "kl.mean"),
        "by_language": [figure(variant.run.languages[code], "kl.mean") for code in languages],
    }


def _shared_provenance(report: Report) -> list[tuple[str, str]]:
    reference, facts = report.reference, report.reference_facts
    return [
        ("reference", f"{reference.path} ({reference.format}, {facts.encoding})"),
        ("its sha256", reference.sha256),
        ("text", f"{report.text.source}, {report.text.windows} windows of {report.context} tokens"),
        ("token ids sha256", report.text.ids_sha256),
        ("noise floor", _noise(report)),
        ("zenconvert", report.version),
    ]


def _provenance(report: Report) -> list[tuple[str, str]]:
    candidate, facts = report.candidate, report.candidate_facts
    held = ", ".join(f"{name} {count:,}" for name, count in facts.encodings.items())
    return [
        ("artifact", f"{candidate.path} ({candidate.format})"),
        ("its sha256", candidate.sha256),
        ("side files sha256", facts.side_files_sha256 or "none: everything is in the file"),
        ("architecture", f"{facts.architecture}, {facts.parameters:,} parameters"),
        ("encodings", held),
        *_shared_provenance(report),
        (
            "intervals",
            f"{CONFIDENCE:.0%}, block bootstrap over documents, {RESAMPLES} resamples, seed {SEED}",
        ),
        *((f"engine {name}", f"did not run: {why}") for name, why in report.absent.items()),
        *((f"engine {name}", f"failed: {why.reason}") for name, why in report.failed.items()),
    ]
