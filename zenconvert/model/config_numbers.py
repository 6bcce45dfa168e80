"""Numbers of a config, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zenconvert.errors import InvalidInput

_LIMIT: Final = 1 << 31


def at_path(config: Any, path: str) -> Any:
    """What a config has under a key with dots into objects; None where it has nothing.

    ``*`` stands for every key of an object, which have to hold one and the same thing there.
    """
    first, _, rest = path.partition(".")
    if not isinstance(config, Mapping):
        return None
    if first == "*":
        found = [at_path(value, rest) for value in config.values()]
        return found[0] if found and all(value == found[0] for value in found) else None
    return at_path(config.get(first), rest) if rest else config.get(first)


def count(config: Mapping[str, Any], key: str, where: str, *, zero: bool = False) -> int:
    """A whole number from 1, or from 0. Raises InvalidInput."""
    value = config.get(key)
    lowest = 0 if zero else 1
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value < _LIMIT:
        raise InvalidInput(
            f"{where}: {key} should be an integer from {lowest} to {_LIMIT - 1}, found {value!r}"
        )
    return value


def real(key: str, value: Any, where: str) -> float:
    """A positive number. Raises InvalidInput."""
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 < value < float("inf")
    ):
        raise InvalidInput(f"{where}: {key} should be a positive number, found {value!r}")
    return float(value)
