"""A panel as inline SVG. Colours are classes, so that the page's style sheet makes them light or
dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vpretrain.report.chart import Line, Panel, Style, span, tick_labels, ticks
from vpretrain.system.html import Markup, joined, tag

_SIZE, _LARGE = (332.0, 214.0), (440.0, 300.0)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 28.0, 36.0
_GUTTER = 38.0  # right of the axes instead of _RIGHT where a level is named there
_REACH = 3.4  # of a marker, from its middle
_Place = tuple[float, float]


@dataclass(frozen=True)
class _Frame:
    """Where values stand: the ranges of both axes, and the rectangle that they fill."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    right: float
    bottom: float

    def at(self, x: float, y: float) -> _Place:
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return _LEFT + across * (self.right - _LEFT), self.bottom - up * (self.bottom - _TOP)


def panel(chart: Panel, *, large: bool = False) -> Markup:
    """The whole panel; it scales to the width it is given."""
    width, height = _LARGE if large else _SIZE
    xs, ys = [], [chart.level[0]] if chart.level else []
    for line in chart.lines:
        reach = line.spread or (0.0, 0.0)
        xs += [x + sign * reach[0] for x, _ in line.points for sign in (-1, 1)]
        ys += [y + sign * reach[1] for _, y in line.points for sign in (-1, 1)]
    right = width - (_GUTTER if chart.level else _RIGHT)
    frame = _Frame(span(xs, from_zero=chart.counts_x), span(ys), right, height - _BOTTOM)
    description = f"{chart.y_label} against {chart.x_label}"
    parts = [tag("title", description), *_axes(chart, frame, height)]
    joined_up = [line for line in chart.lines if not line.spread]
    apart = [line for line in chart.lines if line.spread]
    parts += [_line(line, [frame.at(x, y) for x, y in line.points]) for line in joined_up]
    parts += [_spread(line, frame) for line in apart]
    parts += _labels([(line.label, frame.at(*line.points[0])) for line in apart], frame)
    return tag(
        "svg",
        *parts,
        class_="chart",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=description,
    )


def _axes(chart: Panel, frame: _Frame, height: float) -> Iterator[Markup]:
    bottom, right = frame.bottom, frame.right
    places = ticks(*frame.y_range, 5)
    for value, label in zip(places, tick_labels(places, counts=False), strict=True):
        y = frame.at(frame.x_range[0], value)[1]
        yield _stroke("grid", (_LEFT, y), (right, y))
        yield tag("text", label, class_="tick", x=_n(_LEFT - 6), y=_n(y + 3.5), text_anchor="end")
    places = ticks(*frame.x_range, 5)
    for value, label in zip(places, tick_labels(places, counts=chart.counts_x), strict=True):
        x = frame.at(value, frame.y_range[0])[0]
        yield _stroke("axis", (x, bottom), (x, bottom + 4))
        yield tag("text", label, class_="tick", x=_n(x), y=_n(bottom + 16), text_anchor="middle")
    yield _stroke("axis", (_LEFT, bottom), (right, bottom))
    yield tag("text", chart.y_label, class_="label", x="2", y="13")
    yield tag(
        "text", chart.x_label, class_="label", x=_n(right), y=_n(height - 4), text_anchor="end"
    )
    if chart.level:
        y = frame.at(frame.x_range[0], chart.level[0])[1]
        yield _stroke("level", (_LEFT, y), (right, y))
        yield tag("text", chart.level[1], class_="tick", x=_n(right + 5), y=_n(y + 3.5))


