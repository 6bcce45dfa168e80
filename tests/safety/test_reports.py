"""Reports that are empty, huge, malformed, or that contradict themselves: none of them passes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import gguf_shape, models, reports
from zenconvert import Report, compare
from zenconvert.base.processes import child_environment
from zenconvert.cli import main
from zenconvert.errors import CorruptFile, UsageError, ZenError
from zenconvert.publication.checking import check_release
from zenconvert.verification.gate import decide
from zenconvert.verification.policy import Policy
from zenconvert.verification.rendering import comparison_page

Table = dict[str, Any]
NUMBERS: tuple[tuple[Any, ...], ...] = (
    ("overall", "kl", "mean"), ("overall", "top1"), ("overall", "intervals", "kl", "mean", 1),
    ("overall", "perplexity", "reference"), ("languages", "en", "kl", "p99"),
    ("languages", "en", "intervals", "top1", 0), ("noise_floor", "overall", "kl", "mean"),
    ("noise_floor", "languages", "ar", "kl", "mean"), ("documents", 0, "kl"),
    ("documents", 1, "reference_nll"), ("worst_positions", 0, "kl"),
    ("facts", "candidate", "bytes"), ("facts", "reference", "vocabulary"),
)  # fmt: skip


def _put(value: Table, place: tuple[Any, ...], new: Any) -> None:
    inner: Any = value
    for step in place[:-1]:
        inner = inner[step]
    assert place[-1] in inner or place[-1] in range(len(inner))
    inner[place[-1]] = new


def _without(*place: Any) -> Callable[[Table], None]:
    def change(value: Table) -> None:
        inner: Any = value
        for step in place[:-1]:
            inner = inner[step]
        del inner[place[-1]]

    return change


def _with(new: Any, *place: Any) -> Callable[[Table], None]:
    return lambda value: _put(value, place, new)


def _other_language(value: Table) -> None:
    value["languages"]["zh"] = value["languages"].pop("ar")


def _order(value: Table) -> None:
    value["documents"].reverse()


CHANGES: dict[str, Callable[[Table], None]] = {
    **{
        f"{number} in {'.'.join(map(str, place))}": _with(number, *place)
        for place in NUMBERS
        for number in (float("nan"), float("inf"), -float("inf"))
    },
    "no languages": _with({}, "languages"),
    "one language less": _without("languages", "ar"),
    "another language": _other_language,
    "a language without noise": _without("noise_floor", "languages", "ar"),
    "no noise": _without("noise_floor"),
    "no documents": _with([], "documents"),
    "documents of one language": lambda value: value.update(documents=value["documents"][:3]),
    "documents out of order": _order,
    "an interval from its end": _with([0.9, 0.1], "overall", "intervals", "kl", "mean"),
    "an interval of one end": _with([0.1], "overall", "intervals", "kl", "mean"),
    "no perplexity": _with(0, "overall", "perplexity", "reference"),
    "no weights": _with(0, "facts", "candidate", "parameters"),
    "no engine": _without("engine"),
    "half a character": _with("\ud800", "candidate", "path"),
    "another version": _with(2, "schema_version"),
    "a figure as a word": _with("0.1", "overall", "kl", "mean"),
    "no text": _without("text"),
}
FILES: dict[str, bytes] = {
    "empty": b"",
    "nothing": b"null",
    "a list": b"[]",
    "an empty table": b"{}",
    "zeros": bytes(5000),
    "half": reports.report_bytes()[:5000],
    "UTF-16": reports.report_bytes().decode().encode("utf-16"),
    "Latin-1": '{"zenconvert": "é"}'.encode("latin-1"),
    "nesting": b"[" * 200_000,
    "nested tables": b'{"a":' * 200_000,
    "digits": b'{"schema_version": ' + b"1" * 5000 + b"}",
    "huge": reports.report_bytes() + b" " * (16 << 20),
    "the schema of another program": b'{"schema_version": 1, "results": {"hellaswag": 0.9}}',
}


def changed(change: Callable[[Table], None]) -> Table:
    value: Table = json.loads(reports.report_bytes())
    change(value)
    return value


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Passes what moved at all; takes anything."""
    path = tmp_path_factory.mktemp("policy") / "policy.toml"
    path.write_text(
        'name = "any"\nmin_tokens = 0\nmin_blocks = 0\n[anomaly]\nlowest_ratio = 0.0\n'
        'moving_bits = 0\nbaseline = 1e9\n[tier.a]\nbits = [0, 99]\n'
        'overall = { "kl.mean" = { at_most = 0.5 } }\n'
    )  # fmt: skip
    return Policy.load(path)


@pytest.fixture(scope="module")
def good() -> Report:
    value: Table = json.loads(reports.report_bytes())
    value["proof"]["mismatches"] = []
    return Report.from_dict(value)


