"""Turns saved results into one self-contained HTML page, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpretrain.report.drawing import write_plots
from vpretrain.report.figures import figures
from vpretrain.report.folders import read
from vpretrain.report.page import page
from vpretrain.report.verdict import headline
from vpretrain.system.files import writable_file, write_text
from vpretrain.system.html import plain

__all__ = ["first_sentence", "write_report"]


def first_sentence(folder: Path) -> str:
    """Returns the first sentence of a comparison's page as text: whether the examples helped.

    Empty if no arm was steered. Raises as :func:`write_report` does.
    """
    (section,) = read([folder])
    return plain(headline(section)).strip()


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Writes the page, and its plots as SVG and PNG files.

    The plots go to ``plots/`` next to it (``NAME-plots/`` for a page not named ``report.html``).

    The same results give the same page, byte for byte.

    Args:
        folders: written by ``compare`` or ``train``, finished or not; all of one recipe. Each
            comparison is a section, and run folders share one.
        out: the HTML file; replaced if it exists.

    Returns:
        ``out``.

    Raises:
        UserError: results are missing, damaged or of different recipes (nothing is written then),
            or ``out`` cannot be a file.
    """
    writable_file(out, "an HTML file")
    sections = read(folders)
    several = len(sections) > 1
    charts = [
        figures(section, f"{number}-" if several else "")
        for number, section in enumerate(sections, 1)
    ]
    write_text(out, page(sections, charts))
    every = [figure for of_section in charts for kind in of_section.values() for figure in kind]
    name = "plots" if out.stem == "report" else f"{out.stem}-plots"
    write_plots(every, sections, out.parent / name)
    return out