def _labels(points: Sequence[tuple[str, _Place]], frame: _Frame) -> Iterator[Markup]:
    """A name beside each point, where it hides no marker and no other name if there is such a
    place.
    """
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, (x, y) in points]
    for label, (x, y) in points:
        long = 6.0 * len(label)
        boxes = []
        for down in (3.5, -8.0, 15.0, -20.0, 27.0):
            boxes += [
                (x + 8, y + down - 9, x + 8 + long, y + down + 3),
                (x - 8 - long, y + down - 9, x - 8, y + down + 3),
            ]
        inside = [box for box in boxes if box[0] >= _LEFT and box[2] <= frame.right] or boxes
        free = [box for box in inside if not any(_overlap(box, other) for other in taken)] or inside
        taken.append(free[0])
        start, baseline = free[0][0], free[0][3] - 3
        left = start < x
        yield tag(
            "text",
            label,
            class_="tick halo",
            x=_n(free[0][2] if left else start),
            y=_n(baseline),
            text_anchor="end" if left else None,
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def swatch(style: Style | None) -> Markup:
    """The arm's line and marker, for legends and tables."""
    if style is None:
        inner = joined(_stroke("level", (1, 7), (27, 7)))
    else:
        inner = joined(_stroke("line", (1, 7), (27, 7), style), _marker(style, 14, 7))
    return tag(
        "svg", inner, class_=f"swatch {_colour(style)}", viewBox="0 0 28 14", aria_hidden="true"
    )


def interval(
    difference: float,
    ci95: tuple[float, float] | None,
    low: float,
    high: float,
    style: Style,
    label: str,
) -> Markup:
    """A difference and its interval beside zero, on the scale ``[low, high]`` that a table's rows
    share.
    """

    def at(value: float) -> float:
        return 6 + 148 * (value - low) / (high - low)

    parts = [_stroke("level", (at(0), 1), (at(0), 21))]
    if ci95:
        left, right = at(ci95[0]), at(ci95[1])
        parts.append(_stroke("whisker", (left, 11), (right, 11)))
        parts += [_stroke("whisker", (x, 7), (x, 15)) for x in (left, right)]
    parts.append(_marker(style, at(difference), 11))
    return tag(
        "svg",
        *parts,
        class_=f"interval {_colour(style)}",
        viewBox="0 0 160 22",
        role="img",
        aria_label=label,
    )


def _line(line: Line, places: Sequence[tuple[float, float]]) -> Markup:
    parts: list[Markup] = []
    if line.faint:
        parts.append(tag("title", line.label))
    if line.joined and len(places) > 1:
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in places)
        dash = (
            " ".join(f"{length:g}" for length in line.style.dash)
            if line.style and not line.faint
            else ""
        )
        parts.append(tag("path", class_="line", d=path, stroke_dasharray=dash or None))
    if line.every and line.style:
        # Arms begin at different points, so that markers of lines that run together do not hide
        # each other.
        first = (line.style.slot * max(1, line.every // 3)) % line.every
        parts += [_marker(line.style, x, y) for x, y in places[first :: line.every]]
    elif len(places) == 1 and line.style:
        parts.append(_marker(line.style, *places[0]))
    return tag("g", *parts, class_=_colour(line.style) + (" faint" if line.faint else ""))


def _spread(line: Line, frame: _Frame) -> Markup:
    parts = []
    across, up = line.spread or (0.0, 0.0)
    for x, y in line.points:
        if across:
            parts.append(_stroke("whisker", frame.at(x - across, y), frame.at(x + across, y)))
        if up:
            parts.append(_stroke("whisker", frame.at(x, y - up), frame.at(x, y + up)))
        parts.append(_marker(line.style or Style(0), *frame.at(x, y)))
    return tag("g", *parts, class_=_colour(line.style))


def _marker(style: Style, x: float, y: float) -> Markup:
    r = _REACH
    shapes = {
        "circle": f"M{_n(x - r)} {_n(y)}a{r} {r} 0 1 0 {2 * r:g} 0a{r} {r} 0 1 0 {-2 * r:g} 0Z",
        "square": f"M{_n(x - 3)} {_n(y - 3)}h6v6h-6Z",
        "triangle": f"M{_n(x)} {_n(y - 4)}l4 7h-8Z",
        "down": f"M{_n(x)} {_n(y + 4)}l4 -7h-8Z",
        "diamond": f"M{_n(x)} {_n(y - 4.4)}l4.4 4.4l-4.4 4.4l-4.4 -4.4Z",
        "cross": f"M{_n(x - 4)} {_n(y - 2.4)}l1.6 -1.6l2.4 2.4l2.4 -2.4l1.6 1.6l-2.4 2.4l2.4 "
        "2.4l-1.6 "
        "1.6l-2.4 -2.4"
        "l-2.4 2.4l-1.6 -1.6l2.4 -2.4Z",
        "plus": f"M{_n(x - 1.2)} {_n(y - 4)}h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8Z",
    }
    return tag("path", class_="marker", d=shapes[style.marker])


def _stroke(
    kind: str, start: tuple[float, float], end: tuple[float, float], style: Style | None = None
) -> Markup:
    dash = " ".join(f"{length:g}" for length in style.dash) if style else ""
    path = f"M{_n(start[0])} {_n(start[1])}L{_n(end[0])} {_n(end[1])}"
    return tag("path", class_=kind, d=path, stroke_dasharray=dash or None)


def _colour(style: Style | None) -> str:
    return "arm-none" if style is None else f"arm-{style.colour}"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
