"""Want of memory is told as that, whatever a library makes of it; kernels without a cache work."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from zenconvert import calibrate, verify
from zenconvert.base.compiling import _warn, njit
from zenconvert.base.machine import memory_errors, out_of_memory
from zenconvert.base.processes import child_environment
from zenconvert.errors import InvalidInput, MissingDependency, NotEnoughResources, ZenError
from zenconvert.formats.hf import fast

LACKS: dict[str, Exception] = {
    "of Python": MemoryError(),
    "of the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "of torch": RuntimeError("[enforce fail at alloc_cpu.cpp:117] can't allocate memory"),
    "of a library": ImportError("libx.so: failed to map segment from shared object"),
    "of a thread": RuntimeError("can't start new thread"),
    "of C++": RuntimeError("std::bad_alloc"),
}


@pytest.mark.parametrize("lack", LACKS.values(), ids=LACKS)
@pytest.mark.parametrize("taken", [None, InvalidInput, MissingDependency])
def test_what_it_was_taken_for(lack: Exception, taken: type[ZenError] | None) -> None:
    with pytest.raises(NotEnoughResources, match="a place: not enough memory"):
        _fail("a place", lack, taken)


def _fail(where: str, lack: Exception, taken: type[ZenError] | None) -> None:
    def lacking() -> None:
        raise lack

    with memory_errors(where):
        try:
            lacking()
        except Exception as error:
            if taken is None:
                raise
            raise taken("a wrong reason") from error


def test_the_words_of_an_input_say_nothing() -> None:
    assert out_of_memory(InvalidInput("a tensor called 'out of memory'")) is None
    with pytest.raises(InvalidInput), memory_errors("a place"):
        raise InvalidInput("a tensor called 'std::bad_alloc'")


def test_a_config_is_not_blamed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*given: Any) -> Any:
        raise MemoryError

    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 8)
    monkeypatch.setattr("zenconvert.reference.skeleton._weightless", lacking)
    with pytest.raises(NotEnoughResources, match="tiny"):
        calibrate(tiny, tmp_path / "x.stats", samples=text, context=16)
    with pytest.raises(NotEnoughResources, match="tiny"):
        verify(tiny, tiny, text=text, context=16)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_tokenizer_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lacking:
        @staticmethod
        def from_str(text: str) -> None:
            raise MemoryError

    monkeypatch.setattr("tokenizers.Tokenizer", Lacking)
    with pytest.raises(NotEnoughResources, match=r"x/tokenizer\.json"):
        fast.load("{}", "x/tokenizer.json")


@pytest.mark.parametrize("megabytes", [150, 400])
def test_a_limit_of_the_address_space(megabytes: int, tiny: Path, tmp_path: Path) -> None:
    """Libraries that are loaded here take more than that."""
    size = megabytes * 1_000_000
    command = [
        sys.executable, "-P", "-m", "zenconvert", "calibrate", str(tiny), str(tmp_path / "x.stats")
    ]  # fmt: skip
    done = subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "not enough memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_kernels_without_a_place_for_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where package, home and temporary folder are read-only."""
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    _warn.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        kernels = [njit(cache=True)(function) for function in (_twice, _thrice)]
    assert [one.category for one in found] == [RuntimeWarning]
    assert "NUMBA_CACHE_DIR" in str(found[0].message)
    assert [kernel(2) for kernel in kernels] == [4, 6]
    _warn.cache_clear()


def _twice(number: int) -> int:
    return 2 * number


def _thrice(number: int) -> int:
    return 3 * number
