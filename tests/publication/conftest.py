"""A small real release: two GGUF files, a GPTQ folder and an ONNX folder of the bundled model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from zenconvert import __version__, convert, gate, open_checkpoint, verify
from zenconvert.publication.evidence import assemble
from zenconvert.publication.facts import (
    CalibrationFacts,
    ReleaseFacts,
    SourceFacts,
    VariantFacts,
)
from zenconvert.texts.samples import load_bundled
from zenconvert.verification.facts import artifact
from zenconvert.verification.policy import Policy

SOURCE = "builtin:zen-nano"
RECIPE = b'[source]\npath = "builtin:zen-nano"\n'
TARGETS = {
    "Q4_0": ("gguf:q4_0", "GGUF", "zen-nano-Q4_0.gguf"),
    "Q8_0": ("gguf:q8_0", "GGUF", "zen-nano-Q8_0.gguf"),
    "GPTQ-w4g128": ("gptq:w4g128", "GPTQ-w4g128", ""),
    "ONNX-int4": ("onnx:int4", "ONNX-int4", ""),
}
POLICY = """\
name = "lenient"
min_tokens = 10
min_blocks = 2

[tier.any]
bits = [1, 16]
overall = { "kl.mean" = { at_most = 1.0 } }
language = { "kl.mean" = { at_most = 2.0 } }
"""
Made = tuple[ReleaseFacts, Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Facts of a release and its folder with the weights alone; nobody writes there."""
    root = tmp_path_factory.mktemp("made")
    folder, text, policy = root / "release", root / "text.jsonl", root / "policy.toml"
    rows = [
        {"language": s.language, "id": s.id, "text": s.content[:120]}
        for language in ("en", "ar")
        for s in load_bundled("evaluation", [language])[:3]
    ]
    text.write_text("\n".join(map(json.dumps, rows)))
    policy.write_text(POLICY)
    variants = []
    for name, (target, shelf, file) in TARGETS.items():
        place = folder / shelf
        place.mkdir(parents=True, exist_ok=True)
        out = place / file if file else place
        if not file:
            place.rmdir()
        convert(SOURCE, out, target)
        report = verify(SOURCE, out, text=text, threads=1)
        files = (file,) if file else tuple(sorted(p.name for p in out.iterdir()))
        variants.append(
            VariantFacts(
                name=name,
                target=target,
                format=target.partition(":")[0],
                shelf=shelf,
                files=files,
                size=sum((place / f).stat().st_size for f in files),
                exact=False,
                losses=("84 linear weights: bf16 → 4 bits, rounded to nearest",),
                report=report,
                verdict=gate(report, policy),
            )
        )
    broken = VariantFacts(
        "Q2_K", "gguf:q2_k", "gguf", "GGUF", (), 0, False, (), None, None,
        error=f"{folder}/GGUF/zen-nano-Q2_K.gguf: 256 columns do not hold",
    )  # fmt: skip
    facts = ReleaseFacts(
        name="zen-nano",
        source=source_facts(),
        calibration=CalibrationFacts(
            "bundled calibration texts", "a" * 64, "b" * 64, {"en": 1200, "ar": 900}, 7
        ),
        policy=str(policy),
        policy_sha256=Policy.load(policy).sha256,
        recipe=RECIPE,
        version=__version__,
        variants=(*variants, broken),
        policy_file=policy.read_bytes(),
    )
    return facts, folder


def source_facts() -> SourceFacts:
    """What there is to know of the bundled model."""
    checkpoint = open_checkpoint(SOURCE)
    tokenizer = checkpoint.tokenizer
    return SourceFacts(
        path=SOURCE,
        revision=None,
        sha256=artifact(checkpoint, SOURCE).sha256,
        name="zen-nano",
        base_model="zen-lab/zen-nano",
        licence="apache-2.0",
        languages=("en", "zh", "ar"),
        tags=("multilingual",),
        architecture=checkpoint.architecture.id,
        model_type=str(checkpoint.config["model_type"]),
        parameters=sum(t.elements for t in checkpoint.tensors.values()),
        context=checkpoint.hyperparameters.context,
        chat_template=tokenizer.chat_template,
        special={role: tokenizer.tokens[i] for role, i in tokenizer.special.items()},
    )


@pytest.fixture(scope="session")
def whole(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The assembled release; nobody writes there."""
    facts, weights = made
    folder = tmp_path_factory.mktemp("whole") / "release"
    shutil.copytree(weights, folder)
    assemble(facts, folder)
    return facts, folder


@pytest.fixture
def release(whole: Made, tmp_path: Path) -> Made:
    """A copy of the assembled release to break."""
    facts, folder = whole
    return facts, Path(shutil.copytree(folder, tmp_path / "release"))


Renamed = Callable[[str], ReleaseFacts]


@pytest.fixture
def hostile(made: Made) -> ReleaseFacts:
    """Facts whose names try to be markup, YAML, shell and templates."""
    facts, _ = made
    name = "zen](http://evil.example)\n# <script>alert(1)</script> | `x` {{ 7*7 }} \"'$(id)"
    source = replace(
        facts.source,
        name=name,
        base_model="evil: [yaml",
        licence="Custom: Licence\nkey: value",
        languages=("en", "x\ny: z"),
        tags=("good", "bad: tag\n- x"),
        special={"eos": '"""\nFROM evil\n"""'},
    )
    variants = tuple(
        replace(v, losses=(f"{name} was lossy",)) if v.report else v for v in facts.variants
    )
    return replace(facts, source=source, variants=variants)
