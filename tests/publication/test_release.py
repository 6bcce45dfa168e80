"""A small release from end to end: what is made, what is not made again, kills at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from zenconvert import ReleaseResult, plan_release, release
from zenconvert.cli import cli
from zenconvert.errors import (
    GateFailed,
    InvalidInput,
    NotEnoughResources,
    ReleaseFailed,
    UsageError,
)
from zenconvert.publication.checking import check_release
from zenconvert.publication.jobs import Event, JobDone, JobFailed, JobSkipped, JobStarted
from zenconvert.publication.publishing import Published
from zenconvert.publication.signing import Signer

ROOT = Path(__file__).parent.parent.parent
SUMS = "SHA256SUMS"
TEXT = [
    {"language": "en", "text": "The cat sat on the mat. " * 6},
    {"language": "en", "text": "A dog ran over the wet grass. " * 6},
    {"language": "de", "text": "Die Katze saß auf der Matte. " * 6},
    {"language": "de", "text": "Ein Hund lief über das Gras. " * 6},
]
POLICY = """
name = "lenient"
min_tokens = 4
min_blocks = 2
[anomaly]
baseline = 1000
[tier.any]
bits = [1, 16]
overall = { "kl.mean" = { at_most = LIMIT } }
"""
RECIPE = """
[source]
path = "SOURCE"
name = "tiny"
[output]
folder = "release"
[calibration]
samples = "text.jsonl"
context = 32
[verify]
engines = ["torch"]
text = "text.jsonl"
context = 32
[gate]
policy = "policy.toml"
[run]
threads = 1
[[variant]]
target = "gguf:q4_k_m"
[[variant]]
target = "gguf:q8_0"
engines = []
[[variant]]
target = "gptq:w4g128"
"""
Family = Callable[[str], Path]


@pytest.fixture(scope="module")
def source(model: Family) -> Path:
    """A model of random weights."""
    return model("qwen2")


def write(folder: Path, source: Path, recipe: str = RECIPE, limit: float = 10.0) -> Path:
    """A recipe and what it names; gives the recipe's path."""
    folder.mkdir(exist_ok=True)
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, TEXT)))
    (folder / "policy.toml").write_text(POLICY.replace("LIMIT", str(limit)))
    path = folder / "recipe.toml"
    path.write_text(recipe.replace("SOURCE", str(source)))
    return path


def done(events: Sequence[Event]) -> list[str]:
    """The jobs that were done, but for what every run does."""
    titles = {event.job.title for event in events if isinstance(event, JobDone)}
    return sorted(titles - {"assemble evidence"})


class Made:
    """A finished release; tests that change it put it back."""

    def __init__(self, recipe: Path) -> None:
        self.recipe, self.folder = recipe, recipe.parent / "release"
        self.preview = plan_release(recipe)
        self.events: list[Event] = []
        begun = time.monotonic()
        self.result = self.run()
        self.seconds = time.monotonic() - begun

    def run(self, **options: Any) -> ReleaseResult:
        """Run it again; ``events`` are those of this run."""
        self.events.clear()
        return release(self.recipe, tell=self.events.append, **options)

    @property
    def done(self) -> list[str]:
        """Jobs that were done in the last run."""
        return done(self.events)

    @property
    def sums(self) -> str:
        return (self.folder / SUMS).read_text()


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(write(tmp_path_factory.mktemp("whole"), source))


def test_the_release_is_whole(made: Made) -> None:
    assert made.result.exit_code == 0
    assert {v.name: v.outcome for v in made.result.facts.variants} == {
        "Q4_K_M": "PASS", "Q8_0": "UNMEASURED", "GPTQ-w4g128": "PASS"
    }  # fmt: skip
    assert [f for f in check_release(made.folder) if f.is_problem] == []
    expected = {"GGUF/tiny-Q4_K_M.gguf", "GGUF/imatrix.gguf", "GPTQ-w4g128/model.safetensors"}
    assert expected <= {line.split("  ")[1] for line in made.sums.splitlines()}
    assert sum(isinstance(e, JobStarted) for e in made.events) == 7
    assert ".solving" not in " ".join(str(p) for p in made.folder.rglob("*"))


