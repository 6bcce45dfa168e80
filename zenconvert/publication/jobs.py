"""The jobs of a release, keyed by what goes into them, and what happens to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from zenconvert import errors
from zenconvert.errors import ConversionFailed, ZenError
from zenconvert.version import __version__

Kind = Literal["gather", "variant", "verify", "assemble", "sign", "publish"]
_VERBS: Final[Mapping[Kind, str]] = {"variant": "make"}


def key(kind: str, **parts: Any) -> str:
    """The key of a job: a digest of the tool's version and all that decides what comes out.

    ``parts`` are digests of inputs and parts of the recipe; never paths or command lines.
    """
    text = json.dumps([kind, __version__, parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work, done as a whole or not at all."""

    key: str
    kind: Kind
    name: str
    """The variant's; of other kinds, what the verb of their title is about."""
    needs: tuple[str, ...] = ()
    """Keys of jobs that must have been done."""
    after: tuple[str, ...] = ()
    """Keys of jobs that must have ended, well or not."""
    reads: str | None = None
    """Key of the job whose outputs it reads: when they change, it is done again."""
    ram: int = 0
    """Bytes of memory that it takes at most, as far as is known."""
    device: str = "cpu"
    group: str = ""
    """Jobs of one kind and group can be done together."""
    calibration: str = ""
    """Key of what is gathered: another run's does as well, where no other job needs this one."""

    @property
    def title(self) -> str:
        """For people."""
        return f"{_VERBS.get(self.kind, self.kind)} {self.name}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed."""

    error: str
    """Class of ``zenconvert.errors``."""
    text: str

    @classmethod
    def of(cls, error: ZenError) -> Failure:
        """The failure that an error is."""
        return cls(type(error).__name__, str(error))

    @property
    def exit_code(self) -> int:
        """Of the error's class."""
        found = getattr(errors, self.error, ConversionFailed)
        return int(found.exit_code)


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is told: jobs of one kind, and the recipe that they are from."""

    kind: Kind
    jobs: tuple[tuple[str, str], ...]
    """(key, name) of every job."""
    recipe: str
    """Where the recipe lies, for its relative paths."""
    text: str
    """What it said when the release began."""
    calibration: str = ""
    """Key of what is learnt from, where that is gathered or needed."""
    served: tuple[str, ...] = ()
    """Variants that will need what is gathered."""
    reads: str = ""
    """Key of the job whose outputs are read."""
    device: str = "cpu"

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """The inverse of :meth:`as_json`."""
        value = json.loads(text)
        value["jobs"] = tuple((key, name) for key, name in value["jobs"])
        value["served"] = tuple(value["served"])
        return cls(**value)


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A job begins."""

    job: Job


@dataclass(frozen=True, slots=True)
class JobProgress:
    """A job is at work."""

    job: Job
    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class JobDone:
    """A job is done."""

    job: Job
    seconds: float


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job failed, or one that it needs."""

    job: Job
    failure: Failure


@dataclass(frozen=True, slots=True)
class JobSkipped:
    """A job was done in an earlier run."""

    job: Job


Event = JobStarted | JobProgress | JobDone | JobFailed | JobSkipped
"""What a release tells while it runs."""
