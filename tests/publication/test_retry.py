"""A release of which one variant failed: what stands, what is tried again, and the exit codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.publication.test_release import RECIPE, SUMS, state, write
from zenconvert.cli import cli
from zenconvert.errors import ReleaseFailed, ZenError

Family = Callable[[str], Path]
STRICT = 'target = "gptq:w2g128"\nlargest_error = 1e-9'
_4, _8 = "Q4_K_M.gguf", "Q8_0.gguf"
FAILING = RECIPE.replace('target = "gptq:w4g128"', STRICT)


def released(recipe: Path, *more: str) -> tuple[Result, int]:
    """The command, and the exit code that the program would end with."""
    done = CliRunner().invoke(cli, ["release", str(recipe), *more])
    if done.exception is None:
        return done, 0
    assert isinstance(done.exception, ZenError), done.output
    return done, done.exception.exit_code


def begun(done: Result) -> set[str]:
    """The jobs that were begun, but for what every run does."""
    lines = (line.removesuffix(" …") for line in done.stderr.splitlines() if line.endswith(" …"))
    return {line for line in lines if ":" not in line} - {"assemble evidence"}


def rows(done: Result) -> dict[str, str]:
    """Variant → verdict, of the table."""
    lines = done.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("variant "))
    cells: Sequence[Sequence[str]] = [line.split() for line in lines[at + 1 :] if line]
    return {row[0]: row[1] for row in cells if len(row) > 2 and "/" not in row[0]}


@pytest.fixture(scope="module")
def failed(
    model: Family, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result, int, dict[str, tuple[int, int]]]:
    """A release whose GPTQ variant is further off than its recipe allows."""
    recipe = write(tmp_path_factory.mktemp("retry"), model("qwen2"), FAILING)
    done, code = released(recipe)
    return recipe, done, code, state(recipe.parent / "release/GGUF")


def test_one_failure_costs_one_variant_the_retry_only_what_failed(
    failed: tuple[Path, Result, int, dict[str, tuple[int, int]]], model: Family
) -> None:
    recipe, done, code, files = failed
    folder = recipe.parent / "release"
    weights = {k: v for k, v in files.items() if k.endswith((_4, _8))}
    imatrix = (folder / "GGUF/imatrix.gguf").read_bytes()
    assert code == 1
    assert isinstance(done.exception, ReleaseFailed)
    assert "make GPTQ-w2g128: " in str(done.exception)
    assert "1e-09" in str(done.exception)
    assert "make GPTQ-w2g128 failed: " in done.stderr
    assert rows(done) == {"Q4_K_M": "PASS", "Q8_0": "UNMEASURED", "GPTQ-w2g128": "ERROR"}
    assert len(weights) == 2
    assert not (folder / "GPTQ-w2g128").exists()
    assert CliRunner().invoke(cli, ["release", "verify", str(folder)]).exit_code == 0

    # nothing has changed: it fails again, and nothing else is touched
    again, code = released(recipe)
    assert code == 1
    assert begun(again) <= {"gather statistics", "make GPTQ-w2g128"}
    assert {"make Q4_K_M: done already", "verify Q4_K_M: done already"} <= set(
        again.stderr.splitlines()
    )
    now = state(folder / "GGUF")
    assert {name: now[name] for name in weights} == weights

    # others alone can be had, with their own exit code
    alone, code = released(recipe, "--only", "Q4_K_M")
    assert code == 0
    assert begun(alone) == set()

    # mended, it joins them
    write(recipe.parent, model("qwen2"), FAILING.replace("1e-9", "1e9"))
    mended, code = released(recipe)
    assert begun(mended) <= {"gather statistics", "make GPTQ-w2g128", "verify GPTQ-w2g128"}
    assert rows(mended)["GPTQ-w2g128"] in ("PASS", "FAIL")
    assert (folder / "GPTQ-w2g128/model.safetensors").exists()
    now = state(folder / "GGUF")
    assert {name: now[name] for name in weights} == weights
    assert (folder / "GGUF/imatrix.gguf").read_bytes() == imatrix  # gathered for another set
    assert "GPTQ-w2g128/model.safetensors" in (folder / SUMS).read_text()
    assert code == (0 if rows(mended)["GPTQ-w2g128"] == "PASS" else 1)
