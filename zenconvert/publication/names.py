"""Names of repositories on the Hub."""

from __future__ import annotations

import re
from typing import Final

from zenconvert.errors import UsageError
from zenconvert.publication.facts import ReleaseFacts

_OTHER: Final = re.compile(r"[^\w.-]+", re.ASCII)
_LONGEST: Final = 96
REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""``organisation/name``, as far as it matters here."""


def repository_name(facts: ReleaseFacts, shelf: str) -> str:
    """``NAME-SHELF``: the name of a shelf's repository, without the organisation.

    Raises UsageError where no valid name can be made of it.
    """
    name = _OTHER.sub("-", f"{facts.name}-{shelf}").strip("-.")
    name = re.sub(r"--+", "-", re.sub(r"\.\.+", ".", name))
    if not name or len(name) > _LONGEST or name.endswith(".git"):
        raise UsageError(
            f"{name!r} cannot be the name of a repository on the Hub: 1 to {_LONGEST} letters, "
            "digits, '-', '_' and '.', not ending in '.git'"
        )
    return name


def repository_id(facts: ReleaseFacts, shelf: str) -> str | None:
    """``organisation/NAME-SHELF``; None where nobody said where shelves go."""
    return None if facts.hub is None else f"{facts.hub}/{repository_name(facts, shelf)}"
