"""What this machine has to give at the moment."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zenconvert.errors import NotEnoughResources, UsageError, ZenError

AUTO: Final = "auto"
"""As the name of a device: the GPU where torch has one, else the CPU."""

_WORDS: Final = (
    "allocate memory", "Unable to allocate", "out of memory", "failed to map segment", "bad_alloc",
    "can't start new thread",
)  # fmt: skip


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def free_ram() -> int:
    """Bytes of memory that can be had without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def auto_device() -> str:
    """The torch device that ``auto`` stands for."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def take_device(device: str) -> str:
    """The torch device that a name stands for. Raises UsageError when torch cannot use it."""
    import torch

    if device == AUTO:
        return auto_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"torch cannot use the device {device!r}: {reason}") from error
    return device


def free_disk(folder: Path) -> int:
    """Bytes that can be written into a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def out_of_memory(error: BaseException | None) -> str | None:
    """What could not be had, where an error (or what it came from) is for want of memory.

    Libraries tell it in many ways: MemoryError, ENOMEM, a RuntimeError of torch's allocator or of a
    thread that does not start, an ImportError of a library that cannot be mapped. The words of an
    error of ours say nothing: they may be an input's.
    """
    while error is not None:
        text = str(error)
        lacks = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
        told = not isinstance(error, ZenError) and any(word in text for word in _WORDS)
        if lacks or told:
            return f"{text or 'the system gave no more'}{_limit()}"
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def memory_errors(where: str) -> Iterator[None]:
    """Tell every error that is for want of memory as that, whatever it was taken for.

    Raises NotEnoughResources, naming ``where``.
    """
    try:
        yield
    except Exception as error:
        reason = None if isinstance(error, NotEnoughResources) else out_of_memory(error)
        if reason is None:
            raise
        raise NotEnoughResources(f"{where}: not enough memory: {reason}") from error


def _limit() -> str:
    """The limit of the address space, where there is one."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "" if most == resource.RLIM_INFINITY else f" (ulimit -v is {most} bytes)"
