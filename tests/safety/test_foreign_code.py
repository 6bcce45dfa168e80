"""Nothing in the folder that a user stands in is ever imported, by us or by a process of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.tiny import raw_model
from tests.tokenizers_for_tests import MAKERS
from zenconvert.base.processes import child_environment, module_command

NAMES: Final = (
    "abc", "click", "collections", "copyreg", "dataclasses", "enum", "hashlib", "huggingface_hub",
    "jinja2", "json", "logging", "ml_dtypes", "numba", "numpy", "onnx", "onnxruntime", "pathlib",
    "random", "re", "rich", "safetensors", "sitecustomize", "socket", "subprocess", "tempfile",
    "threading", "tokenizers", "tomllib", "torch", "transformers", "types", "typing",
    "usercustomize", "yaml", "zenconvert",
)  # fmt: skip
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


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder full of modules that say so when they are executed, with a model to work on."""
    folder = tmp_path_factory.mktemp("trap")
    for name in NAMES:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'executed')!r}, 'a').write({name!r} + '\\n')\n"
            f"raise SystemExit('{name} of the working folder was executed')\n"
        )
    source = folder / "model"
    source.mkdir()
    raw_model(
        source, "llama3", vocab_size=MAKERS["llama3"](source), bos_token_id=1, eos_token_id=2,
        hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, TEXT)))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


COMMANDS: Final = {
    "inspect": ("inspect", "model"),
    "plan": ("plan", "model", "--to", "gguf:q4_0"),
    "convert": ("convert", "model", "out.gguf", "--to", "gguf:q4_0", "--threads", "1"),
    "calibrate": ("calibrate", "model", "out.stats", "--samples", "text.jsonl", "--context", "16"),
    "verify": (
        "verify", "model", "model", "--engine", "transformers", "--text", "text.jsonl",
        "--context", "16",
    ),
    "release": ("release", "recipe.toml"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_command_runs_what_lies_in_the_working_folder(
    command: tuple[str, ...], trap: Path
) -> None:
    run = f"import sys; from zenconvert.cli import main; sys.argv = {['zenconvert', *command]!r}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{run}; main()"],
        cwd=trap, env=child_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not (trap / "executed").exists(), (trap / "executed").read_text()
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, 1, 6}, done.stderr  # a gate may judge such a model as it likes


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
        assert environment["EXTRA"] == "1"
        command = [*module_command("json.tool", "--help")]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == 0
