"""Draws charts with matplotlib: SVG inside the page, SVG and PNG files for papers and slides."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from vpretrain.report.chart import (
    COLOURS,
    MARKERS,
    Figure,
    Line,
    Panel,
    Style,
    span,
    tick_labels,
    ticks,
)
from vpretrain.report.figures import metric_label, styles
from vpretrain.report.folders import Section
from vpretrain.system.html import Markup, printable, tag

Box: TypeAlias = tuple[float, float, float, float]

_INK, _SOFT, _RULE, _PAPER = "#16191f", "#5a6270", "#e3e6eb", "#ffffff"
_POINTS = 72  # per inch: a point of the drawing is a pixel of the page
_SIZE, _LARGE = (332.0, 214.0), (440.0, 300.0)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 28.0, 36.0
_GUTTER = 38.0  # replaces _RIGHT if a level is labelled right of the axes
_TICK, _LABEL = 10.5, 11.5
_MARKERS = dict(zip(MARKERS, "os^DvXP", strict=True))
_SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar sign in an arm's name is a dollar sign
    "svg.hashsalt": "vpretrain",  # the same data gives the same bytes
    "svg.fonttype": "none",
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.labelsize": _LABEL,
    "axes.titlesize": _LABEL,
    "xtick.labelsize": _TICK,
    "ytick.labelsize": _TICK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
}
# On the page, colours are variables of the style sheet, for light and dark mode.
_NAMES = {_INK: "ink", _SOFT: "soft", _RULE: "rule", _PAPER: "paper"}
_NAMES |= {colour: f"arm-{slot}" for slot, colour in enumerate(COLOURS)}
_VARIABLES = {colour: f"var(--{name})" for colour, name in _NAMES.items()}
_KEPT = ("d", "x", "y", "transform")


def panel(chart: Panel, *, large: bool = False) -> Markup:
    """Returns one panel for the page; it scales to the available width."""
    width, height = _LARGE if large else _SIZE
    right = _GUTTER if chart.level else _RIGHT
    with _canvas(width, height) as canvas:
        size = (1 - (_LEFT + right) / width, 1 - (_TOP + _BOTTOM) / height)
        _panel(canvas.add_axes((_LEFT / width, _BOTTOM / height, *size)), chart)
        text = f"{chart.y_label} against {chart.x_label}"
        return _inline(canvas, tag("title", text), class_="chart", role="img", aria_label=text)


@lru_cache
def swatch(style: Style | None) -> Markup:
    """Returns the arm's line and marker, for legends and tables."""
    with _canvas(28, 14) as canvas:
        xs = [1 / 28, 0.5, 27 / 28]
        canvas.add_artist(Line2D(xs, [0.5] * 3, markevery=(1, 5), **_look(style)))
        return _inline(canvas, class_="swatch", aria_hidden="true")


def interval(
    difference: float,
    ci95: tuple[float, float] | None,
    low: float,
    high: float,
    style: Style,
    label: str,
) -> Markup:
    """Draws a difference and its interval around zero.

    The rows of a table share the scale ``[low, high]``.
    """
    with _canvas(160, 22) as canvas:
        axes = canvas.add_axes((6 / 160, 0, 148 / 160, 1))
        axes.set_axis_off()
        axes.axvline(0, color=_SOFT, linestyle=":", linewidth=1)
        _interval(axes, difference, ci95, 0, style)
        axes.set_xlim(low, high)
        return _inline(canvas, class_="interval", role="img", aria_label=label)


