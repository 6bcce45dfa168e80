"""Nothing in the folder that a user stands in, of a source or beside an output is ever imported or
decides what is, by us or by a process of ours."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Final

import click
import pytest

from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert import open_checkpoint
from zenconvert.base.processes import child_environment, module_command
from zenconvert.cli.commands import cli
from zenconvert.errors import InvalidInput
from zenconvert.publication.executors.child import Child
from zenconvert.texts import templates
from zenconvert.verification import native, probing
from zenconvert.verification.engines.llamacpp import LlamaCppEngine

NAMES: Final = sorted(
    {*sys.stdlib_module_names, *packages_distributions(), "sitecustomize", "usercustomize"}
    - set(sys.builtin_module_names)
)
"""All that Python has, and all that is installed: whatever we import is among these."""
ROOT: Final = Path(__file__).parent.parent.parent
TASKS: Final = ROOT / "tests" / "verification" / "tasks"
TEXT: Final = [{"language": "en", "text": f"The cat number {n} sat on the mat."} for n in range(4)]
RECIPE: Final = """
[source]
path = "model"
[output]
folder = "release"
[calibration]
samples = "text.jsonl"
context = 16
[verify]
engines = ["transformers"]
text = "text.jsonl"
context = 16
[run]
threads = 1
[[variant]]
target = "gptq:w4g64"
engines = ["torch"]
[[variant]]
target = "hf:f16"
"""


SETTINGS: Final = {
    ".numba_config.yaml": "cache_dir: TRAP/settings\n",  # compiled kernels come from there
    ".env": "PLANTED=1\n",
    "evil.pth": "import os; open('TRAP/executed', 'a').write('pth')\n",
    ".pydistutils.cfg": "[install]\ninstall-lib = TRAP/settings\n",
    "setup.cfg": "[global]\ncommand-packages = sitecustomize\n",
    "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'sitecustomize'\n"
    "backend-path = ['.']\n",
    "matplotlibrc": "backend: module://sitecustomize\n",
    "ray_bootstrap_config.yaml": "x: 1\n",
    "pip.conf": "[global]\nindex-url = file:///TRAP\n",
    "libggml-blas.so": "no library",
    "libggml-cpu.so": "no library",
    "libplanted.so": "no library",
}
"""What libraries and tools read where they are started, or beside what they are given."""


def _plant(folder: Path, trap: Path) -> None:
    """Modules that say so when they are executed, and settings that lead to them."""
    for name in NAMES:
        module = folder / f"{name}.py"
        module.parent.mkdir(exist_ok=True)  # a name may have a slash, as some wheels would have it
        module.write_text(
            f"open({str(trap / 'executed')!r}, 'a').write({name!r} + '\\n')\n"
            f"raise SystemExit({f'{name} of {folder.name} was executed'!r})\n"
        )
    for name, text in SETTINGS.items():
        (folder / name).write_text(text.replace("TRAP", str(trap)))


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder full of such things, with a model to work on and a folder for outputs that are full
    of them as well."""
    folder = tmp_path_factory.mktemp("trap")
    source, outputs = folder / "model", folder / "outputs"
    for place in (folder, source, outputs):
        place.mkdir(exist_ok=True)
        _plant(place, folder)
    raw_model(
        source, "llama3", vocab_size=MAKERS["llama3"](source), bos_token_id=1, eos_token_id=2,
        hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, TEXT)))
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "tasks").mkdir()
    for file in TASKS.glob("*.yaml"):
        text = file.read_text().replace("DATA", str(TASKS / "continuations.jsonl"))
        (folder / "tasks" / file.name).write_text(text)
    return folder


_TEXTS: Final = ("--text", "text.jsonl", "--context", "16")
_SAMPLES: Final = ("--samples", "text.jsonl", "--context", "16")
COMMANDS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "reading": (
        ("inspect", "model"), ("plan", "model", "--to", "gguf:q4_0"), ("diff", "model", "model"),
        ("doctor", "--engine", "torch"),
    ),
    "writing": (
        ("convert", "model", "outputs/out.gguf", "--to", "gguf:q4_0", "--threads", "1"),
        ("convert", "model", "outputs/onnx", "--to", "onnx:int4", "--threads", "1"),
        ("calibrate", "model", "outputs/out.stats", *_SAMPLES),
        ("convert", "model", "outputs/awq", "--to", "awq:w4g64", "--calibrate", *_SAMPLES),
        ("verify", "model", "outputs/out.gguf", "--engine", "llamacpp", *_TEXTS),
    ),
    "measuring": (
        ("verify", "model", "model", "--engine", "transformers", *_TEXTS,
         "--json", "outputs/report.json"),
        ("gate", "outputs/report.json"), ("compare", "outputs/report.json"),
        ("tasks", "builtin:zen-nano", "builtin:zen-nano", "--tasks", "zen_continuations",
         "--include", "tasks", "--limit", "1"),
    ),
    "releasing": (
        ("release", "run", "recipe.toml"), ("release", "verify", "release"),
        ("release", "skypilot", "recipe.toml", "sky.yaml", "--volume", "models"),
    ),
}  # fmt: skip
RUN: Final = """
import json, sys
commands = json.loads(sys.argv[1])
from zenconvert.cli import main
for command in commands:
    sys.argv = ["zenconvert", *command]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    print("ended:", *command[:2], code, flush=True)
    sys.stderr.flush()
import ctypes, os
print("planted:", os.environ.get("PLANTED"))
try:
    ctypes.CDLL("libplanted.so")
except OSError as error:
    print("library:", error)
"""
HERE: Final = {
    "HF_HUB_OFFLINE": "1", "LD_LIBRARY_PATH": f"{os.pathsep}.", "LD_PRELOAD": "./libplanted.so",
    "ZENCONVERT_CACHE": "cache", "HF_HOME": "hf", "TMPDIR": "tmp",
}  # fmt: skip
"""Search paths and places that mean something else wherever a process stands."""


