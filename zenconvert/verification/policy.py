"""Gate policies: TOML files that say how far an artifact may have moved, by its bits.

The default policy, ``policies/default.toml``, documents every key. Unknown keys are refused, and
all mistakes of a file are told at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from zenconvert.base.source_files import parse_toml, read_bytes
from zenconvert.errors import InvalidInput, UsageError
from zenconvert.verification.drift import TO_MEDIAN
from zenconvert.verification.facts import Facts

Scope = Literal["overall", "language"]

_FOLDER: Final = Path(__file__).parent / "policies"
_SCOPES: Final[tuple[Scope, ...]] = ("overall", "language")
_WHEN: Final = ("format", "encoding", "architecture", "engine", "language")
_GROUPS: Final = ("perplexity.", "bits_per_byte.", "kl.", "flips.", "dp.", "top1")
_MOST: Final = 1 << 53
"""The largest whole number; beyond it floats are not exact."""
_LIMIT: Final = frozenset({"at_most", "at_least", "warn_above", "warn_below", "above_noise"})


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure may be, up to the end of its interval."""

    at_most: float | None = None
    at_least: float | None = None
    warn_above: float | None = None
    warn_below: float | None = None
    above_noise: bool = False
    """The limits count from the noise floor, not from zero (``kl.*`` and ``top1`` only)."""


Limits = Mapping[str, Limit]
"""Figure → limit."""


@dataclass(frozen=True, slots=True)
class Tier:
    """The limits of one class of bits."""

    name: str
    bits: tuple[int, int]
    """First and last nominal bits of most of the linear weights."""
    parameters_below: float
    """Models of so many parameters or more are not of this tier."""
    overall: Limits
    language: Limits


@dataclass(frozen=True, slots=True)
class Override:
    """Limits that replace those of the tier wherever everything in ``when`` holds."""

    name: str
    when: Mapping[str, str]
    overall: Limits
    language: Limits

    def applies(self, facts: Mapping[str, str]) -> bool:
        """Whether every condition holds."""
        return all(facts.get(key) == value for key, value in self.when.items())


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that a gate decides by."""

    name: str
    sha256: str
    """Of the file."""
    min_tokens: int
    """Fewer tokens, or blocks, in a language are too few to tell."""
    min_blocks: int
    lowest_ratio: float
    """A perplexity ratio below this is too good to be true."""
    moving_bits: int
    """Artifacts of no more bits than this must have moved beyond the noise floor."""
    baseline: float
    """A reference perplexity above this share of the vocabulary is no language model's."""
    regression: float
    """By which share the mean KL divergence may grow from one release to the next."""
    tiers: tuple[Tier, ...]
    overrides: tuple[Override, ...]

    def tier_of(self, facts: Facts) -> Tier | None:
        """The first tier that fits the bits and parameters that an artifact's header shows."""
        for tier in self.tiers:
            first, last = tier.bits
            if first <= facts.bits <= last and facts.parameters < tier.parameters_below:
                return tier
        return None

    def limits(self, tier: Tier, scope: Scope, facts: Mapping[str, str]) -> dict[str, Limit]:
        """Figure → limit under the overrides that apply; later ones win."""
        found = dict(getattr(tier, scope))
        for override in self.overrides:
            if override.applies(facts):
                found |= getattr(override, scope)
        return found

    @classmethod
    def load(cls, source: str | Path) -> Policy:
        """Read a policy: ``default`` or a path. Raises UsageError with every mistake found."""
        path = policy_path(source)
        try:
            data = read_bytes(path)
            table = parse_toml(data.decode("utf-8"))
        except InvalidInput as error:
            raise UsageError(f"the policy cannot be read: {error}") from error
        except ValueError as error:
            raise UsageError(f"{path}: the policy is not TOML: {error}") from error
        return _Reader(path).policy(table, hashlib.sha256(data).hexdigest())


def policy_path(source: str | Path) -> Path:
    """The file of a policy: ``default`` or a path."""
    return _FOLDER / f"{source}.toml" if source == "default" else Path(source)


