"""Agreement of predicted and realised values: Pearson's r, slopes, scatter plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from scipy.stats import pearsonr

Correlation = tuple[float | None, tuple[float, float] | None]
"""Pearson's r and its 95% interval; None if a series is constant."""


def pearson(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Returns Pearson's r with its 95% interval by Fisher's z.

    Args:
        x: 4 or more finite numbers.
        y: as many.

    Raises:
        ValueError: lengths differ, there are fewer than 4 pairs, or a value is not finite.
    """
    if len(x) != len(y) or len(x) < 4 or not all(map(math.isfinite, [*x, *y])):
        raise ValueError(f"accepted: 4 or more pairs of finite numbers; got {len(x)} and {len(y)}")
    if min(x) == max(x) or min(y) == max(y):
        return None, None
    result = pearsonr(x, y)
    low, high = result.confidence_interval()
    return float(result.statistic), (float(low), float(high))


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns the slope of the least-squares line of ``y`` on ``x``; None if ``x`` is constant."""
    a = numpy.asarray(x) - numpy.mean(x)
    return None if min(x) == max(x) else float(a @ numpy.asarray(y) / (a @ a))


def scatter(
    panels: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    in_nats: Sequence[str],
    no_gradient: Mapping[str, float],
    out: Path,
) -> None:
    """Draws the realised drop against the prediction, with the least-squares line.

    Writes ``scatter.png`` and ``scatter.svg``.

    Args:
        panels: predictions, and realised drops in nats, by title; at most three in a row.
        in_nats: titles whose predictions are drops too; others are shown in standard deviations.
        no_gradient: by title, the drop of a step without a gradient, drawn as a dotted line: the
            expected height of the least-squares line at 0.
        out: the folder.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(4 * min(3, len(panels)), 3.75 * rows), layout="constrained")
    grid = figure.subplots(rows, min(3, len(panels)), squeeze=False)
    for axes, (title, (predicted, realised)) in zip(grid.flat, panels.items(), strict=True):
        x, y = numpy.asarray(predicted), 1e3 * numpy.asarray(realised)
        nats = title in in_nats
        x = 1e3 * x if nats else x / (x.std() or 1.0)
        r, interval = pearson(predicted, realised)
        axes.axhline(0, color="0.85", zorder=0)
        axes.axvline(0, color="0.85", zorder=0)
        if title in no_gradient:
            level = 1e3 * no_gradient[title]
            axes.axhline(level, color="0.5", linestyle=":", zorder=0, label="no gradient")
            axes.legend(loc="lower right", frameon=False)
        axes.plot(x, y, "o", markersize=4, alpha=0.6, markeredgewidth=0, color="#1f6f8b")
        if r is not None and interval is not None:
            ends = numpy.array([x.min(), x.max()])
            line = y.mean() + float(slope(list(x), list(y)) or 0) * (ends - x.mean())
            axes.plot(ends, line, color="#c1440e", lw=1.2)
            title += f"\nr = {r:.3f}  [{interval[0]:.3f}, {interval[1]:.3f}]"
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("predicted drop (millinats)" if nats else "value (standard deviations)")
        axes.set_ylabel("realised drop (millinats)")
    with matplotlib.rc_context({"svg.hashsalt": "vpretrain"}):
        figure.savefig(out / "scatter.png", dpi=120, metadata={"Software": None})
        figure.savefig(out / "scatter.svg", metadata={"Date": None})