@pytest.mark.parametrize("commands", COMMANDS.values(), ids=COMMANDS)
def test_no_command_runs_what_lies_in_the_working_folder(
    commands: tuple[tuple[str, ...], ...], trap: Path
) -> None:
    (trap / "tmp").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN, json.dumps(commands)],
        cwd=trap, env={**child_environment(), **HERE}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not (trap / "executed").exists(), (trap / "executed").read_text()
    assert not (trap / "settings").exists()
    assert "planted: None" in done.stdout
    assert "library: libplanted.so: cannot open" in done.stdout
    if any(command[0] in {"verify", "release"} for command in commands):
        assert (trap / "cache").is_dir()  # what is relative means the caller's folder
    assert not any(Path("/", name).exists() for name in ("cache", "hf", "tmp/.zenconvert"))
    assert "Traceback" not in done.stderr
    ends = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("ended:")]
    assert len(ends) == len(commands), done.stderr
    # a gate may judge such a model as it likes
    assert set(ends) <= {"0", "1", "6"}, (ends, done.stderr)


def test_these_are_all_commands() -> None:
    """A command that comes to be is tried as well."""
    tried = [" ".join(command) + " " for commands in COMMANDS.values() for command in commands]
    for path in _paths(cli):
        assert any(words.startswith(f"{path} ") for words in tried), path


def _paths(command: click.Command) -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield ""
        return
    for name, below in command.commands.items():
        for path in _paths(below):
            yield f"{name} {path}".strip()


