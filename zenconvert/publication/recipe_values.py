"""What a recipe's keys may hold: checks of single values, which raise ValueError with what is
expected (``preparation`` adds what only the world can tell)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from zenconvert.errors import UsageError
from zenconvert.model.target import Target, parse_size, parse_tensor_type

Check = Callable[[Any], Any]
"""Value of a key → the same as the program wants it."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*")


def text(value: Any) -> str:
    """A string with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected a string")
    if "\0" in value:
        raise ValueError("expected a string without the sign of code 0")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list) or not all(
        isinstance(v, str) and v.strip() and "\0" not in v for v in value
    ):
        raise ValueError('expected a list of strings, e.g. ["en", "zh"]')
    return tuple(dict.fromkeys(value))


def name(value: Any) -> str:
    """What can be a file's name everywhere."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("expected letters, digits, '.', '_' and '-', a letter or digit first")
    return value


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError("expected true or false")  # noqa: TRY004 - one kind for all values
    return value


def count(least: int) -> Check:
    """A whole number from ``least`` on."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"expected a whole number from {least} on")
        return value

    return check


def number(value: Any) -> float:
    """A number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError("expected a number above 0")
    return float(value)


def size(value: Any) -> int:
    """Bytes, or ``"50G"``."""
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError('expected a number of bytes, or one with a unit such as "50G"')
    return value


def weights(value: Any) -> dict[str, float]:
    """Language → weight."""
    plain = isinstance(value, dict) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and v >= 0 for v in value.values()
    )
    if not plain:
        raise ValueError("expected numbers from 0 on by language, e.g. { en = 2, zh = 1 }")
    return {code: float(weight) for code, weight in value.items()}


def one_of(*known: str) -> Check:
    """One of some words."""

    def check(value: Any) -> str:
        if value not in known:
            raise ValueError(f"expected one of {', '.join(known)}")
        return str(value)

    return check


def some_of(*known: str) -> Check:
    """A list of some words."""

    def check(value: Any) -> tuple[str, ...]:
        if unknown := [v for v in texts(value) if v not in known]:
            raise ValueError(f"there is no {unknown[0]!r}; known are {', '.join(known)}")
        return texts(value)

    return check


def target(value: Any) -> Target:
    """``format:type``."""
    return Target.parse(text(value))


def tensor_types(value: Any) -> tuple[tuple[str, str], ...]:
    """``["REGEX=TYPE", …]``."""
    return tuple(parse_tensor_type(one) for one in texts(value))


def lower(value: Any) -> str:
    """A type, in small letters."""
    return text(value).lower()


def checked(check: Check, value: Any) -> tuple[Any, str]:
    """(what the check gives, why it does not take the value), one of them empty."""
    try:
        return check(value), ""
    except UsageError as error:
        return None, str(error)
    except ValueError as error:
        return None, f"{error}, found {value!r:.60}"
