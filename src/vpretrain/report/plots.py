"""The page's charts as files, SVG and PNG, for papers and slides (light, with the legend
inside).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpretrain.report.chart import COLOURS, Figure, Line, Panel, Style, span, tick_labels, ticks
from vpretrain.report.figures import metric_label, styles
from vpretrain.report.folders import Section
from vpretrain.system.html import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_INK, _SOFT, _RULE = "#16191f", "#5a6270", "#e3e6eb"
_MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "down": "v",
    "diamond": "D",
    "cross": "X",
    "plus": "P",
}
_SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar sign in an arm's name is a dollar sign
    "svg.hashsalt": "vpretrain",  # the same data gives the same bytes
    "svg.fonttype": "none",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
}


def write_plots(figures: Sequence[Figure], sections: Sequence[Section], folder: Path) -> list[Path]:
    """Writes each figure, and each comparison's differences with their intervals, as ``NAME.svg``
    and ``NAME.png``.

    Args:
        figures: of all sections; a name that comes twice gets a number.
        sections: whose differences are drawn.
        folder: created if missing; other files in it are left alone.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    folder.mkdir(parents=True, exist_ok=True)
    written: dict[Path, None] = {}
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font"
        )  # shown as a box, as browsers do
        warnings.filterwarnings(
            "ignore", message="constrained_layout not applied"
        )  # long names: they overlap
        for name, size, draw in _drawings(figures, sections):
            canvas = Canvas(figsize=size, layout="constrained")
            FigureCanvasAgg(canvas)
            draw(canvas)
            stem, number = name, 2
            while folder / f"{stem}.svg" in written:
                stem, number = f"{name}-{number}", number + 1
            for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
                buffer = io.BytesIO()
                canvas.savefig(buffer, format=kind, **options)
                canvas.set_layout_engine("none")  # laid out once, for both
                path = folder / f"{stem}.{kind}"
                path.write_bytes(buffer.getvalue())
                written[path] = None
    return list(written)


def _drawings(
    figures: Sequence[Figure], sections: Sequence[Section]
) -> Iterator[tuple[str, tuple[float, float], Any]]:
    for number, section in enumerate(sections, 1):
        metrics = [
            name
            for name in section.metrics
            if any(name in found for found in section.paired.values())
        ]
        if metrics:
            prefix = f"{number}-" if len(sections) > 1 else ""
            size = (3.6 * len(metrics), 0.9 + 0.34 * len(section.paired))
            yield (
                f"{prefix}differences",
                size,
                lambda canvas, s=section, m=metrics: _differences(canvas, s, m),
            )
    for figure in figures:
        across = min(3, len(figure.panels))
        down = -(-len(figure.panels) // across)
        size = (4.8, 3.9) if figure.wide else (3.5 * across, 2.35 * down + 0.7)
        yield figure.name, size, lambda canvas, f=figure, a=across, d=down: _draw(canvas, f, a, d)


def _draw(canvas: Canvas, figure: Figure, across: int, down: int) -> None:
    from matplotlib.lines import Line2D

    for number, chart in enumerate(figure.panels, 1):
        _panel(canvas.add_subplot(down, across, number), chart)
    if figure.title:
        canvas.suptitle(_label(figure.title), fontsize=10.5, fontweight="bold", x=0.01, ha="left")
    # A leading space: matplotlib keeps labels that begin with an underscore out of legends.
    handles = [
        Line2D([], [], label=" " + _label(arm), **_look(style)) for arm, style in figure.arms
    ]
    if handles:
        canvas.legend(
            handles=handles,
            loc="outside lower left",
            ncols=min(4, len(handles)),
            frameon=False,
            handlelength=3,
        )


def _panel(axes: Axes, chart: Panel) -> None:
    for line in chart.lines:
        _line(axes, line)
    if chart.level:
        axes.axhline(chart.level[0], color=_SOFT, linestyle=":", linewidth=0.9)
        axes.annotate(
            _label(chart.level[1]),
            (1, chart.level[0]),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color=_SOFT,
        )
    _frame(axes, _label(chart.x_label), _label(chart.y_label))
    if chart.counts_x:
        low, high = span([x for line in chart.lines for x, _ in line.points], from_zero=True)
        places = ticks(low, high, 5)
        axes.set_xlim(low, high * 1.02)
        axes.set_xticks(places, tick_labels(places, counts=True))


def _line(axes: Axes, line: Line) -> None:
    xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
    if line.spread:
        look = _look(line.style) | {"linestyle": "none"}
        axes.errorbar(xs, ys, xerr=line.spread[0], yerr=line.spread[1], elinewidth=1.2, **look)
        axes.annotate(
            _label(line.label),
            (xs[0], ys[0]),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=7.5,
            color=_SOFT,
        )
        return
    look = _look(line.style)
    if line.faint:
        look |= {"linestyle": "-", "linewidth": 0.7, "alpha": 0.3}
    if line.faint or not line.every:
        look["marker"] = "o" if len(xs) == 1 and line.style else ""
    axes.plot(xs, ys, markevery=max(1, line.every), **look)


def _differences(canvas: Canvas, section: Section, metrics: Sequence[str]) -> None:
    look = styles(section)
    for number, metric in enumerate(metrics, 1):
        axes = canvas.add_subplot(1, len(metrics), number)
        found = {arm: each[metric] for arm, each in section.paired.items() if metric in each}
        for place, (arm, pair) in enumerate(found.items()):
            if pair.ci95:
                axes.plot(pair.ci95, (place, place), color=COLOURS[look[arm].colour], linewidth=1.6)
            axes.plot([pair.difference], [place], **(_look(look[arm]) | {"linestyle": "none"}))
        axes.axvline(0, color=_SOFT, linestyle=":", linewidth=0.9)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_yticks(
            range(len(found)), [_label(arm) for arm in found] if number == 1 else [""] * len(found)
        )
        _frame(
            axes,
            f"{_label(metric_label(section, metric))}\ndifference to "
            f"{_label(section.arms[0])}, 95%",
            "",
        )
        axes.grid(False, axis="y")


def _label(text: str) -> str:
    """Text for a drawing, where nothing wraps."""
    shown = printable(text)
    return shown if len(shown) <= 48 else shown[:47] + "…"


def _frame(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=8.5)
    axes.set_title(y_label, fontsize=9, loc="left", x=-0.08)
    axes.grid(axis="y", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)


def _look(style: Style | None) -> dict[str, Any]:
    if style is None:
        return {
            "color": _SOFT,
            "linewidth": 1.0,
            "linestyle": "--",
            "marker": "o",
            "markersize": 4.0,
        }
    dash: Any = (0, tuple(length / 2 for length in style.dash)) if style.dash else "-"
    return {
        "color": COLOURS[style.colour],
        "linewidth": 1.4,
        "linestyle": dash,
        "marker": _MARKERS[style.marker],
        "markersize": 4.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }
