"""What a chart shows, before anything draws it: the page's SVG and the plot files are two drawings
of one of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vpretrain.report.curves import Point
from vpretrain.report.formatting import compact, short

MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross", "plus")
# The baseline's first. 5 dashes, 7 markers and 6 colours have no common factor: no two of 210 arms
# look the same.
DASHES: tuple[tuple[float, ...], ...] = ((6, 3), (), (2, 2.5), (9, 3, 2, 3), (13, 4))
# Okabe and Ito's hues, darkened to stand out from white; the baseline is grey. The style sheet has
# those for dark.
COLOURS = ("#5f6672", "#0068b5", "#c4490a", "#007a5a", "#a8408a", "#8f6400", "#3a86c8")


@dataclass(frozen=True)
class Style:
    """How an arm is told apart: by colour, dash and marker at once.

    Args:
        slot: place of the arm in its comparison; the baseline has 0.
    """

    slot: int

    @property
    def colour(self) -> int:
        """Index into :data:`COLOURS`; grey stays the baseline's."""
        return 0 if self.slot == 0 else 1 + (self.slot - 1) % (len(COLOURS) - 1)

    @property
    def dash(self) -> tuple[float, ...]:
        """Lengths of strokes and gaps; empty for a solid line."""
        return DASHES[self.slot % len(DASHES)]

    @property
    def marker(self) -> str:
        """One of :data:`MARKERS`."""
        return MARKERS[self.slot % len(MARKERS)]


@dataclass(frozen=True)
class Line:
    """Points of one arm or one run, joined.

    Args:
        label: of the arm.
        style: None draws in the colour of the text.
        points: by rising x, finite.
        faint: whether it is a single seed behind its arm's mean.
        every: a marker at each so many points; 0 for none.
        joined: False for points alone.
        spread: half-lengths of error bars in x and y, or None.
    """

    label: str
    style: Style | None
    points: Sequence[Point]
    faint: bool = False
    every: int = 0
    joined: bool = True
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        x_label, y_label: with units.
        lines: the faint ones first.
        level: a horizontal line, ``(y, what it is)``.
        description: a sentence below, for the page.
        counts_x: whether x is a count, whose labels are short (``12k``).
    """

    x_label: str
    y_label: str
    lines: Sequence[Line]
    level: tuple[float, str] | None = None
    description: str = ""
    counts_x: bool = True


@dataclass(frozen=True)
class Figure:
    """Panels under one title, with one legend.

    Args:
        name: of its files.
        title, caption: for people; an empty title where the part of the page has it already.
        panels: one or more.
        arms: ``(label, style)`` of the legend.
        wide: whether a single panel is drawn larger.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    arms: Sequence[tuple[str, Style]] = field(default_factory=tuple)
    wide: bool = False


def span(values: Sequence[float], *, from_zero: bool = False) -> tuple[float, float]:
    """Least and greatest with some air; never of length zero."""
    low, high = min(values), max(values)
    if from_zero:
        return 0.0, high or 1.0
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - air, high + air


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, as many as fit into ``most``."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: Sequence[float], *, counts: bool) -> list[str]:
    """The same number of decimals on one axis."""
    if counts:
        return [compact(value) for value in values]
    if len(values) < 2 or max(map(abs, values)) >= 1e5 or values[1] - values[0] < 1e-4:
        return [short(value) for value in values]
    decimals = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    return [f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for value in values]
