"""What the doctor finds, and says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from zenconvert.cli import cli
from zenconvert.errors import EngineFailed
from zenconvert.verification import doctor, probing
from zenconvert.verification.doctor import examine
from zenconvert.verification.engines import ENGINES


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch need not be loaded to be asked for some."""
    monkeypatch.setattr(doctor, "gpus", list)


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


@pytest.mark.usefixtures("no_gpus")
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
@pytest.mark.usefixtures("no_gpus")
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


@pytest.mark.usefixtures("no_gpus")
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


BROKEN = {
    "torch": ("torch", "libtorch_cpu.so: cannot open shared object file", "Install torch"),
    "llamacpp": ("llama_cpp", "libllama.so: undefined symbol: ggml", "GGML_NATIVE=OFF"),
    "transformers": ("transformers", "cannot import name 'Auto'", "Install transformers anew"),
    "onnxruntime": (
        "onnxruntime", "DLL load failed while importing", "Install zenconvert[onnxruntime] anew"
    ),
    "auto-gptq": ("auto_gptq", "undefined symbol: _ZN3c10", "Install zenconvert[auto-gptq] anew"),
    "autoawq": ("awq", "No module named 'awq_ext'", "Install zenconvert[autoawq] anew"),
}  # fmt: skip


def test_every_engine_is_broken_here() -> None:
    assert set(BROKEN) == {"torch", *ENGINES} - {"vllm"}  # which asks for a GPU first


@pytest.mark.parametrize("engine", BROKEN)
def test_a_library_that_does_not_load_is_told_with_its_cure(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, what, cure = BROKEN[engine]
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text(f"raise ImportError({what!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if engine != "torch":
        monkeypatch.setattr(doctor, "gpus", list)
    if module not in sys.modules:
        monkeypatch.syspath_prepend(str(tmp_path))
    done = CliRunner().invoke(cli, ["doctor", "--engine", engine])
    assert isinstance(done.exception, EngineFailed), done.output
    assert done.exception.exit_code == 6
    told = str(done.exception)
    assert what in told
    assert cure in told
    assert "refuses the config" not in told
    assert f"engine {engine}: DOES NOT WORK" in done.stdout
    assert f"  - the {engine} engine does not work here: " in done.stdout


def test_what_is_missing_is_told_with_what_to_install(tmp_path: Path) -> None:
    """In a process that really has none of them, however much of them is left behind."""
    names = [ENGINES[name].package for name in ENGINES if name != "transformers"]
    hiding = f"import sys\nsys.modules.update(dict.fromkeys({names}))\n"
    (tmp_path / "sitecustomize.py").write_text(hiding)
    engines = [f"--engine={name}" for name in ENGINES if name != "transformers"]
    command = [sys.executable, "-P", "-m", "zenconvert", "doctor", *engines]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ENGINES:
        if name != "transformers":
            install = ENGINES[name].install
            assert f"engine {name}: – (not installed; install {install})" in done.stdout


@pytest.mark.usefixtures("no_gpus")
def test_what_everything_needs_and_is_missing_is_no_health(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = doctor._version
    monkeypatch.setattr(doctor, "probe", lambda name: probing.Probe(name, True, True, "1.0"))
    monkeypatch.setattr(doctor, "_version", lambda n: None if n == "numba" else usual(n))
    done = CliRunner().invoke(cli, ["doctor"])
    assert isinstance(done.exception, EngineFailed)
    assert "numba is missing" in str(done.exception)
    assert "numba is missing and always needed: install zenconvert anew" in done.stdout
