"""What reaches the terminal, streams that cannot take it, and Ctrl-C while things are loading."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.fuzz import reports
from zenconvert.base.processes import child_environment
from zenconvert.cli import main
from zenconvert.errors import InputWarning, NotEnoughResources

EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202eDESREVER\u2066\r\x08"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Ended(dict[str, Any]):
    """``code``, ``out`` and ``err`` of a command."""


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs the command line in this process."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["zenconvert", *map(str, arguments)])
        code: Any = 0
        handler = signal.getsignal(signal.SIGINT)
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        finally:
            signal.signal(signal.SIGINT, handler)
        said = capsys.readouterr()
        return Ended(code=code, out=said.out, err=said.err)

    return run


def _named(source: Path) -> Path:
    return source.rename(source.parent / EVIL)


def _add_tensor(source: Path) -> Path:
    path = source / "model.safetensors"
    save_file({**load_file(path), EVIL: np.zeros(4, np.float32)}, path, {"format": "pt"})
    return source


def _add_token(source: Path) -> Path:
    path = source / "tokenizer.json"
    value = json.loads(path.read_text())
    value["added_tokens"][0]["content"] = EVIL
    path.write_text(json.dumps(value))
    return source


def _config(**changes: Any) -> Callable[[Path], Path]:
    def change(source: Path) -> Path:
        path = source / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return source

    return change


INPUTS: dict[str, Callable[[Path], Path]] = {
    "a folder's name": _named,
    "a tensor's name": _add_tensor,
    "a token": _add_token,
    "a model type": _config(model_type=EVIL),
    "a key of the config": _config(**{f"_{EVIL}": 1, EVIL: 2}),
    "a value of the config": _config(hidden_act=EVIL),
    "an architecture": _config(architectures=[EVIL]),
    "a type of RoPE": _config(rope_scaling={"rope_type": EVIL, "factor": 2.0}),
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_names_of_an_input_are_not_obeyed(
    make: Callable[[Path], Path], source: Path, tmp_path: Path, command: Callable[..., Ended]
) -> None:
    place = make(source)
    for arguments in (
        ("inspect", place),
        ("plan", place, "--to", "gguf:f16"),
        ("convert", place, tmp_path / "out.gguf", "--to", "gguf:q4_0"),
    ):
        ended = command(*arguments)
        for stream in ("out", "err"):
            assert not OBEYED.findall(ended[stream]), ended[stream]
        assert "Traceback" not in ended["err"]
        assert ended["code"] in {0, 2, 3, 4}
    ended = command("inspect", place, "--json")
    assert not OBEYED.findall(ended["out"])
    if not ended["code"]:
        assert isinstance(json.loads(ended["out"]), dict)


OPTIONS: tuple[tuple[str, ...], ...] = (
    ("inspect", EVIL),
    ("inspect", f"{EVIL}/{EVIL}"),
    ("plan", "SOURCE", "--to", EVIL),
    ("plan", "SOURCE", "--to", f"gguf:{EVIL}"),
    ("plan", "SOURCE", "--to", "gguf:q4_0", "--tensor-type", f"x={EVIL}"),
    ("plan", "SOURCE", "--to", "gguf:q4_0", "--pre", EVIL),
    ("convert", "SOURCE", f"/nowhere/{EVIL}", "--to", "gguf:f16"),
    ("calibrate", "SOURCE", "out.stats", "--languages", EVIL),
    ("verify", "SOURCE", "SOURCE", "--engine", EVIL),
    ("verify", "SOURCE", "SOURCE", "--json", f"/nowhere/{EVIL}"),
    ("gate", EVIL),
    ("release", "run", EVIL),
    ("release", "verify", EVIL),
    (EVIL,),
    (f"--{EVIL}",),
)


@pytest.mark.parametrize("arguments", OPTIONS, ids=range(len(OPTIONS)))
def test_words_of_a_command_are_not_obeyed(
    arguments: tuple[str, ...],
    tiny: Path,
    tmp_path: Path,
    command: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command(*(str(tiny) if one == "SOURCE" else one for one in arguments))
    assert ended["code"] in {2, 4}
    for stream in ("out", "err"):
        assert not OBEYED.findall(ended[stream]), ended[stream]
    assert "Traceback" not in ended["err"]
    assert ended["err"].strip()


def test_a_pattern_is_not_obeyed(tiny: Path, command: Callable[..., Ended]) -> None:
    for wanted in (f"*[a{EVIL}]*=q8_0", f"*[a{EVIL}]*=q4_k", f"{EVIL}=q8_0"):
        for more in ((), ("--explain",), ("--json",)):
            ended = command("plan", tiny, "--to", "gguf:q4_0", "--tensor-type", wanted, *more)
            for stream in ("out", "err"):
                assert not OBEYED.findall(ended[stream]), ended[stream]


def test_files_and_sums_of_a_release_are_not_obeyed(
    tmp_path: Path, command: Callable[..., Ended]
) -> None:
    """A release that a stranger made."""
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  {EVIL.replace(chr(13), '')}\n")
    (folder / f"{EVIL}.txt").write_bytes(b"1")
    (folder / "release.json").write_text(json.dumps({EVIL: 1}))
    for more in ((), ("--json",)):
        ended = command("release", "verify", folder, *more)
        assert ended["code"] == 4
        for stream in ("out", "err"):
            assert not OBEYED.findall(ended[stream]), ended[stream]


def test_a_recipe_is_not_obeyed(tmp_path: Path, command: Callable[..., Ended]) -> None:
    recipe = tmp_path / "recipe.toml"
    word = json.dumps(EVIL)
    recipe.write_text(
        f"[source]\npath = {word}\n{word} = 1\n[output]\nfolder = 'release'\n"
        f"[[variant]]\ntarget = {word}\nname = {word}\n"
    )
    ended = command("release", recipe)
    assert ended["code"] == 2
    assert not OBEYED.findall(ended["err"]), ended["err"]


def test_warnings_and_progress_are_not_obeyed(
    tiny: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zenconvert.cli.printing import stages
    from zenconvert.opening.sources import open_checkpoint

    def warned(*given: Any) -> Any:
        warnings.warn(f"a {EVIL}", InputWarning, stacklevel=1)
        with stages() as progress:
            progress(EVIL, 0, 1)
        return open_checkpoint(*given)

    monkeypatch.setattr("zenconvert.inspection.open_checkpoint", warned)
    for more in ((), ("--json",)):
        ended = command("inspect", tiny, *more)
        assert ended["code"] == 0
        assert "warning: a \\x1b[31m" in ended["err"]
        assert not OBEYED.findall(ended["err"] + ended["out"])
    assert any(EVIL in one for one in json.loads(ended["out"])["warnings"])


# Streams


def zenconvert(*arguments: str | Path, **given: Any) -> subprocess.CompletedProcess[bytes]:
    """A process of its own."""
    command = [sys.executable, "-P", "-m", "zenconvert", *map(str, arguments)]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **given}
    return subprocess.run(command, check=False, **given)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_streams_of_small_encodings(encoding: str, source: Path) -> None:
    place = source.rename(source.parent / "模型 → …")
    environment = child_environment(PYTHONIOENCODING=encoding)
    done = zenconvert("plan", place, "--to", "gguf:q4_0", env=environment)
    assert done.returncode == 0, done.stderr
    assert b"\\u2192" in done.stdout
    done.stdout.decode(encoding)
    done = zenconvert("inspect", source.parent / "不在", env=environment)
    assert done.returncode == 4
    assert b"\\u4e0d" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_standard_output(tiny: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = zenconvert("inspect", tiny, "--json", stdout=full, env=child_environment())
        both = zenconvert("inspect", "nowhere", stdout=full, stderr=full, env=child_environment())
    assert done.returncode == 5
    assert b"cannot be printed" in done.stderr
    assert b"Traceback" not in done.stderr
    assert both.returncode == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_what_was_measured_is_kept_where_nothing_can_be_printed(
    tiny: Path, tmp_path: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = reports.report(tiny)
    monkeypatch.setattr("zenconvert.verification.measurement.verify", lambda *_, **more: report)
    written = {f"--{name}": tmp_path / name for name in ("json", "html", "summary")}
    options = [word for pair in written.items() for word in pair]
    with monkeypatch.context() as patch, Path("/dev/full").open("w") as full:
        patch.setattr(sys, "stdout", full)
        ended = command("verify", tiny, tiny, *options)
    assert ended["code"] == 5, ended
    assert "cannot be printed" in ended["err"]
    assert all(path.stat().st_size > 100 for path in written.values())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_work_goes_on_where_standard_error_is_full(
    tiny: Path, tmp_path: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, Path("/dev/full").open("w") as full:
        patch.setattr(sys, "stderr", full)
        ended = command("convert", tiny, tmp_path / "out.gguf", "--to", "gguf:f16")
    assert ended["code"] == 0, ended
    assert (tmp_path / "out.gguf").is_file()


# Signals while modules are loading

PRESSED = """
import builtins, os, signal, sys
real = builtins.__import__
def pressing(name, *given, **more):
    found = real(name, *given, **more)
    if name == {name!r}:
        builtins.__import__ = real
        os.kill(os.getpid(), {number})
    return found
