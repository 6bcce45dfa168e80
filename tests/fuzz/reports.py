"""A report of random scores, and a release of one tiny file with everything that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from tests.fuzz import gguf_shape, models
from tests.fuzz.models import Files
from zenconvert import open_checkpoint
from zenconvert.publication.evidence import assemble
from zenconvert.publication.facts import ReleaseFacts, SourceFacts, VariantFacts
from zenconvert.verification.drift import Scores, summarise
from zenconvert.verification.engine_check import Generation, Mismatch, Proof
from zenconvert.verification.facts import artifact, facts_of
from zenconvert.verification.gate import decide
from zenconvert.verification.histogram import histogram
from zenconvert.verification.metrics import TokenScores, concatenate
from zenconvert.verification.noise import Noise
from zenconvert.verification.policy import Policy
from zenconvert.verification.report import Report, Run, Text, documents
from zenconvert.verification.tokens import Position

POLICY: Final = """\
name = "lenient"
min_tokens = 4
min_blocks = 2
[anomaly]
lowest_ratio = 0.9
moving_bits = 4
baseline = 0.5
[against]
regression = 0.1
[tier.any]
bits = [1, 16]
parameters_below = 1e12
overall = { "kl.mean" = { at_most = 1.0, warn_above = 0.5 }, top1 = { at_least = 0.1 } }
language = { "kl.mean" = { at_most = 2.0, above_noise = true } }
[[override]]
name = "arabic"
when = { language = "ar", format = "gguf" }
overall = { "kl.max" = { at_most = 9.0 } }
"""
GGUF_FILE: Final = "Tiny-F16.gguf"
_VOCABULARY: Final = len(models.TOKENS)


def _scores(seed: int, count: int = 8) -> TokenScores:
    random = np.random.default_rng(seed)
    reference, kl = random.uniform(0.1, 3, count), random.uniform(1e-6, 1e-2, count)
    tops = random.integers(0, _VOCABULARY, count).astype(np.int32)
    return TokenScores(
        tokens=random.integers(0, _VOCABULARY, count).astype(np.int32),
        reference_nll=reference,
        candidate_nll=reference + random.normal(0, 0.01, count),
        kl=kl,
        reference_top=tops,
        candidate_top=tops,
        reference_top_nll=reference / 2,
        candidate_top_nll=reference / 2,
    )


def _languages(seed: int, languages: Sequence[str]) -> list[Scores]:
    found = []
    for number, language in enumerate(languages):
        scores = Scores(language)
        for document in range(3):
            scores.add(f"{language}-{document}", _scores(seed + 10 * number + document))
        found.append(scores)
    return found


@cache
def report(path: Path, told: Sequence[str] = ("ar", "en")) -> Report:
    """A report that says that a file is like itself, in some languages."""
    checkpoint = open_checkpoint(path)
    lengths = np.ones(_VOCABULARY, dtype=np.int32)
    languages = _languages(0, told)
    kl = concatenate([part for scores in languages for part in scores.parts]).kl
    run = Run(
        engine="torch",
        details={"version": "1", "device": "cpu"},
        summary=summarise(languages, lengths),
        proof=Proof(
            6, ("ar", "en"), (Mismatch("en", "en-0", 3, (1, 2), (1, 3)),),
            (Generation("en", "a", "b", True),),
        ),
        histogram=histogram(kl),
        worst=(Position("en", "en-0", 0, 3, 0.01, "before", "a", 0.5, 0.4, "a", 0.5, "b", 0.6),),
        documents=documents(languages),
    )  # fmt: skip
    noise = Noise("float16", summarise(_languages(100, told), lengths), histogram(kl))
    named = artifact(checkpoint, GGUF_FILE)
    facts = facts_of(checkpoint)
    text = Text("bundled evaluation texts", "c" * 64, 6)
    return Report(
        named, named, facts, facts, 64, text, noise, (run,), absent={"vllm": "absent"},
        version="0.1.0",
    )  # fmt: skip


@cache
def release() -> Files:
    """A release with one shelf."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "release"
        shelf = folder / "GGUF"
        shelf.mkdir(parents=True)
        path = shelf / GGUF_FILE
        path.write_bytes(gguf_shape.pack(models.gguf()))
        policy = Path(place) / "policy.toml"
        policy.write_text(POLICY)
        loaded = Policy.load(policy)
        measured = report(path)
        variant = VariantFacts(
            "F16", "gguf:f16", "gguf", "GGUF", (GGUF_FILE,), path.stat().st_size, True, (),
            measured, decide(measured, loaded),
        )  # fmt: skip
        source = SourceFacts(
            "org/Tiny", "main", "d" * 64, "Tiny", "org/Tiny", "apache-2.0", ("en",), ("a",),
            "llama", "llama", 1000, 64, models.TEMPLATE, {"eos": "</s>"},
        )  # fmt: skip
        facts = ReleaseFacts(
            "Tiny", source, None, str(policy), loaded.sha256, b"", "0.1.0", (variant,),
            policy.read_bytes(),
        )  # fmt: skip
        assemble(facts, folder)
        report.cache_clear()
        return models.files_of(folder)


@cache
def report_bytes(told: Sequence[str] = ("ar", "en")) -> bytes:
    """The report of the release as a file of its own."""
    with TemporaryDirectory() as place:
        path = Path(place) / GGUF_FILE
        path.write_bytes(gguf_shape.pack(models.gguf()))
        value = report(path, told).as_dict()
        report.cache_clear()
    return json.dumps(value).encode()