def test_the_module_does_not_look_there_either(trap: Path) -> None:
    """``python -m`` puts the folder on the path before anything of ours is loaded."""
    (trap / "zenconvert.py").unlink()  # which it would rightly run
    done = subprocess.run(
        [sys.executable, "-m", "zenconvert", "inspect", "model"],
        cwd=trap, env=child_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    early = {"abc", "collections", "enum", "re", "types", "copyreg", "sitecustomize"}
    told = (trap / "executed").read_text().split() if (trap / "executed").exists() else []
    assert set(told) <= early, told  # what the interpreter itself loads before
    assert done.returncode == 0 or told


def test_what_a_child_may_import_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    for given in ("", os.pathsep, ".", "..", f".{os.pathsep}{os.pathsep}x", f"x/y{os.pathsep}"):
        monkeypatch.setenv("PYTHONPATH", given)
        environment = child_environment(EXTRA="1")
        assert all(Path(p).is_absolute() for p in environment["PYTHONPATH"].split(os.pathsep))
        monkeypatch.setenv("PATH", f"{given}{os.pathsep}/usr/bin")
        assert child_environment()["PATH"] == "/usr/bin"
        assert environment["EXTRA"] == "1"
        command = [*module_command("json.tool", "--help")]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == 0


def test_no_program_of_the_working_folder_is_started(trap: Path) -> None:
    """Not even where ``PATH`` names the folder: libraries start compilers, git and others."""
    for name in ("true", "git", "nvidia-smi", "cc", "gcc", "ldconfig", "uname", "lscpu"):
        program = trap / name
        program.write_text(f"#!/bin/sh\necho {name} >>{trap}/executed\n")
        program.chmod(0o755)
    code = RUN.replace("main()", "main(); import subprocess; subprocess.run(['true'])")
    path = os.pathsep.join([".", "", f"../{trap.name}", os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, json.dumps([("inspect", "model")])],
        cwd=trap, env={**child_environment(), "PATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ended: inspect model 0" in done.stdout, done.stderr
    assert not (trap / "executed").exists(), (trap / "executed").read_text()


def test_what_the_environment_of_a_child_means(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Entries of search paths go; a place that somebody names stays the caller's."""
    monkeypatch.chdir(tmp_path)
    given = {
        "LD_LIBRARY_PATH": ":/usr/lib:x", "DYLD_LIBRARY_PATH": ".", "PYTHONPATH": "",
        "LD_PRELOAD": "./evil.so libc.so.6:/usr/lib/a.so", "LD_AUDIT": "a/b.so", "PATH": "bin:",
        "ZENCONVERT_CACHE": "c", "XDG_CACHE_HOME": "../c", "HF_HOME": "~/hf", "TMPDIR": "/tmp",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    expected = {
        "LD_LIBRARY_PATH": "/usr/lib", "DYLD_LIBRARY_PATH": None, "PYTHONPATH": str(ROOT),
        "LD_PRELOAD": "libc.so.6:/usr/lib/a.so", "LD_AUDIT": None, "PATH": os.defpath,
        "ZENCONVERT_CACHE": f"{tmp_path}/c", "XDG_CACHE_HOME": f"{tmp_path}/../c",
        "HF_HOME": "~/hf", "TMPDIR": "/tmp",
    }  # fmt: skip
    found = child_environment()
    assert {name: found.get(name) for name in expected} == expected
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "ZENCONVERT_CACHE" not in child_environment()


def test_processes_are_started_at_one_place() -> None:
    """Which stands elsewhere and clears the environment."""
    starts = {"Popen", "run", "call", "check_call", "check_output", "getoutput"}
    others = {"system", "popen", "fork", "forkpty", "posix_spawn", "execv", "execve", "execvp"}
    found = set()
    for room in ("zenconvert", "formats", "calib"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(ast.Attribute(ast.Name("subprocess"), name)) if name in starts:
                        found.add(path.name)
                    case ast.Call(ast.Attribute(ast.Name("os"), name)) if name in others:
                        found.add(f"{path.relative_to(ROOT)}: {name}")
                    case ast.Import([ast.alias("multiprocessing")]):
                        found.add(f"{path.name}: multiprocessing")
                    case ast.ImportFrom("multiprocessing" | "concurrent.futures.process"):
                        found.add(f"{path.name}: multiprocessing")
    # the command line begins anew without what the loader of libraries had taken in
    assert found == {"processes.py", "zenconvert/cli/__init__.py: execv"}


def _begin_job(folder: Path) -> None:
    Child(folder, 1)


def _probe_torch(folder: Path) -> None:
    probing._run("torch")


def _render(folder: Path) -> None:
    templates._start()


def _verify(folder: Path) -> None:
    native._spawn(folder, print)


@pytest.mark.parametrize("start", [_verify, _probe_torch, _render, _begin_job])
def test_where_children_stand(
    start: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries look for settings and for more of themselves where a process stands."""
    stand: list[str] = []

    def popen(*given: object, cwd: str, **more: object) -> None:
        stand.append(cwd)
        raise InterruptedError

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(InterruptedError):
        start(tmp_path)
    assert stand == ["/"]


def test_llamacpp_is_loaded_away_from_the_user(
    gguf: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build with backends of its own looks for them in the working folder, and executes them."""
    llama_cpp = pytest.importorskip("llama_cpp")
    path = gguf("builtin:zen-nano", "q8_0")
    stood: list[str] = []
    monkeypatch.chdir(path.parent)

    def seen(*given: object, model_path: str, **more: object) -> None:
        stood.append(os.getcwd())  # noqa: PTH109
        assert Path(model_path).is_file()
        raise ValueError

    monkeypatch.setattr(llama_cpp, "Llama", seen)
    with pytest.raises(InvalidInput):
        LlamaCppEngine(open_checkpoint(path.name), [], threads=1)
    assert stood == ["/"]
    assert Path.cwd() == path.parent


RECORDER: Final = """#!/usr/bin/env bash
echo "$PWD|$*" >>"$CALLS"
"""


@pytest.mark.parametrize("name", ["demo", "demo --llamacpp", "test --quick -k x", "check", "fuzz",
                                  "bench plan", "bench ggml"])  # fmt: skip
def test_scripts_start_nothing_from_where_they_are_called(name: str, tmp_path: Path) -> None:
    """Every interpreter starts in the checkout, and imports from there only what is the
    checkout's."""
    called = tmp_path / "somewhere"
    (called / "scripts").mkdir(parents=True)
    for file in ("scripts/environment.sh", "environment.sh"):
        (called / file).write_text(f"touch {tmp_path}/executed; exit 9")
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(RECORDER)
    python.chmod(0o755)
    (tmp_path / "venv/llama.cpp").mkdir()
    environment = {
        **os.environ, "CALLS": str(tmp_path / "calls"), "CDPATH": str(called),
        "ZENCONVERT_VENV": str(tmp_path / "venv"), "ZENCONVERT_WHEELS": str(tmp_path / "wheels"),
    }  # fmt: skip
    script, *arguments = name.split()
    subprocess.run(
        [ROOT / "scripts" / script, *arguments], env=environment, cwd=called, check=False
    )
    subprocess.run(["scripts/" + script, *arguments], env=environment, cwd=ROOT, check=False)
    assert not (tmp_path / "executed").exists()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) > 1
    for call in calls:
        where, _, words = call.partition("|")
        assert where == str(ROOT)
        assert words.startswith(("-P ", "-m pytest ", "-m tests.", "-m scripts.")), words