def test_the_preview_was_exact(made: Made) -> None:
    files = [file for variant in made.preview.variants for file in variant.files]
    assert made.preview.imatrix is not None
    for file in (*files, made.preview.imatrix):
        assert (made.folder / file.path).stat().st_size == file.size, file.path
    assert not any(v.made or v.exact for v in made.preview.variants)
    losses = {v.name: v.losses for v in made.preview.variants}
    assert losses["Q8_0"] == ("16 tensors bf16 → q8_0 (quantize)",)
    again = plan_release(made.recipe)
    assert all(v.made and v.measured for v in again.variants)
    assert (again.peak.disk, again.gathers) == (0, False)


def test_nothing_is_done_twice(made: Made) -> None:
    before, sums = state(made.folder), made.sums
    made.run()
    assert made.done == []
    assert sum(isinstance(event, JobSkipped) for event in made.events) == 6
    assert (state(made.folder), made.sums) == (before, sums)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every file."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def test_a_damaged_artifact_is_made_again(made: Made) -> None:
    sums, file = made.sums, made.folder / "GGUF/tiny-Q8_0.gguf"
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    made.run()
    assert made.done == ["make Q8_0"]  # its bytes are those that were measured
    assert made.sums == sums


def test_another_recipe_for_the_same_folder(made: Made, source: Path, tmp_path: Path) -> None:
    """What it no longer says goes; a variant that fails stops no other."""
    shutil.copytree(made.recipe.parent, tmp_path / "copy")
    strict = 'target = "gptq:w2g128"\nlargest_error = 1e-9'
    changed = RECIPE.replace('target = "gptq:w4g128"', strict).replace(
        '"gguf:q8_0"', '"gguf:q8_0"\nname = "Q8"'
    )
    folder, events = tmp_path / "copy/release", list[Event]()
    result = release(write(tmp_path / "copy", source, changed), tell=events.append)
    assert {v.name: v.outcome for v in result.facts.variants} == {
        "Q4_K_M": "PASS", "Q8": "UNMEASURED", "GPTQ-w2g128": "ERROR"
    }  # fmt: skip
    assert done(events) == ["gather statistics", "make Q8"]
    failed = {event.job.title for event in events if isinstance(event, JobFailed)}
    assert failed == {"make GPTQ-w2g128", "verify GPTQ-w2g128"}
    assert result.exit_code == 1
    with pytest.raises(ReleaseFailed, match="have a weighted error above 1e-09"):
        result.raise_problems()
    assert not any(p.name.startswith("GPTQ") for p in folder.iterdir())
    assert {p.name for p in folder.glob("GGUF/*.gguf")} == {
        "imatrix.gguf", "tiny-Q4_K_M.gguf", "tiny-Q8.gguf"
    }  # fmt: skip
    assert [f for f in check_release(folder) if f.is_problem] == []


def test_a_variant_that_became_another_takes_its_own_place(
    made: Made, source: Path, tmp_path: Path
) -> None:
    shutil.copytree(made.recipe.parent, tmp_path / "copy")
    changed = RECIPE.replace('"gptq:w4g128"', '"gptq:w4g128"\nsolver = "rtn"')
    events = list[Event]()
    result = release(write(tmp_path / "copy", source, changed), tell=events.append)
    assert result.failures == {}
    assert {"make GPTQ-w4g128", "verify GPTQ-w4g128"} <= set(done(events))
    assert not any("Q4_K_M" in title for title in done(events))
    assert result.exit_code == 0


def test_the_gate_decides_anew_without_any_job(made: Made, source: Path, tmp_path: Path) -> None:
    before = made.sums
    write(made.recipe.parent, source, limit=1e-7)
    lines = tmp_path / "summary.md"
    arguments = ["release", str(made.recipe), "--summary", str(lines)]
    ended = CliRunner().invoke(cli, arguments)
    assert isinstance(ended.exception, GateFailed)
    assert "Q4_K_M: FAIL: torch, overall: kl.mean" in str(ended.exception)
    assert "| Q4\\_K\\_M | ❌ FAIL |" in lines.read_text()
    write(made.recipe.parent, source)
    made.run()
    assert (made.done, made.sums) == ([], before)


