"""The Hub as publishing needs it: what a repository holds, and calls that are patient.

huggingface_hub tries some of its requests again, not all. Here a call that failed for a passing
reason (the connection, too many requests, a server's 5xx) is made again as a whole, after a wait;
calls are such that making them twice does no harm.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from zenconvert.errors import PublishingFailed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a release is published, and how patiently."""

    namespace: str
    """User or organisation."""
    private: bool = False
    """Of repositories that are made; those that are there stay as they are."""
    endpoint: str | None = None
    """Of the Hub; ``$HF_ENDPOINT`` or huggingface.co by default."""
    token: str | None = field(default=None, repr=False)
    """That may write; the one that ``hf auth login`` or ``$HF_TOKEN`` left by default."""
    attempts: int = 5
    """How often a call is made that fails for a passing reason."""
    wait_s: float = 2.0
    """Seconds before the second attempt; each further wait is twice as long."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository."""

    size: int
    blob: str
    """Git's name of its content, or of the pointer to it."""
    sha256: str | None
    """Of a large file; None where git holds the content itself."""

    def holds(self, path: Path, sha256: str) -> bool:
        """Whether it has the bytes of a local file, whose SHA-256 is known."""
        if self.sha256 is not None:
            return self.sha256 == sha256
        if self.size != path.stat().st_size:
            return False
        data = path.read_bytes()  # what git holds itself is small
        return self.blob == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Hub:
    """One Hub, reached as a destination says."""

    destination: Destination

    @cached_property
    def api(self) -> HfApi:
        """The client."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.destination.endpoint, token=self.destination.token)

    def head(self, repository: str) -> str:
        """The commit that ``main`` is at."""
        info = self.patiently(repository, lambda: self.api.repo_info(repository, revision="main"))
        return str(info.sha)

    def files(self, repository: str, revision: str) -> dict[str, RemoteFile]:
        """What a revision holds, by path."""

        def listing() -> dict[str, RemoteFile]:
            tree = self.api.list_repo_tree(repository, recursive=True, revision=revision)
            return {
                entry.path: RemoteFile(
                    entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None
                )
                for entry in tree
                if hasattr(entry, "blob_id")
            }

        return self.patiently(repository, listing)

    def patiently(self, what: str, call: Callable[[], T]) -> T:
        """Make a call until it succeeds. Raises PublishingFailed when it fails for good."""
        from huggingface_hub.errors import HfHubHTTPError

        # whatever client huggingface_hub is built on (requests, httpx): the base of its errors
        transport = HfHubHTTPError.__bases__[0]
        for attempt in range(1, self.destination.attempts + 1):
            try:
                return call()
            except (HfHubHTTPError, transport, OSError, RuntimeError, ValueError) as error:
                wait = _wait(error, transport)
                if wait is None or attempt == self.destination.attempts:
                    tries = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise PublishingFailed(f"{what}: {_reason(error)}{tries}") from error
                grown = self.destination.wait_s * 2 ** (attempt - 1)
            time.sleep(min(max(wait, grown), _LONGEST_S))
        raise PublishingFailed(f"{what}: no attempt was allowed")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _wait(error: BaseException, transport: type) -> float | None:
    """Seconds that the server asks to wait, 0 where it says nothing; None where waiting is vain."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    for cause in _chain(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return None
        response = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
        if status is not None:
            return _asked(getattr(response, "headers", {})) if status in _PASSING else None
        if isinstance(cause, (ConnectionError, TimeoutError, transport)):
            return 0.0
    return None


def _asked(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0


def _reason(error: BaseException) -> str:
    """The innermost words, in one line, with advice where one is known."""
    causes = list(_chain(error))
    status = next(
        (r.status_code for c in causes if (r := getattr(c, "response", None)) is not None), None
    )
    words = " ".join(str(causes[0]).split()) or type(causes[0]).__name__
    if causes[0] is not causes[-1] and str(causes[-1]):
        words += f" {' '.join(str(causes[-1]).split())}"
    advice = {
        401: "; log in (hf auth login) or set HF_TOKEN to a token that may write",
        403: "; the token may not write there",
        412: "; the repository changed meanwhile: run it again",
    }
    return words[:400] + advice.get(status or 0, "")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the client's own progress bars."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    was = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was:
            enable_progress_bars()
