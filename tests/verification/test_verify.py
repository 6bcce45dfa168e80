"""Whole verifications of the bundled model against its own conversions."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from tests.verification.conftest import SOURCE, Gguf, Verified, chat_of
from zenconvert import Options, convert, open_checkpoint, verify
from zenconvert.cli import cli
from zenconvert.errors import (
    CorruptFile,
    InvalidInput,
    NotFinite,
    SourceNotFound,
    UsageError,
    ZenError,
)
from zenconvert.models import builtin_path
from zenconvert.texts.samples import Sample, load_bundled

FOLDER = builtin_path("zen-nano")
NUMBERS: dict[str, Any] = {
    "tokens": None,
    "bytes": None,
    "blocks": None,
    "perplexity": {"reference", "candidate", "ratio"},
    "bits_per_byte": {"reference", "candidate"},
    "kl": {"mean", "median", "p90", "p95", "p99", "p999", "max"},
    "top1": None,
    "flips": {"share", "lost", "gained"},
    "dp": {"mean", "rms", "min", "p001", "p01", "p05", "p25", "median", "p75", "p95", "p99", "p999",
           "max"},
}  # fmt: skip


def token_ids(sample: Sample) -> list[int]:
    """As transformers has them."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    if sample.messages is not None:
        ids = tokenizer.apply_chat_template(chat_of(sample), tokenize=True, return_dict=False)
    else:
        ids = tokenizer(sample.text, add_special_tokens=False)["input_ids"]
    return [int(i) for i in ids]