def test_the_unchanged_report_passes(good: Report, policy: Policy) -> None:
    assert decide(good, policy).outcome == "PASS"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_change_passes(
    change: Callable[[Table], None], tmp_path: Path, good: Report, policy: Policy
) -> None:
    """Neither as a file, nor through the Python API, nor beside a good one."""
    value = changed(change)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(value))
    with pytest.raises(CorruptFile, match=r"report\.json"):
        Report.from_json(path)
    with pytest.raises(CorruptFile):
        Report.from_dict(value)


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_no_such_file_passes(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=r"report\.json"):
        Report.from_json(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("fifo", "loop", "absent", ".", "x" * 5000, "\0"):
        with pytest.raises((CorruptFile, UsageError)):
            Report.from_json(tmp_path / name)
    with pytest.raises((CorruptFile, UsageError)):
        Report.from_json("/dev/zero")


def test_other_documents_are_not_compared(good: Report, policy: Policy) -> None:
    value: Table = good.as_dict()
    value["documents"][0]["name"] = "another"
    other = Report.from_dict(value)
    with pytest.raises(UsageError, match="other documents"):
        compare([good, other])
    verdict = decide(good, policy, against=other)
    assert verdict.outcome == "INCONCLUSIVE"
    assert "other documents" in verdict.reasons[0]


@pytest.mark.parametrize("figure", [None, 1e308, 2**70, 0])
def test_figures_that_no_axis_has(figure: float | None, good: Report, policy: Policy) -> None:
    value: Table = good.as_dict()
    value["overall"]["kl"]["mean"] = figure
    value["documents"][0]["kl"] = 2**70
    odd = Report.from_dict(value)
    assert "<svg" in comparison_page(compare([good, odd]))
    for pair in ((good, odd), (odd, good)):
        decide(pair[0], policy, against=pair[1]).as_dict()


def zenconvert(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the command prints and how it would end, of its entry point in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    pressed = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["zenconvert", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGINT, pressed)
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def test_the_commands_say_so_in_one_line(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_bytes(reports.report_bytes())
    value = changed(_with(float("nan"), "overall", "kl", "mean"))
    bad.write_text(json.dumps(value))
    for arguments in (
        ("gate", bad), ("gate", bad, "--json"), ("gate", good, "--against", bad),
        ("compare", good, bad), ("compare", bad, "--gate", "default", "--json"),
        ("verify", "builtin:zen-nano", "builtin:zen-nano", "--gate", "default", "--against", bad),
    ):  # fmt: skip
        done = zenconvert(*arguments)
        assert done.returncode == 4, arguments
        assert done.stderr.startswith("error: ")
        assert str(bad) in done.stderr
        assert "Traceback" not in done.stderr
        assert "PASS" not in done.stdout


def test_two_reports_of_one_path_are_both_judged(tmp_path: Path) -> None:
    """What one of them fails is not hidden by the other, whatever their order."""
    (tmp_path / reports.GGUF_FILE).write_bytes(gguf_shape.pack(models.gguf()))
    value: Table = json.loads(reports.report_bytes())
    for part in ("candidate", "reference"):
        value[part]["path"] = str(tmp_path / reports.GGUF_FILE)
    (tmp_path / "bad.json").write_text(json.dumps(value))
    value["proof"]["mismatches"] = []
    (tmp_path / "good.json").write_text(json.dumps(value))
    policy = tmp_path / "policy.toml"
    policy.write_text(reports.POLICY)
    for names in (("bad.json", "good.json"), ("good.json", "bad.json")):
        files = [tmp_path / name for name in names]
        done = zenconvert("compare", *files, "--gate", policy, "--json")
        assert done.returncode == 0, done.stderr
        verdicts = json.loads(done.stdout)["verdicts"]
        assert len(verdicts) == 2
        assert "FAIL" in {verdict["outcome"] for verdict in verdicts.values()}


@pytest.mark.parametrize(
    "change",
    [
        _with(float("nan"), "overall", "kl", "mean"), _with({}, "languages"),
        _with([0.9, 0.1], "overall", "intervals", "kl", "mean"), _with([], "documents"),
        _with(0, "facts", "candidate", "parameters"),
    ],
)  # fmt: skip
def test_a_release_with_such_a_report_does_not_hold(
    change: Callable[[Table], None], tmp_path: Path
) -> None:
    for name, data in reports.release().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for path in (tmp_path / "report.json", tmp_path / "GGUF" / "report.json"):
        value = json.loads(path.read_text())
        change(value["variants"][0]["report"])
        path.write_text(json.dumps(value))
    with pytest.raises(CorruptFile):
        check_release(tmp_path)


WITHOUT = """
import sys
sys.modules["fastjsonschema"] = None
from zenconvert.cli import main
sys.argv = {argv!r}
main()
"""


def test_without_fastjsonschema(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(reports.report_bytes())
    for name, data in reports.release().items():
        (tmp_path / "release" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "release" / name).write_bytes(data)
    for argv in (
        ["zenconvert", "gate", str(path)],
        ["zenconvert", "compare", str(path)],
        ["zenconvert", "release", "verify", str(tmp_path / "release")],
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-c", WITHOUT.format(argv=argv)],
            capture_output=True, text=True, check=False, env=child_environment(),
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "fastjsonschema" in done.stderr
        assert "Traceback" not in done.stderr


def test_every_error_is_ours(tmp_path: Path) -> None:
    """A report in every one of whose places stands something else, through the whole of it."""
    value = json.loads(reports.report_bytes())
    for key in value:
        for new in list[Any]((None, [], {}, "x", -1, 2**70, True, [None], {"x": None}, [[]])):
            odd = {**value, key: new}
            try:
                report = Report.from_dict(odd)
                decide(report, Policy.load("default"), against=report)
                comparison_page(compare([report]))
            except ZenError:
                continue