def write_plots(figures: Sequence[Figure], sections: Sequence[Section], folder: Path) -> list[Path]:
    """Writes each figure, and each comparison's differences, as ``NAME.svg`` and ``NAME.png``.

    Args:
        figures: of all sections; a duplicate name gets a number.
        sections: whose differences are drawn.
        folder: created if missing; other files in it are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Path, None] = {}
    for name, (width, height), draw in _drawings(figures, sections):
        with _canvas(width, height) as canvas:
            canvas.set_layout_engine("constrained")
            draw(canvas)
            stem, number = name, 2
            while folder / f"{stem}.svg" in written:
                stem, number = f"{name}-{number}", number + 1
            for kind in ("svg", "png"):
                path = folder / f"{stem}.{kind}"
                path.write_bytes(_saved(canvas, kind))
                canvas.set_layout_engine("none")  # laid out once, for both
                written[path] = None
    return list(written)


@contextmanager
def _canvas(width: float, height: float) -> Iterator[Canvas]:
    """Yields an empty drawing of this size in points."""
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # A character missing from the font is shown as a box, as in browsers.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Overlong names overlap.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        canvas = Canvas(figsize=(width / _POINTS, height / _POINTS), dpi=_POINTS)
        FigureCanvasAgg(canvas)
        yield canvas


def _saved(canvas: Canvas, kind: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 120}
    canvas.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def _drawings(
    figures: Sequence[Figure], sections: Sequence[Section]
) -> Iterator[tuple[str, tuple[float, float], Callable[[Canvas], None]]]:
    for number, section in enumerate(sections, 1):
        measured = {name for pairs in section.paired.values() for name in pairs}
        if metrics := [name for name in section.metrics if name in measured]:
            prefix = f"{number}-" if len(sections) > 1 else ""
            size = (_SIZE[0] * len(metrics), 70.0 + 26 * len(section.paired))
            draw = partial(_differences, section=section, metrics=metrics)
            yield f"{prefix}differences", size, draw
    for figure in figures:
        across = min(3, len(figure.panels))
        down = -(-len(figure.panels) // across)
        width, height = _LARGE if figure.wide else _SIZE
        size = (width * across, height * down + 60)
        yield figure.name, size, partial(_draw, figure=figure, across=across, down=down)


def _draw(canvas: Canvas, figure: Figure, across: int, down: int) -> None:
    for number, chart in enumerate(figure.panels, 1):
        _panel(canvas.add_subplot(down, across, number), chart)
    if figure.title:
        canvas.suptitle(_short(figure.title), fontsize=14, fontweight="bold", x=0.01, ha="left")
    # A leading space: matplotlib keeps labels that begin with an underscore out of legends.
    handles = [
        Line2D([], [], label=" " + _short(arm), **_look(style)) for arm, style in figure.arms
    ]
    if handles:
        place: Any = {"loc": "outside lower left", "ncols": min(4, len(handles))}
        canvas.legend(handles=handles, frameon=False, handlelength=3, **place)


def _panel(axes: Axes, chart: Panel) -> None:
    xs, ys = [], [chart.level[0]] if chart.level else []
    for line in chart.lines:
        across, up = line.spread or (0.0, 0.0)
        xs += [x + sign * across for x, _ in line.points for sign in (-1, 1)]
        ys += [y + sign * up for _, y in line.points for sign in (-1, 1)]
    x_range, y_range = span(xs, from_zero=chart.counts_x), span(ys)
    axes.set_xlim(*x_range)
    axes.set_ylim(*y_range)
    across_ticks, up_ticks = ticks(*x_range, 5), ticks(*y_range, 5)
    axes.set_xticks(across_ticks, tick_labels(across_ticks, counts=chart.counts_x))
    axes.set_yticks(up_ticks, tick_labels(up_ticks, counts=False))
    _frame(axes, chart.x_label, chart.y_label)
    if chart.level:
        level, label = chart.level
        axes.axhline(level, color=_SOFT, linestyle=":", linewidth=1)
        _note(axes, label, (1, level), 5, -3.5, xycoords=("axes fraction", "data"))
    for line in chart.lines:
        if not line.spread:
            _line(axes, line)
    apart = [line for line in chart.lines if line.spread]
    for line in apart:
        _spread(axes, line)
    _name_points(axes, [(line.label, line.points[0]) for line in apart])


def _line(axes: Axes, line: Line) -> None:
    xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
    look = _look(line.style) | {"clip_on": False}
    if line.faint:
        title = f"title {printable(line.label)}"
        look |= {"linestyle": "-", "linewidth": 1.0, "alpha": 0.38, "gid": title}
    every = max(1, line.every)
    # Markers of different arms start at different points, so that overlapping lines do not hide
    # each other's markers.
    first = (line.style.slot * max(1, every // 3)) % every if line.style else 0
    single = len(xs) == 1 and line.style is not None
    if line.faint or not line.every:
        look["marker"] = look["marker"] if single else ""
        first = 0
    axes.plot(xs, ys, markevery=(first, every), **look)


def _spread(axes: Axes, line: Line) -> None:
    look = _look(line.style or Style(0)) | {"linestyle": "none", "clip_on": False}
    across, up = line.spread or (0.0, 0.0)
    for x, y in line.points:
        axes.errorbar(x, y, xerr=across or None, yerr=up or None, elinewidth=1.5, **look)


def _name_points(axes: Axes, points: Sequence[tuple[str, tuple[float, float]]]) -> None:
    """Labels each point, where possible without hiding a marker or another label."""
    places = [(label, at, axes.transData.transform(at)) for label, at in points]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for _, _, (x, y) in places]
    edges = axes.bbox.x0, axes.bbox.x1
    for label, at, (x, y) in places:
        long = 6.0 * len(label)
        starts = [(start, up) for up in (-3.5, 8.0, -15.0, 20.0, -27.0) for start in (8, -8 - long)]
        boxes = [(x + start, y + up - 3, x + start + long, y + up + 9) for start, up in starts]
        inside = [n for n, box in enumerate(boxes) if box[0] >= edges[0] and box[2] <= edges[1]]
        inside = inside or [*range(len(boxes))]
        free = [n for n in inside if not any(_overlap(boxes[n], other) for other in taken)]
        best = (free or inside)[0]
        taken.append(boxes[best])
        _note(axes, label, at, *starts[best], gid="halo")


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _note(axes: Axes, text: str, at: Any, right: float, up: float, **options: Any) -> None:
    """Places text at an offset in points."""
    options |= {"xytext": (right, up), "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(_short(text), at, fontsize=_TICK, color=_SOFT, **options)


def _differences(canvas: Canvas, section: Section, metrics: Sequence[str]) -> None:
    look = styles(section)
    for number, metric in enumerate(metrics, 1):
        axes = canvas.add_subplot(1, len(metrics), number)
        pairs = {arm: each[metric] for arm, each in section.paired.items() if metric in each}
        for place, (arm, pair) in enumerate(pairs.items()):
            _interval(axes, pair.difference, pair.ci95, place, look[arm])
        axes.axvline(0, color=_SOFT, linestyle=":", linewidth=1)
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        names = [_short(arm) for arm in pairs] if number == 1 else [""] * len(pairs)
        axes.set_yticks(range(len(pairs)), names)
        label = f"difference to {_short(section.arms[0])}, 95%"
        _frame(axes, label, metric_label(section, metric))
        axes.grid(False, axis="y")


def _interval(
    axes: Axes, difference: float, ci95: tuple[float, float] | None, y: float, style: Style
) -> None:
    look = _look(style) | {"linestyle": "none", "clip_on": False}
    ends = None if ci95 is None else ([difference - ci95[0]], [ci95[1] - difference])
    axes.errorbar([difference], [y], xerr=ends, elinewidth=1.5, capsize=4, **look)


def _frame(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(_short(x_label), loc="right", labelpad=3)
    left = (2 - _LEFT) / axes.bbox.width
    place: Any = {"loc": "left", "pad": 10}  # clear of a tick's label at the top of the axis
    axes.set_title(_short(y_label), x=left, color=_INK, gid="label", **place)
    axes.grid(axis="y", color=_RULE, linewidth=1, clip_on=False)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=4)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _short(text: str) -> str:
    """Truncates text for a drawing, where nothing wraps."""
    shown = printable(text)
    return shown if len(shown) <= 60 else shown[:59] + "…"


def _look(style: Style | None) -> dict[str, Any]:
    if style is None:
        dotted: Any = (0, (1, 3))
        return {"color": _SOFT, "linewidth": 1.0, "linestyle": dotted, "marker": ""}
    width = 1.9
    dash: Any = (0, tuple(length / width for length in style.dash)) if style.dash else "-"
    return {
        "color": COLOURS[style.colour],
        "linewidth": width,
        "linestyle": dash,
        "marker": _MARKERS[style.marker],
        "markersize": 6.8,
        "markeredgecolor": _PAPER,
        "markeredgewidth": 0.8,
    }


def _inline(canvas: Canvas, *children: Markup, **attributes: object) -> Markup:
    """Returns the drawing as an element of the page.

    It has no identifiers, references, or fonts and colours of its own.
    """
    canvas.patch.set_visible(False)
    for axes in canvas.axes:
        axes.patch.set_visible(False)
    root = ET.fromstring(_saved(canvas, "svg"))
    by_reference = {f"#{each.get('id')}": each for each in root.iter() if each.get("id")}
    width, height = canvas.get_size_inches() * _POINTS
    parts = [part for child in root for part in _elements(child, by_reference)]
    return tag("svg", *children, *parts, viewBox=f"0 0 {width:g} {height:g}", **attributes)


def _elements(node: ET.Element, by_reference: dict[str, ET.Element]) -> Iterator[Markup]:
    """Yields the element without unneeded attributes; plain groups are flattened."""
    kind = node.tag.rpartition("}")[2]
    attributes = {name: _rounded(value) for name, value in node.items() if name in _KEPT}
    style = _style(node.get("style", ""))
    if kind == "use":  # a marker or a tick: replaced by its path
        origin = by_reference[node.get("{http://www.w3.org/1999/xlink}href", "")]
        moved = f"translate({attributes.pop('x', '0')} {attributes.pop('y', '0')})"
        style = style or _style(origin.get("style", ""))
        yield tag("path", d=_rounded(origin.get("d", "")), transform=moved, style=style)
    elif kind == "text":
        attributes.pop("transform", None)  # a rotation by zero
        yield tag("text", node.text or "", style=style or None, **attributes)
    elif kind == "path":
        yield tag("path", style=style or None, **attributes)
    elif kind == "g":
        inner = [part for child in node for part in _elements(child, by_reference)]
        name = node.get("id", "")
        if name.startswith("title "):
            yield tag("g", tag("title", name.removeprefix("title ")), *inner)
        elif name in ("label", "halo"):
            yield tag("g", *inner, class_=name)
        else:
            yield from inner


def _style(text: str) -> str:
    text = re.sub(r"font-family: [^;]*;? ?", "", text)
    text = re.sub(r"font: (?:\w+ )*([\d.]+px) [^;]*", r"font-size: \1", text)
    text = re.sub(r"#[0-9a-f]{6}", lambda match: _VARIABLES.get(match[0], match[0]), text)
    return _rounded(text).strip("; ")


def _rounded(text: str) -> str:
    """Rounds numbers in a text to at most two decimals."""
    long = r"-?\d+\.\d{3,}"
    text = re.sub(long, lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), text)
    return " ".join(text.split())
