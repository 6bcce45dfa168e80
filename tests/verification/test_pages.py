"""The HTML page, the Markdown summary, the schema and the comparison."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.verification.conftest import SOURCE, Gguf, Verified
from zenconvert import Report, compare, gate, verify
from zenconvert.errors import UsageError
from zenconvert.texts.samples import LANGUAGES, load_bundled
from zenconvert.verification.charts import linear_axis, power_label
from zenconvert.verification.histogram import EDGES, histogram
from zenconvert.verification.markdown import summary
from zenconvert.verification.rendering import comparison_page, report_page
from zenconvert.verification.report import SCHEMA

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def ten(gguf: Gguf, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report in all ten languages, on two short texts each."""
    path = tmp_path_factory.mktemp("ten") / "ten.jsonl"
    rows = [
        {"language": s.language, "id": s.id, "text": s.content[:60]}
        for language in LANGUAGES
        for s in load_bundled("evaluation", [language])[:2]
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return verify(SOURCE, gguf(SOURCE, "q4_k_m"), text=path)


@pytest.fixture(scope="session")
def three(verified: Verified) -> list[Report]:
    return [verified(t, "torch") for t in ("q4_k_m", "f32", "q8_0")]


class Reader(HTMLParser):
    """Collects tags and text, and complains about tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_a_page_is_whole_and_asks_for_nothing(ten: Report, three: list[Report]) -> None:
    for page in (report_page(ten, gate(ten)), report_page(ten), comparison_page(compare(three))):
        reader = read(page)
        tags = {tag for tag, _, _ in reader.attributes}
        assert not tags & {"script", "link", "img", "iframe", "object", "base"}
        assert not {n for _, n, _ in reader.attributes if n in {"src", "href"} or n[:2] == "on"}
        assert not re.search(r"url\(|@import|https?:", page)
        assert "prefers-color-scheme: dark" in page


def test_the_verdict_comes_first(ten: Report) -> None:
    verdict = gate(ten)
    words = " ".join(read(report_page(ten, verdict)).words)
    assert words.index(verdict.outcome) < words.index("Engine torch")
    for reason in verdict.reasons:
        assert reason in words
    assert "Not judged" in report_page(ten)


def test_all_figures_and_languages_are_on_the_page(ten: Report) -> None:
    words = " ".join(read(report_page(ten)).words)
    for code in LANGUAGES:
        drift = ten.languages[code]
        assert f"{drift.kl_mean:.5f}" in words or f"{drift.kl_mean:.4f}" in words, code
        assert f"{drift.reference_perplexity:.3f}" in words
    assert ten.candidate.sha256 in words
    assert ten.text.ids_sha256 in words
    for position in ten.runs[0].worst:
        assert position.before.split("\n")[0] in words
    assert len(re.findall('class="whisker"', report_page(ten))) == len(LANGUAGES) + 1


def test_texts_cannot_become_markup(ten: Report) -> None:
    evil = '<script>alert("1")</script>&'
    run = ten.runs[0]
    worst = replace(run.worst[0], before=evil, token=evil, sample=evil, reference_top=evil)
    odd = replace(
        ten,
        candidate=replace(ten.candidate, path=evil),
        absent={"vllm": evil},
        runs=(replace(run, worst=(worst,)),),
    )
    page = report_page(odd)
    read(page)
    assert "<script" not in page
    assert html.escape(evil, quote=False) in page.replace("&#34;", '"')
    assert "<script" not in comparison_page(compare([odd, replace(odd)]))
    assert "<script" not in summary(odd)


def test_texts_of_other_scripts_are_marked(ten: Report) -> None:
    worst = ten.runs[0].worst[0]
    arabic = replace(worst, language="ar", before="كلمة")
    odd = replace(ten, runs=(replace(ten.runs[0], worst=(arabic,)),))
    assert '<p class="read" dir="auto" lang="ar">كلمة<mark>' in report_page(odd)


def shown(page: str, width: int, tmp_path: Path, *options: str) -> str:
    """The title that a page gives itself in a browser of this width: how wide it becomes."""
    assert BROWSER is not None
    file = tmp_path / "framed.html"
    file.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><iframe id="f" width="{width}" height="900" '
        f'srcdoc="{html.escape(page)}"></iframe><script>onload = () => {{ const d = document.'
        "getElementById('f').contentDocument; document.title = d.documentElement.scrollWidth + ' '"
        " + d.documentElement.clientWidth + ' ' + d.querySelectorAll('section').length }</script>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", *options,
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,1000", file.as_uri()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search("<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stderr
    return found[1]


def test_no_page_is_wider_than_the_window(ten: Report, three: list[Report], tmp_path: Path) -> None:
    """In a real browser, where one is installed; the other tests need none."""
    if BROWSER is None:
        return
    single, several = report_page(ten, gate(ten)), comparison_page(compare(three))
    for page, width in ((single, 390), (single, 1440), (several, 390), (several, 1440)):
        wide, room, sections = map(int, shown(page, width, tmp_path).split())
        assert sections > 1
        assert wide <= room <= width


def test_a_screenshot_is_light_or_dark_as_the_reader_likes(ten: Report, tmp_path: Path) -> None:
    if BROWSER is None:
        return
    (tmp_path / "page.html").write_text(report_page(ten), encoding="utf-8")
    sizes = []
    for scheme in ("0", "1"):  # dark, light
        out = tmp_path / f"{scheme}.png"
        subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={out}",
             f"--blink-settings=preferredColorScheme={scheme}", "--window-size=390,900",
             f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()],
            capture_output=True, check=True,
        )  # fmt: skip
        sizes.append(out.read_bytes())
    assert sizes[0] != sizes[1]
    assert all(len(data) > 20_000 for data in sizes)


def test_reports_obey_the_published_schema(
    ten: Report, verified: Verified, three: list[Report]
) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    judged = {**ten.as_dict(), "verdict": gate(ten).as_dict()}
    both = replace(ten, runs=(*ten.runs, *verified("q4_k_m", "llamacpp").runs), absent={"a": "b"})
    for value in (judged, both.as_dict(), *(r.as_dict() for r in three)):
        validator.validate(json.loads(json.dumps(value, allow_nan=False)))
    for path, wrong in (
        ("overall/kl/mean", "much"), ("candidate/sha256", "abc"), ("languages", {}),
        ("overall/intervals/top1", [0.5]), ("verdict/outcome", "GOOD"), ("surprise", 1),
    ):  # fmt: skip
        broken = json.loads(json.dumps(judged))
        *parents, last = path.split("/")
        place = broken
        for parent in parents:
            place = place[parent]
        place[last] = wrong
        assert not validator.is_valid(broken), path


def test_variants_are_ranked_only_where_they_differ(three: list[Report]) -> None:
    comparison = compare(three)
    assert [(v.name.split("-")[-1], v.rank) for v in comparison.engines["torch"]] == [
        ("f32.gguf", 1),
        ("q8_0.gguf", 2),
        ("q4_k_m.gguf", 3),
    ]
    assert all(v.on_front for v in comparison.engines["torch"])
    run = three[0].runs[0]
    rows = [replace(d, kl=d.kl * (1.01 if n % 2 else 0.985)) for n, d in enumerate(run.documents)]
    near = replace(
        three[0],
        candidate=replace(three[0].candidate, path="near.gguf"),
        candidate_facts=replace(three[0].candidate_facts, bytes=10**9),
        runs=(replace(run, documents=tuple(rows)),),
    )
    beside = compare([*three, near]).engines["torch"]
    assert [v.rank for v in beside] == [1, 2, 3, 3]
    assert [v.on_front for v in beside if v.name == "near.gguf"] == [False]
    page = comparison_page(compare([*three, near]))
    assert "near.gguf" in page
    assert page.count('class="front"') == 2


def test_noise_shares_the_first_rank(three: list[Report]) -> None:
    """f32 against itself, moved by less than the noise floor."""
    exact = three[1]
    run = exact.runs[0]
    floor = exact.noise.summary.overall.kl_mean
    moved = tuple(replace(d, kl=d.kl + floor / 2 * d.tokens) for d in run.documents)
    other = replace(
        exact,
        candidate=replace(exact.candidate, path="other.gguf"),
        runs=(replace(run, documents=moved),),
    )
    assert [v.rank for v in compare([exact, other]).engines["torch"]] == [1, 1]


def test_only_like_is_compared_with_like(three: list[Report], ten: Report) -> None:
    with pytest.raises(UsageError, match="no report"):
        compare([])
    with pytest.raises(UsageError, match="on another text"):
        compare([three[0], ten])
    other = replace(three[0], reference=replace(three[0].reference, sha256="0" * 64))
    with pytest.raises(UsageError, match="on another reference"):
        compare([three[0], other])


def test_the_summary_is_a_table_that_texts_cannot_break(ten: Report) -> None:
    lines = summary(ten, gate(ten)).splitlines()
    assert lines[0].startswith("### ")
    assert "**" in lines[2]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 1 + len(LANGUAGES)
    assert len({line.count("|") for line in table}) == 1
    assert [row.split("|")[1].strip() for row in table[3:]] == sorted(
        LANGUAGES, key=lambda code: -ten.languages[code].kl_mean
    )
    odd = replace(ten, reference=replace(ten.reference, path="a|b*c"))
    assert r"a\|b\*c" in summary(odd)


def test_histograms_count_every_position() -> None:
    kl = np.array([0.0, 1e-12, 1.5e-8, 0.9e-3, 1e-3, 1.1e-3, 5.0, 1e9])
    counts = histogram(kl)
    assert sum(counts) == len(kl)
    assert (counts[0], counts[-1]) == (2, 1)
    at = EDGES.index(-3.0)
    assert (counts[at], counts[at + 1]) == (1, 2)


@pytest.mark.parametrize("top", [3e-6, 0.07, 1.0, 950.0])
def test_axes_have_a_few_round_marks(top: float) -> None:
    axis = linear_axis([top, top / 3])
    assert 3 <= len(axis.ticks) <= 6
    assert axis.at(0) == 0
    assert 90 < axis.at(top) < 100
    assert power_label(-12) == "10⁻¹²"


def test_a_report_without_documents_to_draw_has_a_page(gguf: Gguf, tmp_path: Path) -> None:
    file: Any = tmp_path / "one.txt"
    file.write_text("One line.", encoding="utf-8")
    report = verify(SOURCE, gguf(SOURCE, "q8_0"), text=file)
    assert report.overall.intervals == {}
    read(report_page(report, gate(report)))
    assert gate(report).exit_code == 6
