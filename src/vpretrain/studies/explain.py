"""``explain``: writes a page on the value of a finished run's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpretrain.run.finished_run import read_run
from vpretrain.run.modalities import MODALITIES
from vpretrain.system.files import writable_file


def explain(folder: Path, *, documents: int, out: Path | None = None) -> dict[str, Any]:
    """Values the data of a finished run, and writes one HTML page.

    Args:
        folder: written by ``vpretrain train``.
        documents: number of documents of the stream to value, at least 1.
        out: the HTML file, replaced if it exists; None for ``explain.html`` in the run folder.

    Returns:
        The result of the modality's ``explain``, with the path as ``page``; for language ``{page,
        regret, value: {onehot, designer, bound, ...}, sources: {name: mean value}, documents,
        ...}``.

    Raises:
        UserError: the folder is not a finished run, its modality has no explanation, or ``out``
            cannot be a file.
    """
    recipe = read_run(folder)
    page = out or folder / "explain.html"
    writable_file(page, "an HTML file")
    modality = MODALITIES[recipe.modality]()
    return modality.explain(recipe, folder, documents=documents, out=page)
