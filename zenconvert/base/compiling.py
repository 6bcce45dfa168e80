"""numba's ``njit``, which keeps what it compiled where there is a place for it.

Without one (package, home and temporary folder read-only) numba refuses to compile at all; here it
compiles anew in every run, after one warning.

What is kept is executed when it is read, so its place is nothing that the folder of whoever runs a
command may decide: numba heeds the environment alone, and no ``.numba_config.yaml``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
from numba.core import config

Function = Callable[..., Any]

config._config_fname = os.devnull  # numba reads it anew before it compiles
config.reload_config()


def njit(**options: Any) -> Callable[[Function], Any]:
    """As ``numba.njit``; ``cache=True`` is a wish."""

    def decorate(function: Function) -> Any:
        try:
            return _compiled(function, options)
        except RuntimeError as error:
            if not options.get("cache") or "cannot cache" not in str(error):
                raise
            _warn()
            return _compiled(function, {**options, "cache": False})

    return decorate


def _compiled(function: Function, options: dict[str, Any]) -> Any:
    return numba.njit(**options)(function)


@cache
def _warn() -> None:
    warnings.warn(
        "numba finds no folder that it can write its cache to, and compiles every kernel anew; set "
        "NUMBA_CACHE_DIR to one",
        RuntimeWarning,
        stacklevel=2,
    )
