"""The set-up script's way to llama.cpp: what is built, kept, proved and fallen back from."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Stands for the environment's Python: keeps what it was told, builds an empty wheel, and says of a
# build whether it works.
PYTHON = r"""#!/usr/bin/env bash
echo "$CMAKE_ARGS| $* | $CMAKE_BUILD_PARALLEL_LEVEL" >>"$CALLS"
case " $* " in
*" wheel "*)
    while [ "$1" != -w ]; do shift; done
    touch "$2/llama_cpp_python-0.0-py3-none-linux.whl"
    ;;
*" doctor "*)
    if [[ "$(cat "$ZENCONVERT_VENV/llamacpp")" =~ $WORKS ]]; then exit 0; fi
    echo "error: died of SIGILL"
    exit 6
    ;;
esac
"""


class Machine:
    """An environment and a wheel folder of one's own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        (folder / "venv/bin").mkdir(parents=True)
        (folder / "venv/llama.cpp").mkdir()
        python = folder / "venv/bin/python"
        python.write_text(PYTHON)
        python.chmod(0o755)

    def run(self, script: str, works: str = ".") -> subprocess.CompletedProcess[str]:
        """Run bash with the functions of the script; gives what it said."""
        self.calls.write_text("")
        environment = {
            **os.environ,
            "ZENCONVERT_VENV": str(self.folder / "venv"),
            "ZENCONVERT_WHEELS": str(self.folder / "wheels"),
            "CALLS": str(self.calls),
            "WORKS": works,
            "CMAKE_ARGS": "",
        }
        return subprocess.run(
            ["bash", "-c", f'source "{ROOT}/scripts/environment.sh"\n{script}'],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    @property
    def builds(self) -> list[str]:
        """Flags of cmake of every wheel that was built."""
        return [line for line in self.calls.read_text().splitlines() if " wheel " in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_built_for_this_processor_alone(machine: Machine) -> None:
    flavours = machine.run("llamacpp_flavours").stdout.split()
    assert flavours[-1] == "plain"
    for flavour in ("haswell", "plain"):
        flags = machine.run(f"llamacpp_flags {flavour}").stdout
        assert "-DGGML_NATIVE=OFF" in flags
        assert not re.search("AVX512|AMX", flags)
    keys = {machine.run(f"llamacpp_key {flavour}").stdout for flavour in ("haswell", "plain")}
    assert len(keys) == 2


def test_a_build_is_made_once_and_proved_once(machine: Machine) -> None:
    assert machine.run("install_llamacpp").returncode == 0
    [build] = machine.builds
    assert "-DGGML_NATIVE=OFF" in build
    assert f"_INCLUDE={ROOT}/scripts/llamacpp.cmake" in build
    assert (ROOT / "scripts/llamacpp.cmake").exists()
    assert "--no-cache-dir" in build
    assert "doctor --engine llamacpp" in machine.calls.read_text()
    assert machine.run("install_llamacpp").returncode == 0
    assert machine.calls.read_text() == ""
    # another environment takes the wheel
    (machine.folder / "venv/llamacpp").unlink()
    assert machine.run("install_llamacpp").returncode == 0
    assert machine.builds == []
    assert "install --quiet" in machine.calls.read_text()


def test_a_build_takes_every_core(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where sums of tests are to be of one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CMAKE_BUILD_PARALLEL_LEVEL", raising=False)
    assert machine.run("install_llamacpp").returncode == 0
    [build] = machine.builds
    assert build.endswith(f"| {len(os.sched_getaffinity(0))}")


def test_another_processor_proves_it_again(machine: Machine) -> None:
    assert machine.run("install_llamacpp").returncode == 0
    proven = machine.folder / "venv/llamacpp-proven"
    proven.write_text(proven.read_text().replace(proven.read_text().split()[-1], "0"))
    assert machine.run("install_llamacpp").returncode == 0
    assert "doctor" in machine.calls.read_text()


def test_a_build_that_dies_gives_way_to_a_plain_one(machine: Machine) -> None:
    first = machine.run("llamacpp_flavours").stdout.split()[0]
    done = machine.run("install_llamacpp", works="-plain-")
    assert done.returncode == 0, done.stderr
    if first != "plain":
        assert "died of SIGILL" in done.stderr
        assert "-DGGML_AVX2=OFF" in machine.builds[-1]
    assert machine.run("install_llamacpp", works="-plain-").returncode == 0
    assert machine.calls.read_text() == ""


def test_where_none_works_it_says_so(machine: Machine) -> None:
    done = machine.run("install_llamacpp || echo none", works="nothing")
    assert done.stdout == "none\n"
    assert "llama.cpp does not work here: error: died of SIGILL" in done.stderr
