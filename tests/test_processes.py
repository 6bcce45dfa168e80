"""Processes of ours and what they are started with."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from zenconvert.base.processes import child_environment, signal_name


def test_threads_that_wait_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said by the OpenMP runtime itself. Who sets the variable has the last word."""
    for given, found in ((None, "PASSIVE"), ("active", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if given is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        done = subprocess.run(
            [sys.executable, "-c", "import torch; torch.ones(9).sum()"],
            env=child_environment(OMP_DISPLAY_ENV="true"),
            capture_output=True,
            text=True,
            check=True,
        )
        assert re.search(rf"OMP_WAIT_POLICY\s*=\s*'{found}'", done.stderr)


def test_signals_have_names_or_numbers() -> None:
    """Real-time signals have no names."""
    for number, name in ((9, "SIGKILL"), (40, "signal 40")):
        done = subprocess.run(["bash", "-c", f"kill -{number} $$"], check=False)
        assert signal_name(-done.returncode) == name
