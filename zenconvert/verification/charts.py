"""Charts as inline SVG, drawn here: no library, no script, no network.

Horizontal positions are percentages and everything else is pixels, so that a chart fills any width
and its text keeps its size. Colours come from the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

from markupsafe import Markup

from zenconvert.verification.histogram import EDGES
from zenconvert.verification.intervals import Interval

_LANE: Final = 26
_BARS: Final = 150
_SCATTER: Final = 260
_TICKS: Final = 5


@dataclass(frozen=True, slots=True)
class Point:
    """A figure with its interval."""

    label: str
    value: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    percent: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Values → percent of the width."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Percent, kept inside."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(100 * min(max(share, 0.0), 1.0), 3)


def linear_axis(values: Iterable[float]) -> Axis:
    """From 0 to a little beyond the largest value."""
    top = max((v for v in values if math.isfinite(v)), default=0.0) * 1.06 or 1.0
    step = _round_step(top / (_TICKS - 1))
    marks = [n * step for n in range(_TICKS + 1) if n * step <= top]
    return Axis(0.0, top, tuple(Tick(100 * m / top, f"{m:.6g}") for m in marks))


def _round_step(raw: float) -> float:
    """1, 2 or 5 times a power of ten, not below ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)


def power_label(power: int) -> str:
    """10 to a power, e.g. 10⁻³."""
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}"


def lane(point: Point, axis: Axis, floor: float) -> Markup:
    """One row of a dot plot: the value, its interval, and the noise floor as a shaded band."""
    low, high = point.interval or (point.value, point.value)
    middle = _LANE / 2
    parts = [
        f'<rect class="floor" x="0" y="3" width="{axis.at(floor)}%" height="{_LANE - 6}"/>',
        _line("track", (0, middle), (100, middle)),
        *(_line("grid", (t.percent, 0), (t.percent, _LANE)) for t in axis.ticks),
        _line("whisker", (axis.at(low), middle), (axis.at(high), middle)),
        f'<circle class="dot" cx="{axis.at(point.value)}%" cy="{middle}" r="5"/>',
    ]
    text = f"{point.label}: {point.value:.5g}"
    if point.interval is not None:
        text += f", {low:.5g} to {high:.5g}"
    return _svg(parts, _LANE, text)


def distribution(counts: Sequence[int], noise: Sequence[int]) -> tuple[Markup, tuple[Tick, ...]]:
    """Share of positions by KL divergence, the noise floor's as an outline; and the axis."""
    used = [i for i, pair in enumerate(zip(counts, noise, strict=True)) if any(pair)]
    first, last = (used[0], used[-1] + 1) if used else (0, len(counts))
    width = 100 / (last - first)
    shares = [[n / max(1, sum(row)) for n in row[first:last]] for row in (counts, noise)]
    top = max(max(row) for row in shares) or 1.0
    parts = []
    for name, row in zip(("bar", "outline"), shares, strict=True):
        for index, share in enumerate(row):
            height = round(_BARS * share / top, 2)
            if height:
                parts.append(
                    f'<rect class="{name}" x="{index * width:.3f}%" y="{_BARS - height + 4:.2f}" '
                    f'width="{width:.3f}%" height="{height}"/>'
                )
    # class i begins at EDGES[i - 1]
    ticks = [
        Tick(width * (i - first), power_label(round(EDGES[i - 1])))
        for i in range(max(first, 1), min(last, len(EDGES) + 1))
        if EDGES[i - 1] == round(EDGES[i - 1])
    ]
    drawn = _svg(parts, _BARS + 4, "distribution of the KL divergence over all positions")
    return drawn, tuple(ticks)


@dataclass(frozen=True, slots=True)
class Spot:
    """A variant in the plane of size and drift."""

    number: int
    label: str
    bytes: int
    value: float
    interval: Interval | None
    on_front: bool


@dataclass(frozen=True, slots=True)
class Scatter:
    """The drawn plane with both axes; vertical ticks are percent from the top."""

    plot: Markup
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


def size_against_drift(spots: Sequence[Spot], floor: float) -> Scatter:
    """Size across, mean KL divergence up (decades), with the front joined by a line."""
    across = linear_axis([spot.bytes / 1e6 for spot in spots])
    positive = [v for s in spots for v in (s.value, *(s.interval or ())) if 0 < v < math.inf]
    low = math.floor(math.log10(min(positive, default=1e-6)))
    high = max(math.ceil(math.log10(max(positive, default=1.0))), low + 1)
    room, height = 12, _SCATTER - 24

    def down(value: float) -> float:
        share = (high - math.log10(max(value, 10.0**low))) / (high - low)
        return round(room + height * min(max(share, 0.0), 1.0), 2)

    decades = [(power, down(10.0**power)) for power in range(low, high + 1)]
    parts = [_line("grid", (0, y), (100, y)) for _, y in decades]
    parts += [_line("grid", (t.percent, 0), (t.percent, _SCATTER)) for t in across.ticks]
    if floor > 10.0**low:
        y = down(floor)
        parts.append(f'<rect class="floor" x="0" y="{y}" width="100%" height="{_SCATTER - y}"/>')
    front = sorted((s for s in spots if s.on_front), key=lambda s: s.bytes)
    places = [(across.at(s.bytes / 1e6), down(s.value)) for s in front]
    parts += [_line("front", a, b) for a, b in pairwise(places)]
    for spot in spots:
        x, y = across.at(spot.bytes / 1e6), down(spot.value)
        if spot.interval is not None:
            parts.append(_line("whisker", (x, down(spot.interval[0])), (x, down(spot.interval[1]))))
        kind = "dot" if spot.on_front else "dot off"
        title = escape(f"{spot.label}: {spot.bytes / 1e6:.4g} MB, {spot.value:.5g} nats")
        parts.append(
            f'<circle class="{kind}" cx="{x}%" cy="{y}" r="9"><title>{title}</title></circle>'
            f'<text class="number" x="{x}%" y="{y + 4}" text-anchor="middle">{spot.number}</text>'
        )
    plot = _svg(parts, _SCATTER, "size against mean KL divergence")
    up = tuple(Tick(100 * y / _SCATTER, power_label(power)) for power, y in decades)
    return Scatter(plot, across.ticks, up)


def _line(kind: str, a: tuple[float, float], b: tuple[float, float]) -> str:
    """A line between points of (percent across, pixels down)."""
    return f'<line class="{kind}" x1="{a[0]}%" y1="{a[1]}" x2="{b[0]}%" y2="{b[1]}"/>'


def _svg(parts: Sequence[str], height: float, label: str) -> Markup:
    return Markup(
        f'<svg class="plot" width="100%" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
