"""Commands in the process of the tests, and a model that they take milliseconds for."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.safety.conftest import case, cases, source, tiny
from zenconvert.cli import main

__all__ = ["case", "cases", "source", "tiny"]

Ended = tuple[int, str, str]


@pytest.fixture
def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Exit code, standard output and standard error of a command in this process."""

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["zenconvert", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run
