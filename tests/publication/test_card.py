"""Model cards: read by huggingface_hub and a Markdown parser; what they say to run is run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.publication.conftest import SOURCE, Made
from zenconvert.models import builtin_path
from zenconvert.publication.evidence import shelf_evidence
from zenconvert.publication.facts import ReleaseFacts
from zenconvert.publication.release_report import cleaned
from zenconvert.publication.usage import usage
from zenconvert.verification.figures import figure, span


def card_of(facts: ReleaseFacts, shelf: str) -> str:
    told = cleaned(facts)
    variants = told.shelves[shelf]
    digests = {name: "0" * 64 for v in variants for name in v.files}
    return shelf_evidence(told, shelf, variants, digests, b"")["README.md"].decode()


def tokens(text: str) -> list[Token]:
    """Of the text after the front matter, inline ones too."""
    body = text.split("---\n", 2)[2]
    blocks = MarkdownIt("commonmark").enable("table").parse(body)
    return [t for block in blocks for t in (block, *(block.children or ()))]


def python_block(text: str) -> str:
    found = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_hub_reads_the_metadata(whole: Made) -> None:
    card = ModelCard.load(whole[1] / "GGUF" / "README.md")
    assert card.data.to_dict() == {
        "base_model": "zen-lab/zen-nano",
        "base_model_relation": "quantized",
        "language": ["en", "zh", "ar"],
        "license": "apache-2.0",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "zenconvert", "conversational", "multilingual"],
    }
    for shelf, library in (("GPTQ-w4g128", "transformers"), ("ONNX-int4", "onnx")):
        card = ModelCard.load(whole[1] / shelf / "README.md")
        assert card.data.library_name == library


def test_metadata_that_is_not_known_is_left_out(made: Made) -> None:
    facts, _ = made
    source = replace(facts.source, base_model=None, licence="My Own", languages=(), tags=())
    found = ModelCard(card_of(replace(facts, source=source, hub="zen-lab"), "GGUF")).data.to_dict()
    assert "base_model" not in found
    assert "base_model_relation" not in found
    assert "language" not in found
    assert (found["license"], found["license_name"]) == ("other", "my-own")
    assert found["quantized_by"] == "zen-lab"


def test_the_table_has_the_figures_of_the_report(whole: Made) -> None:
    facts, folder = whole
    text = (folder / "GGUF" / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == 3
    for row, variant in zip(rows, facts.shelves["GGUF"], strict=True):
        if variant.report is None:
            assert "**ERROR**" in row
            continue
        run = variant.report.runs[0]
        worst = run.summary.worst_language
        for cell in (
            variant.files[0],
            variant.target,
            f"{variant.report.candidate_facts.bits_per_weight:.2f}",
            figure(run.overall, "kl.mean"),
            span(run.overall, "kl.mean"),
            f"{worst} {figure(run.languages[worst], 'kl.mean')}",
            figure(run.overall, "perplexity.ratio"),
            figure(run.overall, "top1"),
            "torch",
            f"**{variant.outcome}**",
        ):
            assert cell in row
        assert f"| ar | {figure(run.languages['ar'], 'kl.mean')} |" in text


def test_it_says_what_was_lossy_and_what_was_read(whole: Made) -> None:
    text = (whole[1] / "GPTQ-w4g128" / "README.md").read_text()
    assert "- 84 linear weights: bf16 → 4 bits, rounded to nearest" in text
    assert "| ar | 900 |" in text
    assert "b" * 64 in text
    without = card_of(replace(whole[0], calibration=None), "GPTQ-w4g128")
    assert "No texts were read" in without


@pytest.mark.parametrize("shelf", ["GGUF", "GPTQ-w4g128", "ONNX-int4"])
def test_nothing_foreign_becomes_markup(hostile: ReleaseFacts, made: Made, shelf: str) -> None:
    text = card_of(hostile, shelf)
    kinds = {token.type for token in tokens(text)}
    assert not kinds & {"link_open", "html_block", "html_inline", "image", "blockquote_open"}
    titles = [t.type for t in tokens(text) if t.type == "heading_open"]
    assert len(titles) == len(
        [t for t in tokens(card_of(made[0], shelf)) if t.type == "heading_open"]
    )
    assert "<script>" not in text
    assert r"{{ 7\*7 }}" in text
    assert not re.search(r"https?://", text)
    metadata = yaml.safe_load(text.split("---\n", 2)[1])
    assert set(metadata) == {
        "license", "license_name", "language", "library_name", "pipeline_tag", "tags"
    }  # fmt: skip
    assert metadata["language"] == ["en"]
    assert "bad: tag\n- x" not in metadata["tags"]


def test_commands_name_the_repository_where_there_is_one(made: Made) -> None:
    facts = replace(made[0], hub="zen-lab")
    gguf = dict(usage(facts, "GGUF", facts.shelves["GGUF"]))
    assert "hf download zen-lab/zen-nano-GGUF zen-nano-Q4_0.gguf --local-dir ." in gguf["llama.cpp"]
    assert "lms get https://huggingface.co/zen-lab/zen-nano-GGUF" in gguf["LM Studio"]
    assert "ollama create zen-nano -f Modelfile" in gguf["Ollama"]
    gptq = dict(usage(facts, "GPTQ-w4g128", facts.shelves["GPTQ-w4g128"]))
    assert list(gptq) == ["Transformers", "vLLM"]
    assert "vllm serve zen-lab/zen-nano-GPTQ-w4g128" in gptq["vLLM"]
    broken = [v for v in facts.variants if not v.is_made]
    assert usage(facts, "GGUF", broken) == []


def test_the_snippet_for_transformers_runs(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, _ = made
    variant = replace(facts.variants[2], format="hf", shelf="HF-bf16", target="hf:bf16")
    text = "\n".join(block for _, block in usage(facts, "HF-bf16", [variant]))
    place = builtin_path(SOURCE.removeprefix("builtin:"))
    snippet = python_block(text).replace("'./HF-bf16'", repr(str(place)))
    snippet = snippet.replace("max_new_tokens=64", "max_new_tokens=4")
    exec(compile(snippet, "card", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_snippet_for_onnxruntime_genai_runs(
    whole: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf = whole[1] / "ONNX-int4"
    monkeypatch.chdir(shelf)
    exec(compile(python_block(Path("README.md").read_text()), "card", "exec"), {})
    assert "Hello!" in capsys.readouterr().out


def test_a_graph_without_genai_is_run_by_onnxruntime(
    whole: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, folder = whole
    variant = facts.variants[3]
    variant = replace(variant, files=tuple(f for f in variant.files if f != "genai_config.json"))
    title, block = usage(facts, "ONNX-int4", [variant])[0]
    assert title == "onnxruntime"
    monkeypatch.chdir(folder / "ONNX-int4")
    exec(compile(python_block(block), "card", "exec"), {})
    assert "input_ids" in capsys.readouterr().out