def load(folder: Path, **more: Any) -> Any:
    """As transformers has it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()


def losses(model: Any, documents: list[list[int]], context: int) -> list[np.ndarray]:
    """-ln p of every token but the first of each window, by the whole model at once."""
    result = []
    for ids in documents:
        found = []
        for begin in range(0, len(ids), context):
            window = torch.tensor([ids[begin : begin + context]])
            with torch.inference_mode():
                logits = model(window).logits[0, :-1].double()
            found.append(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none"))
        result.append(torch.cat(found).numpy())
    return result


def copy_of(source: Path, folder: Path) -> Path:
    """A copy whose weights may be replaced."""
    return Path(shutil.copytree(source, folder))


@pytest.mark.parametrize("context", [512, 64])
def test_the_perplexity_is_that_of_transformers(
    context: int, samples: list[Sample], text: Path, gguf: Gguf
) -> None:
    report = verify(SOURCE, gguf(SOURCE, "q8_0"), text=text, context=context)
    found = losses(load(FOLDER), [token_ids(sample) for sample in samples], context)
    for code, drift in report.languages.items():
        own = np.concatenate([x for s, x in zip(samples, found, strict=True) if s.language == code])
        assert drift.tokens == len(own)
        assert drift.reference_perplexity == pytest.approx(np.exp(own.mean()), rel=1e-4)
    everything = np.concatenate(found)
    assert report.overall.tokens == len(everything)
    assert report.overall.reference_perplexity == pytest.approx(np.exp(everything.mean()), rel=1e-4)


def test_the_candidates_perplexity_is_that_of_its_weights(
    samples: list[Sample], verified: Verified, gguf: Gguf
) -> None:
    """transformers loads the GGUF with its own dequantization."""
    file = gguf(SOURCE, "q4_k_m")
    model = load(file.parent, gguf_file=file.name)
    found = np.concatenate(losses(model, [token_ids(s) for s in samples], 512))
    drift = verified("q4_k_m", "torch").overall
    assert drift.candidate_perplexity == pytest.approx(np.exp(found.mean()), rel=1e-4)
    assert drift.perplexity_ratio == drift.candidate_perplexity / drift.reference_perplexity


@pytest.mark.parametrize("file_type", ["q8_0", "q4_k_m"])
def test_both_engines_agree(file_type: str, verified: Verified) -> None:
    """llama.cpp rounds activations to 8 bits as well, each build in its own way.

    How far that moves it is measured: no further than all of its drift at q8_0, whose weights and
    activations are rounded alike. The square root of the divergence is a distance to first order,
    so two engines on one file are apart by that at most.
    """
    ours, theirs = (verified(file_type, engine).overall for engine in ("torch", "llamacpp"))
    noise = verified("q8_0", "llamacpp").overall
    assert ours.tokens == theirs.tokens
    assert ours.reference_perplexity == theirs.reference_perplexity
    for key in ("kl.mean", "kl.median", "kl.p99"):
        distance = abs(theirs.figures[key] ** 0.5 - ours.figures[key] ** 0.5)
        assert distance < noise.figures[key] ** 0.5, key
    # by Pinsker's inequality a mean log-probability moves by less than the distance
    moved = np.log(theirs.candidate_perplexity / ours.candidate_perplexity)
    assert abs(moved) < (2 * noise.kl_mean) ** 0.5
    assert abs(theirs.top1 - ours.top1) <= max(2 * (1 - noise.top1), 2 / ours.tokens)


@pytest.mark.parametrize("file_type", ["f32", "bf16"])
def test_exact_files_do_not_drift(file_type: str, verified: Verified) -> None:
    ours = verified(file_type, "torch")
    for drift in (ours.overall, *ours.languages.values()):
        assert drift.kl_max < 1e-6
        assert drift.top1 == 1
        assert drift.perplexity_ratio == pytest.approx(1, abs=1e-6)
    theirs = verified(file_type, "llamacpp").overall
    assert 0 < theirs.kl_mean < 1e-3
    assert theirs.perplexity_ratio == pytest.approx(1, abs=1e-3)
    assert theirs.top1 > 0.98


@pytest.mark.parametrize("engine", ["torch", "llamacpp"])
def test_fewer_bits_drift_further(engine: str, verified: Verified) -> None:
    means = [verified(t, engine).overall.kl_mean for t in ("f32", "q8_0", "q4_k_m")]
    assert means[0] < means[1] / 5 < means[2] / 25
    agreement = [verified(t, engine).overall.top1 for t in ("f32", "q8_0", "q4_k_m")]
    assert agreement == sorted(agreement, reverse=True)


def assert_numbers(numbers: dict[str, Any], **more: set[str]) -> None:
    """The documented figures, and an interval around each."""
    intervals = numbers.pop("intervals")
    expected = {**NUMBERS, **{key: NUMBERS[key] | names for key, names in more.items()}}
    assert {k: set(v) if isinstance(v, dict) else None for k, v in numbers.items()} == expected
    for group, names in expected.items():
        if group in {"tokens", "bytes", "blocks"}:
            continue
        for name in sorted(names or {""}):
            value = numbers[group][name] if name else numbers[group]
            low, high = intervals[group][name] if name else intervals[group]
            assert low <= value <= high, (group, name)


def test_the_report_has_the_documented_keys(verified: Verified, gguf: Gguf) -> None:
    file = gguf(SOURCE, "q4_k_m")
    report = json.loads(json.dumps(verified("q4_k_m", "llamacpp").as_dict(), allow_nan=False))
    assert report["engine"] == "llamacpp"
    assert report["context"] == 512
    assert report["reference"] == {
        "path": SOURCE,
        "format": "hf",
        "sha256": hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest(),
    }
    assert report["candidate"] == {
        "path": str(file),
        "format": "gguf",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert_numbers(report["overall"])
    assert set(report["languages"]) == {"de", "en"}
    for numbers in report["languages"].values():
        assert_numbers(numbers, kl={"to_median"})
    assert report["worst_language"] == max(
        ("de", "en"), key=lambda code: report["languages"][code]["kl"]["mean"]
    )


def test_overall_is_every_token_of_every_language(verified: Verified) -> None:
    report = verified("q4_k_m", "torch")
    parts, overall = report.languages.values(), report.overall
    assert overall.tokens == sum(p.tokens for p in parts)
    mean = sum(p.kl_mean * p.tokens for p in parts) / overall.tokens
    assert overall.kl_mean == pytest.approx(mean, rel=1e-9)
    assert overall.kl_max == max(p.kl_max for p in parts)
    assert overall.top1 == pytest.approx(sum(p.top1 * p.tokens for p in parts) / overall.tokens)


def test_a_language_alone_gets_the_same_numbers(verified: Verified, gguf: Gguf, text: Path) -> None:
    alone = verify(SOURCE, gguf(SOURCE, "q4_k_m"), text=text, languages=["de"])
    assert list(alone.languages) == ["de"]
    assert alone.overall == alone.languages["de"]
    beside = verified("q4_k_m", "torch").languages["de"]
    for key, value in alone.overall.figures.items():
        assert beside.figures[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key
    for key, interval in alone.overall.intervals.items():
        assert beside.intervals[key] == pytest.approx(interval, rel=1e-3, abs=1e-6), key


def test_a_split_file_is_one_artifact(verified: Verified, text: Path, tmp_path: Path) -> None:
    files = convert(
        SOURCE, tmp_path / "m.gguf", "gguf:q4_k_m", options=Options(split_max_size=3_000_000)
    ).files
    assert len(files) > 1
    report = verify(SOURCE, files[0], engine="llamacpp", text=text, threads=1)
    whole = verified("q4_k_m", "llamacpp")
    assert report.overall.kl_mean == pytest.approx(whole.overall.kl_mean, rel=0.01)
    sums = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)
    assert report.candidate.sha256 == hashlib.sha256(sums.encode()).hexdigest()


def test_bundled_texts_are_the_default(gguf: Gguf) -> None:
    report = verify(SOURCE, gguf(SOURCE, "q8_0"), languages=["en"])
    expected = sum(len(token_ids(s)) - 1 for s in load_bundled("evaluation", ["en"]))
    assert list(report.languages) == ["en"]
    assert report.worst_language == "en"
    assert report.overall.tokens == expected


def test_a_plain_file_is_one_document_of_no_known_language(gguf: Gguf, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("The first paragraph.\n\nThe second one, 3 < 4.\n" * 40, encoding="utf-8")
    report = verify(SOURCE, gguf(SOURCE, "q8_0"), text=file, context=128)
    ids = token_ids(Sample("book", "und", "text", file.read_text(), None))
    windows = -(-len(ids) // 128)
    assert windows > 3
    assert list(report.languages) == ["und"]
    assert report.overall.tokens == len(ids) - windows
    assert report.context == 128


def test_an_artifact_of_any_format_can_be_either_side(gguf: Gguf, short: Path) -> None:
    there = verify(gguf(SOURCE, "q4_k_m"), FOLDER, text=short).overall
    back = verify(FOLDER, gguf(SOURCE, "q4_k_m"), text=short).overall
    assert there.reference_perplexity == pytest.approx(back.candidate_perplexity)
    assert there.candidate_perplexity == pytest.approx(back.reference_perplexity)
    assert there.kl_mean != pytest.approx(back.kl_mean, rel=1e-3)


def test_progress_reaches_the_end_of_every_stage(gguf: Gguf, short: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def note(stage: str, done: int, total: int) -> None:
        seen.setdefault(stage, []).append((done, total))

    verify(SOURCE, gguf(SOURCE, "q8_0"), text=short, progress=note)
    assert set(seen) == {"reference", "noise floor", "candidate", "scoring"}
    for steps in seen.values():
        total = steps[-1][1]
        assert steps == [(n, total) for n in range(1, total + 1)]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"engine": "onnx"}, UsageError, "'onnx'; known are torch, llamacpp"),
        ({"languages": ["en", "tlh"]}, UsageError, "'tlh'"),
        ({"languages": []}, UsageError, "nothing to measure"),
        ({"text": "absent.jsonl"}, UsageError, "absent.jsonl: there is no such text file"),
        ({"device": "abacus"}, UsageError, "device 'abacus'"),
        ({"context": 1}, UsageError, "too short"),
        ({"candidate": Path("absent.gguf")}, SourceNotFound, "absent.gguf"),
        ({"candidate": "builtin:zen-giga"}, SourceNotFound, "zen-giga"),
        ({"reference": Path("absent")}, SourceNotFound, "absent"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    wrong: dict[str, Any], error: type[ZenError], message: str, gguf: Gguf
) -> None:
    given: dict[str, Any] = {"reference": SOURCE, "candidate": gguf(SOURCE, "q8_0")}
    with pytest.raises(error, match=message) as caught:
        verify(**given | wrong)
    assert type(caught.value) is error


def test_languages_without_a_text_are_refused(gguf: Gguf, text: Path) -> None:
    for codes in (["fr"], ["en", "fr"]):
        with pytest.raises(UsageError, match="no text in fr; there is de, en"):
            verify(SOURCE, gguf(SOURCE, "q8_0"), text=text, languages=codes)


def test_empty_and_broken_texts_are_refused(gguf: Gguf, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    for content, error in (("", UsageError), ('{"text": "x"}\n', UsageError), ("{", CorruptFile)):
        file.write_text(content)
        with pytest.raises(error):
            verify(SOURCE, gguf(SOURCE, "q8_0"), text=file)


def test_the_llamacpp_engine_takes_gguf_candidates_only(short: Path) -> None:
    with pytest.raises(UsageError, match="runs GGUF files"):
        verify(SOURCE, SOURCE, engine="llamacpp", text=short)


def test_other_vocabularies_are_refused(gguf: Gguf, short: Path, tmp_path: Path) -> None:
    (tmp_path / "padded").mkdir()
    vocab = MAKERS["qwen2"](tmp_path / "padded")
    padded = raw_model(tmp_path / "padded", "qwen2", vocab_size=vocab)
    swapped = copy_of(FOLDER, tmp_path / "swapped")
    definition = json.loads((swapped / "tokenizer.json").read_text(encoding="utf-8"))
    ids = definition["model"]["vocab"]
    ids["Ġthe"], ids["Ġof"] = ids["Ġof"], ids["Ġthe"]
    (swapped / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    for other in (padded, swapped):
        with pytest.raises(InvalidInput, match="its vocabulary is not that of"):
            verify(SOURCE, other, text=short)
        with pytest.raises(InvalidInput, match="its vocabulary is not that of"):
            verify(other, gguf(SOURCE, "q8_0"), text=short)


def test_a_truncated_candidate_is_refused(gguf: Gguf, short: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(gguf(SOURCE, "q8_0").read_bytes()[:-5000])
    with pytest.raises(CorruptFile, match=r"cut\.gguf"):
        verify(SOURCE, file, text=short)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    value: float, gguf: Gguf, short: Path, tmp_path: Path
) -> None:
    folder = copy_of(FOLDER, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.mlp.down_proj.weight"][5, 7] = value
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file = tmp_path / "broken.gguf"
    convert(folder, file, "gguf:bf16")
    engines = ("torch", "llamacpp") if np.isnan(value) else ("torch",)
    for engine in engines:
        with pytest.raises(NotFinite, match="the candidate's logits are not finite in sample"):
            verify(SOURCE, file, engine=engine, text=short, threads=1)
    with pytest.raises(NotFinite, match=r"the candidate's .*short\.txt \(und\), tokens 0 to"):
        verify(SOURCE, folder, text=short)
    with pytest.raises(NotFinite, match="the reference's logits are not finite"):
        verify(folder, gguf(SOURCE, "q8_0"), text=short)


def test_the_command_prints_a_table_and_writes_the_report(
    gguf: Gguf, text: Path, verified: Verified, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    command = ["verify", SOURCE, str(gguf(SOURCE, "q4_k_m")), "--text", str(text)]
    done = CliRunner().invoke(cli, [*command, "--json", str(out)], catch_exceptions=False)
    report = verified("q4_k_m", "torch")
    assert done.exit_code == 0
    assert json.loads(out.read_text(encoding="utf-8")) == {**report.as_dict(), "warnings": []}
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows[1:4]] == [
        [name, str(drift.tokens)]
        for name, drift in (("overall", report.overall), *report.languages.items())
    ]
    assert rows[1][5] == f"{report.overall.kl_mean:.5f}"
    assert f"worst language: {report.worst_language} (engine torch)" in done.stdout


def test_the_command_evaluates_the_languages_asked_for(gguf: Gguf, text: Path) -> None:
    command = ["verify", SOURCE, str(gguf(SOURCE, "q8_0")), "--text", str(text)]
    done = CliRunner().invoke(cli, [*command, "--languages", " de ,"], catch_exceptions=False)
    assert [line.split()[0] for line in done.stdout.splitlines()[1:3]] == ["overall", "de"]


def test_models_that_begin_with_bos_get_it_once_a_window(tmp_path: Path, short: Path) -> None:
    """A Qwen2 tokenizer whose post-processor puts BOS before a text."""
    folder = copy_of(FOLDER, tmp_path / "with-bos")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "bos_token": "<|endoftext|>", "add_bos_token": True}))
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = "<|endoftext|>"
    fast.post_processor = TemplateProcessing(f"{bos} $A", f"{bos} $A $B:1", [(bos, 8189)])
    fast.save(str(folder / "tokenizer.json"))
    assert open_checkpoint(folder).tokenizer.add_bos
    report = verify(folder, SOURCE, text=short, context=6)
    ids = token_ids(Sample("short", "und", "text", short.read_text(), None))
    found = losses(load(FOLDER), [[8189, *ids[n : n + 5]] for n in range(0, len(ids), 5)], 6)
    assert report.overall.tokens == len(ids)
    assert report.overall.reference_perplexity == pytest.approx(
        np.exp(np.concatenate(found).mean()), rel=1e-4
    )