def test_a_release_is_signed_once(made: Made, tmp_path: Path) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    secret = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    key.write_bytes(secret.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(secret.public_key().public_bytes(pem, info))
    sums = made.sums
    for signed in (["sign .", "sign GGUF", "sign GPTQ-w4g128"], []):
        made.run(signer=Signer(key))
        assert made.done == signed
    assert check_release(made.folder, public_key=public) == ()
    checked = CliRunner().invoke(
        cli, ["release", "verify", str(made.folder), "--public-key", str(public)]
    )
    assert (checked.exit_code, checked.stdout.splitlines()[-1]) == (
        0, f"{made.folder}: everything is what it says"
    )  # fmt: skip
    assert made.sums == sums


def test_a_release_that_was_changed_is_told(made: Made) -> None:
    card = made.folder / "GGUF/README.md"
    text = card.read_text()
    card.write_text(text + "The best model there is.\n")
    checked = CliRunner().invoke(cli, ["release", "verify", str(made.folder)])
    assert isinstance(checked.exception, InvalidInput)
    assert "GGUF/README.md" in str(checked.exception)
    card.write_text(text)


def test_publishing_is_what_the_recipe_says(
    made: Made, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"no \[publish\] that says where"):
        made.run(publish=True)
    calls: list[tuple[Any, ...]] = []

    def publish(folder: Path, facts: Any, to: Any, **options: Any) -> Published:
        calls.append((folder, facts.hub, to.namespace, to.private, options["allow"]))
        options["progress"]("publishing", 1, 1)
        return Published((), {"GGUF": "Q8_0: UNMEASURED"})

    monkeypatch.setattr("zenconvert.publication.publishing.publish", publish)
    shutil.copytree(made.recipe.parent, tmp_path / "copy")
    there = RECIPE + '[publish]\nhub = "me"\nprivate = true\nallow = ["PASS", "UNMEASURED"]\n'
    recipe = write(tmp_path / "copy", source, there)
    for more in ([], ["--allow", "fail"]):
        ended = CliRunner().invoke(cli, ["release", str(recipe), "--publish", *more])
        assert ended.exit_code == 0, ended.output
        assert "GGUF: not published: Q8_0: UNMEASURED" in ended.stdout
    folder = tmp_path / "copy/release"
    assert calls == [
        (folder, "me", "me", True, ("PASS", "UNMEASURED")), (folder, "me", "me", True, ["FAIL"])
    ]  # fmt: skip


def test_what_cannot_fit_is_refused_before_hour_zero(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(tmp_path, source)
    monkeypatch.setattr("zenconvert.publication.preview.free_disk", lambda folder: 1_000_000)
    ended = CliRunner().invoke(cli, ["release", "--dry-run", str(recipe)])
    assert isinstance(ended.exception, NotEnoughResources)
    assert "GGUF/tiny-Q4_K_M.gguf" in ended.stdout  # all is said first
    with pytest.raises(NotEnoughResources, match="bytes of disk, and 1000000 are free"):
        release(recipe)
    assert not (tmp_path / "release").exists()


def test_a_run_that_is_told_to_end_says_so(source: Path, tmp_path: Path) -> None:
    """What it keeps as well; and no worker is left."""
    recipe = write(tmp_path, source)
    command = [sys.executable, "-m", "zenconvert", "release", str(recipe)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("device: ")
        assert process.stderr.readline() == "gather statistics …\n"
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 143
    assert "ended by SIGTERM" in said
    assert f"{tmp_path / 'release'} keeps what is done; the same command goes on" in said
    before = state(tmp_path / "release")
    time.sleep(1)
    assert state(tmp_path / "release") == before


def test_killed_at_any_moment_and_resumed(made: Made, source: Path, tmp_path: Path) -> None:
    """The release's process gets SIGKILL; its workers go with it."""
    recipe, draw = write(tmp_path, source), random.Random(7)
    folder = tmp_path / "release"
    command = [sys.executable, "-m", "zenconvert", "release", str(recipe), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished: dict[str, tuple[int, int]] = {}
    for _ in range(3):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            time.sleep(made.seconds * draw.uniform(0.2, 0.5))
            process.send_signal(signal.SIGKILL)
        now = state(folder)
        assert finished.items() <= now.items()  # nothing is done again
        records = (folder / ".zenconvert").glob("*.json")
        finished = {str(path): now[str(path)] for path in records}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout)["exit_code"] == 0
    assert (folder / SUMS).read_text() == made.sums
