"""Names for files and folders, each in as few steps as the file system allows."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from zenconvert.base.atomic import NOT_SUPPORTED


def give_name(path: Path, final: Path) -> None:
    """Give a file or folder its final name. Raises FileExistsError where that is taken."""
    try:
        # the second name lets ``_undo`` know the file again
        os.link(path, final)
    except OSError as error:
        if error.errno not in {errno.EPERM, *NOT_SUPPORTED}:
            raise
        # a folder, or a file system without hard links
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
        path.rename(final)


def replace(path: Path, final: Path) -> bool:
    """Put a file or folder in the place of another in one step; False where that cannot be."""
    if path.is_dir():
        return exchange(path, final)
    path.replace(final)
    return True


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    sys.audit("os.rename", str(one), str(other), -1, -1)  # as os.rename itself does
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
