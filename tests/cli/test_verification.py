"""``verify``, ``gate`` and ``compare`` as commands: what they print, write and end with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zenconvert.cli import cli
from zenconvert.errors import GateFailed, GateInconclusive, UsageError
from zenconvert.texts.samples import load_bundled

SOURCE = "builtin:zen-nano"
POLICY = """
[tier.low]
bits = [1, 5]
[tier.low.overall]
"kl.mean" = { at_most = 1e-3 }
[tier.high]
bits = [6, 16]
[tier.high.language]
"kl.mean" = { at_most = 0.05 }
"""

Gguf = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [
        {"language": s.language, "id": s.id, "text": s.content[:80]}
        for s in load_bundled("evaluation", ["en", "ja"])
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.toml"
    path.write_text(POLICY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def reports(gguf: Gguf, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """File type → report."""
    folder, found = tmp_path_factory.mktemp("reports"), {}
    for name in ("q8_0", "q4_k_m"):
        found[name] = folder / f"{name}.json"
        candidate, out = str(gguf(SOURCE, name)), str(found[name])
        done = run("verify", SOURCE, candidate, "--text", str(text), "--json", out)
        assert done.exit_code == 0
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_verify_judges_what_it_measured(
    gguf: Gguf, text: Path, policy: Path, reports: dict[str, Path], tmp_path: Path
) -> None:
    out, page, lines = (tmp_path / name for name in ("report.json", "page.html", "summary.md"))
    lines.write_text("before\n")
    done = run(
        "verify", SOURCE, str(gguf(SOURCE, "q4_k_m")), "--text", str(text), "--gate", str(policy),
        "--json", str(out), "--html", str(page), "--summary", str(lines),
    )  # fmt: skip
    assert isinstance(done.exception, GateFailed)
    assert "FAIL: torch, overall: kl.mean" in str(done.exception)
    assert "FAIL by policy policy, tier low" in done.stdout
    assert "noise floor: KL " in done.stdout
    value = json.loads(out.read_text(encoding="utf-8"))
    assert value.pop("verdict")["outcome"] == "FAIL"
    assert value == json.loads(reports["q4_k_m"].read_text(encoding="utf-8"))
    assert '<section class="verdict FAIL">' in page.read_text(encoding="utf-8")
    assert lines.read_text(encoding="utf-8").startswith("before\n### ❌ ")


def test_gate_ends_with_the_codes_of_the_verdicts(
    reports: dict[str, Path], policy: Path, tmp_path: Path
) -> None:
    """As a process, where exit codes are real."""
    passed = run("gate", str(reports["q8_0"]), "--policy", str(policy))
    assert (passed.exit_code, passed.stdout) == (0, "PASS by policy policy, tier high\n")
    failed = run("gate", str(reports["q4_k_m"]), "--policy", str(policy), "--json")
    assert isinstance(failed.exception, GateFailed)
    assert json.loads(failed.stdout)["exit_code"] == 1
    little = run("gate", str(reports["q8_0"]))
    assert isinstance(little.exception, GateInconclusive)
    assert "are too few" in str(little.exception)
    codes = []
    for arguments in (
        [str(reports["q4_k_m"]), "--policy", str(policy)],
        [str(reports["q8_0"])],
    ):
        command = [sys.executable, "-m", "zenconvert", "gate", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        codes.append(done.returncode)
        assert done.stderr.startswith("error: ")
    assert codes == [1, 6]


def test_gate_refuses_a_report_on_other_bytes(reports: dict[str, Path], tmp_path: Path) -> None:
    value = json.loads(reports["q8_0"].read_text(encoding="utf-8"))
    value["candidate"]["sha256"] = "0" * 64
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(value))
    done = run("gate", str(forged))
    assert type(done.exception).__name__ == "ReportMismatch"
    assert getattr(done.exception, "exit_code", None) == 4


def test_the_last_release_is_a_gate_too(
    reports: dict[str, Path], policy: Path, gguf: Gguf, text: Path
) -> None:
    better, worse = str(reports["q8_0"]), str(reports["q4_k_m"])
    assert run("gate", better, "--policy", str(policy), "--against", worse).exit_code == 0
    done = run("gate", worse, "--policy", str(policy), "--against", better)
    assert isinstance(done.exception, GateFailed)
    assert "of the earlier release's" in str(done.exception)
    alone = run("verify", SOURCE, str(gguf(SOURCE, "q8_0")), "--against", worse)
    assert alone.exit_code == 2
    assert "--against needs --gate" in alone.output


def test_compare_prints_ranks_and_writes_a_page(
    reports: dict[str, Path], policy: Path, tmp_path: Path
) -> None:
    files = [str(reports[name]) for name in ("q4_k_m", "q8_0")]
    page = tmp_path / "page.html"
    done = run("compare", *files, "--html", str(page))
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["engine", "torch"]
    assert [row[0].split("-")[-1] for row in rows[2:4]] == ["q8_0.gguf", "q4_k_m.gguf"]
    assert [row[1] for row in rows[2:4]] == ["1", "2"]
    assert "Size against drift" in page.read_text(encoding="utf-8")
    judged = run("compare", *files, "--gate", str(policy), "--html", str(page))
    assert [line.split()[0] for line in judged.stdout.splitlines()[:2]] == ["PASS", "FAIL"]
    assert judged.exit_code == 0
    assert page.read_text(encoding="utf-8").count('<div class="judged') == 2
    value = json.loads(run("compare", *files, "--json").stdout)
    assert [v["rank"] for v in value["torch"]] == [1, 2]


def test_a_wrong_policy_is_a_usage_error(reports: dict[str, Path], tmp_path: Path) -> None:
    done = run("gate", str(reports["q8_0"]), "--policy", str(tmp_path / "absent.toml"))
    assert isinstance(done.exception, UsageError)