class _Reader:
    """Checks a table and gathers what is wrong."""

    def __init__(self, path: Path) -> None:
        self.path, self.problems = path, list[str]()

    def policy(self, table: dict[str, Any], sha256: str) -> Policy:
        known = {"name", "min_tokens", "min_blocks", "anomaly", "against", "tier", "override"}
        self._known(table, known, "the policy")
        anomaly = self._table(table, "anomaly", "the policy")
        self._known(anomaly, {"lowest_ratio", "moving_bits", "baseline"}, "[anomaly]")
        against = self._table(table, "against", "the policy")
        self._known(against, {"regression"}, "[against]")
        tiers = self._table(table, "tier", "the policy")
        overrides = table.get("override", [])
        if not isinstance(overrides, list):
            self.problems.append("'override' must be an array of tables, [[override]]")
            overrides = []
        policy = Policy(
            name=str(table.get("name", self.path.stem)),
            sha256=sha256,
            min_tokens=self._count(table, "min_tokens", 0, "the policy"),
            min_blocks=self._count(table, "min_blocks", 2, "the policy"),
            lowest_ratio=self._number(anomaly, "lowest_ratio", 0.0, "[anomaly]"),
            moving_bits=self._count(anomaly, "moving_bits", 0, "[anomaly]"),
            baseline=self._number(anomaly, "baseline", float("inf"), "[anomaly]"),
            regression=self._number(against, "regression", 0.0, "[against]"),
            tiers=tuple(self._tier(name, value) for name, value in tiers.items()),
            overrides=tuple(self._override(value) for value in overrides),
        )
        if not policy.tiers:
            self.problems.append("there is no tier, so that nothing would be checked")
        if self.problems:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            raise UsageError(f"{self.path}: the policy is wrong:\n{lines}")
        return policy

    def _tier(self, name: str, value: Any) -> Tier:
        where = f"[tier.{name}]"
        table = value if isinstance(value, dict) else {}
        self._known(table, {"bits", "parameters_below", *_SCOPES}, where)
        bits = table.get("bits")
        fits = isinstance(bits, list) and len(bits) == 2 and all(isinstance(b, int) for b in bits)
        if not fits:
            self.problems.append(f"{where}: 'bits' must be [first, last], found {bits!r}")
        limits = [self._limits(table, scope, where) for scope in _SCOPES]
        below = self._number(table, "parameters_below", float("inf"), where)
        return Tier(name, (bits[0], bits[1]) if fits and bits else (0, 0), below, *limits)

    def _override(self, value: Any) -> Override:
        table = value if isinstance(value, dict) else {}
        where = f"override {table.get('name')!r}"
        self._known(table, {"name", "when", *_SCOPES}, where)
        when = self._table(table, "when", where)
        self._known(when, set(_WHEN), f"{where}, 'when'")
        if not isinstance(table.get("name"), str) or not when:
            self.problems.append(f"{where}: it must have a 'name' and conditions in 'when'")
        limits = [self._limits(table, scope, where) for scope in _SCOPES]
        return Override(
            str(table.get("name")), {key: str(text) for key, text in when.items()}, *limits
        )

    def _limits(self, table: dict[str, Any], scope: str, where: str) -> dict[str, Limit]:
        found = {}
        for figure, value in self._table(table, scope, where).items():
            place = f"{where}, {scope}, {figure!r}"
            if not figure.startswith(_GROUPS) or (figure == TO_MEDIAN and scope == "overall"):
                self.problems.append(f"{place}: there is no such figure")
            if not isinstance(value, dict) or not value:
                self.problems.append(f"{place}: expected a table such as {{ at_most = 0.01 }}")
                continue
            self._known(value, _LIMIT, place)
            noisy = bool(value.get("above_noise", False))
            if noisy and not figure.startswith(("kl.", "top1")):
                self.problems.append(f"{place}: 'above_noise' is for kl.* and top1")
            numbers = {k for k in value if k in _LIMIT and k != "above_noise"}
            limits = {k: self._number(value, k, 0.0, place) for k in numbers}
            found[figure] = Limit(**limits, above_noise=noisy)
        return found

    def _known(
        self, table: Mapping[str, Any], known: set[str] | frozenset[str], where: str
    ) -> None:
        if unknown := sorted(set(table) - known):
            names = ", ".join(sorted(known))
            self.problems.append(f"{where}: unknown keys {', '.join(unknown)}; known are {names}")

    def _table(self, table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
        value = table.get(key, {})
        if not isinstance(value, dict):
            self.problems.append(f"{where}: {key!r} must be a table, found {value!r}")
            return {}
        return value

    def _number(self, table: Mapping[str, Any], key: str, default: float, where: str) -> float:
        value = table.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not value >= 0 or (isinstance(value, int) and value > _MOST):
            self.problems.append(f"{where}: {key!r} must be a number from 0, found {value!r:.100}")
            return default
        return float(value)

    def _count(self, table: Mapping[str, Any], key: str, default: int, where: str) -> int:
        value = self._number(table, key, default, where)
        if not value <= _MOST:
            self.problems.append(f"{where}: {key!r} must be finite, found {value!r}")
            return default
        return int(value)
