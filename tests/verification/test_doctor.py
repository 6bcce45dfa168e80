"""What the doctor finds, and says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from zenconvert.cli import cli
from zenconvert.verification import doctor, probing
from zenconvert.verification.doctor import examine
from zenconvert.verification.engines import ENGINES


def test_engines_that_are_here_work() -> None:
    found = examine(["torch", "llamacpp", "onnxruntime"])
    assert [one.engine for one in found.engines if one.works] == [
        "torch", "llamacpp", "onnxruntime"
    ]  # fmt: skip
    assert found.is_well
    assert torch.__version__ in found.engines[0].text
    assert "llama-cpp-python" in found.engines[1].text
    assert found.packages["torch"] == torch.__version__
    assert bool(found.gpus) == torch.cuda.is_available()
    assert found.cores > 0
    assert found.ram_free > 0


def test_one_that_is_not_installed_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zenconvert.verification.engines._installed", lambda module: False)
    found = examine([*ENGINES])
    assert not any(one.works or one.installed for one in found.engines)
    assert found.is_well
    assert all(one.mend.startswith("install ") for one in found.engines)


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("import os; os.kill(os.getpid(), 4)", "it died of SIGILL"),
        ("import os, sys; print('assert!', file=sys.stderr); os.abort()", "SIGABRT assert!"),
        ("import time; time.sleep(10000)", "it hangs"),
        ("raise OSError('libgone.so')", "libgone.so"),
        ('import sys; print(\'{"error": "it computes nonsense"}\')', "it computes nonsense"),
        ("print('noise')", "exit code 0"),
    ],
)
def test_one_that_is_broken_is_told_with_its_cure(
    script: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying.py").write_text(script)
    monkeypatch.setattr(probing, "_MODULE", "dying")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ZENCONVERT_PATIENCE", "5")
    done = CliRunner().invoke(cli, ["doctor", "--engine", "llamacpp"])
    assert done.exit_code != 0
    assert type(done.exception).__name__ == "EngineFailed"
    assert getattr(done.exception, "exit_code", 0) == 6
    assert what in str(done.exception)
    assert "GGML_NATIVE=OFF" in str(done.exception)
    assert "engine llamacpp: DOES NOT WORK" in done.stdout
    assert "to mend or to install:" in done.stdout


def test_the_command_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe", lambda name: probing.Probe(name, True, True, "1.0"))
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [one["engine"] for one in found["engines"]] == ["torch", *ENGINES]
    assert found["is_well"] is True
    assert set(found["cache"]) == {"path", "writable", "free"}


def test_folders_that_cannot_be_written_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda name: probing.Probe(name, True, True, "1.0"))
    monkeypatch.setattr(doctor, "gpus", list)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("ZENCONVERT_CACHE", str(blocked / "cache"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked / "kernels"))
    found = examine(["torch"])
    assert not found.cache.writable
    assert not found.kernels.writable
    advice = "\n".join(found.advice)
    assert "set ZENCONVERT_CACHE" in advice
    assert "NUMBA_CACHE_DIR" in advice
