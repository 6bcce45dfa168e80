"""The model card of a shelf: ``README.md`` with metadata for the Hub (``card.md.jinja``).

Whatever comes from a model or a recipe is foreign: it goes through ``escape``, ``code`` or
``fenced`` and the YAML dumper, so that no name can become markup. The tables come from the reports
alone; the check of a release makes them again and looks for their lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zenconvert.formats.registry import format_named
from zenconvert.publication.facts import ReleaseFacts, VariantFacts
from zenconvert.publication.names import REPOSITORY, repository_name
from zenconvert.publication.usage import usage
from zenconvert.verification.figures import figure, megabytes, parameter_count, span
from zenconvert.verification.markdown import code, engine_table, escape

if TYPE_CHECKING:
    from jinja2 import Template

CARD: Final = "README.md"
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?")
_TAG: Final = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_LICENCE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_NONE: Final = "–"


def card(
    facts: ReleaseFacts, shelf: str, variants: Sequence[VariantFacts], extra: Sequence[str]
) -> str:
    """The card's text; ``extra`` are the names of files that are neither weights nor evidence."""
    import yaml

    metadata = yaml.safe_dump(card_metadata(facts, variants), sort_keys=False)
    return _template().render(
        metadata=metadata,
        facts=facts,
        source=facts.source,
        title=repository_name(facts, shelf),
        parameters=parameter_count(facts.source.parameters),
        format=variants[0].format.upper(),
        table="\n".join(measured_table(variants)),
        details=[(v, list(language_tables(v))) for v in variants],
        calibration=facts.calibration,
        usage=usage(facts, shelf, variants),
        extra=extra,
    )


def card_metadata(facts: ReleaseFacts, variants: Sequence[VariantFacts]) -> dict[str, Any]:
    """The front matter; what the Hub would not take is left out, or said as it can be said."""
    source, form = facts.source, format_named(variants[0].format)
    found: dict[str, Any] = {}
    if source.base_model is not None and REPOSITORY.fullmatch(source.base_model):
        found |= {"base_model": source.base_model, "base_model_relation": "quantized"}
    languages = [code for code in source.languages if _LANGUAGE.fullmatch(code)]
    if languages:
        found["language"] = languages
    if source.licence is not None:
        known = _LICENCE.fullmatch(source.licence.lower())
        found["license"] = source.licence.lower() if known else "other"
        if not known:
            found["license_name"] = re.sub(r"[^a-z0-9.-]+", "-", source.licence.lower()).strip("-")
    found["library_name"] = form.library
    found["pipeline_tag"] = "text-generation"
    ours = [form.tag, "zenconvert", *(["conversational"] if source.chat_template else [])]
    found["tags"] = list(dict.fromkeys([*ours, *(t for t in source.tags if _TAG.fullmatch(t))]))
    if facts.hub is not None:
        found["quantized_by"] = facts.hub
    return found


def measured_table(variants: Sequence[VariantFacts]) -> Iterator[str]:
    """One row a file and engine: what it weighs, and what it lost."""
    yield (
        "| file | target | size | bits a weight | KL mean | 95 % | worst language "
        "| perplexity ratio | top-1 | engine | verdict |"
    )
    yield "|---|---|--:|--:|--:|---|---|--:|--:|---|---|"
    for variant in variants:
        for cells in _rows(variant):
            yield f"| {' | '.join(cells)} |"


def _rows(variant: VariantFacts) -> Iterator[list[str]]:
    name = code(variant.files[0] if variant.is_file and variant.files else variant.name)
    if len(variant.files) > 1 and variant.is_file:
        name += f" and {len(variant.files) - 1} more"
    size = megabytes(variant.size) if variant.files else _NONE
    start, verdict = [name, code(variant.target), size], f"**{escape(variant.outcome)}**"
    if variant.report is None:
        yield [*start, *([_NONE] * 7), verdict]
        return
    for run in variant.report.runs:
        overall, worst = run.overall, run.summary.worst_language
        yield [
            *start,
            f"{variant.report.candidate_facts.bits_per_weight:.2f}",
            figure(overall, "kl.mean"),
            span(overall, "kl.mean"),
            f"{escape(worst)} {figure(run.languages[worst], 'kl.mean')}",
            figure(overall, "perplexity.ratio"),
            figure(overall, "top1"),
            escape(run.engine),
            verdict,
        ]


def language_tables(variant: VariantFacts) -> Iterator[str]:
    """One table an engine, the worst language first."""
    if variant.report is not None:
        for run in variant.report.runs:
            yield from engine_table(run)


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # this is Markdown: what is foreign goes through the filters
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": escape, "code": code}
    return environment.get_template("card.md.jinja")
