"""Contents of charts, independent of drawing.

The page's SVG and the plot files are drawn from the same objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vpretrain.report.curves import Point
from vpretrain.report.formatting import compact, short

MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross", "plus")
# The baseline's first. 5 dashes, 7 markers and 6 colours are pairwise coprime in number, so up to
# 210 arms look different.
DASHES: tuple[tuple[float, ...], ...] = ((6, 3), (), (2, 2.5), (9, 3, 2, 3), (13, 4))
# Okabe and Ito's hues, darkened for contrast on white; the baseline is grey. The page defines those
# for dark mode.
COLOURS = ("#5f6672", "#0068b5", "#c4490a", "#007a5a", "#a8408a", "#8f6400", "#3a86c8")


@dataclass(frozen=True)
class Style:
    """The look of an arm: its colour, dash and marker.

    Args:
        slot: index of the arm in its comparison; the baseline has 0.
    """

    slot: int

    @property
    def colour(self) -> int:
        """Index into :data:`COLOURS`; only the baseline is grey."""
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
    """Points of one arm or one run.

    Args:
        label: of the arm.
        style: None draws in the colour of the text.
        points: by rising x, finite.
        faint: whether it is a single seed, drawn behind its arm's mean.
        every: distance between markers, in points; 0 for none.
        joined: False for points without a line.
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
        level: a horizontal line, ``(y, label)``.
        description: a sentence below the panel on the page.
        counts_x: whether x is a count, with abbreviated tick labels (``12k``).
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
        title, caption: text; the title is empty if the page's section has it already.
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
    """Returns the range of the values with a margin; never of length zero."""
    low, high = min(values), max(values)
    if from_zero:
        return 0.0, high or 1.0
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - air, high + air


def ticks(low: float, high: float, most: int) -> list[float]:
    """Returns at most about ``most`` round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: Sequence[float], *, counts: bool) -> list[str]:
    """Formats ticks with the same number of decimals along an axis."""
    if counts:
        return [compact(value) for value in values]
    if len(values) < 2 or max(map(abs, values)) >= 1e5 or values[1] - values[0] < 1e-4:
        return [short(value) for value in values]
    decimals = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    return [f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for value in values]