from zenconvert.cli import main
builtins.__import__ = pressing
sys.argv = {argv!r}
main()
"""


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("click", signal.SIGTERM, 143), ("zenconvert.cli.commands", signal.SIGINT, 7),
        ("numpy", signal.SIGHUP, 129), ("torch", signal.SIGINT, 7),
    ],
)  # fmt: skip
def test_signals_while_modules_are_loading(
    name: str, number: int, code: int, tiny: Path, tmp_path: Path
) -> None:
    argv = ["zenconvert", "calibrate", str(tiny), str(tmp_path / "out.stats")]
    program = PRESSED.format(name=name, argv=argv, number=int(number))
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=child_environment(), capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert b"; nothing unfinished stands under the output's name\n" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "out.stats").exists()


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tempfile

    from zenconvert.base.scratch import temporary_file, temporary_folder
    from zenconvert.verification.probing import probe

    monkeypatch.setattr(tempfile, "tempdir", None)
    nowhere = [str(tmp_path / "nowhere")]
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: nowhere)
    with pytest.raises(NotEnoughResources, match="TMPDIR"), temporary_folder():
        pass
    with pytest.raises(NotEnoughResources, match="TMPDIR"):
        temporary_file(".x")
    with pytest.raises(NotEnoughResources, match="TMPDIR"):
        probe("torch")
