"""Instance retrieval as on Revisited Oxford and Paris: cosine ranking and mAP.

Every query has relevant database images that are easy or hard, and junk images (barely visible).
At each difficulty, images of the kinds it ignores are removed from the ranking and count neither as
right nor as wrong.

Shapes: Q queries, N database images, D feature width."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from vpretrain.run.scores import Score, score
from vpretrain.system.errors import Problem, UserError, abbreviated, user_error
from vpretrain.vision.data.files import AS_STORED, PROBLEMS_SHOWN, Files, Folder, Reading, Window
from vpretrain.vision.data.images import Pictures
from vpretrain.vision.feedback.features import Encoder, freeze

DIFFICULTIES: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "easy": (frozenset({"easy"}), frozenset({"junk", "hard"})),
    "medium": (frozenset({"easy", "hard"}), frozenset({"junk"})),
    "hard": (frozenset({"hard"}), frozenset({"junk", "easy"})),
}
"""By difficulty, the kinds of images that count as right, and those removed from the ranking."""
DECODED_PICTURES = 32
"""Pictures that are decoded at a time."""


@dataclass(frozen=True)
class Relevance:
    """Relevant database images of a query, as indices 0 .. N - 1 into the database.

    Args:
        easy: clearly visible.
        hard: visible under difficult conditions.
        junk: barely visible, or ambiguous.
    """

    easy: tuple[int, ...] = ()
    hard: tuple[int, ...] = ()
    junk: tuple[int, ...] = ()

    def problems(self, where: str, database: int) -> Iterator[Problem]:
        """Yield problems of indices that are repeated or out of range."""
        every = [*self.easy, *self.hard, *self.junk]
        if twice := sorted({at for at in every if every.count(at) > 1}):
            message = "images are listed more than once; an image is easy, hard or junk"
            yield Problem(where, str(twice), "each image once", message)
        if wrong := [at for at in every if not 0 <= at < database]:
            message = "images are listed that the database does not have"
            yield Problem(where, str(wrong), f"0 to {database - 1}", message)


@dataclass(frozen=True)
class RetrievalSet:
    """A retrieval set such as Revisited Oxford or Paris.

    Args:
        queries: query images, cropped to the building.
        database: images that are ranked.
        relevance: relevant images of each query.
    """

    queries: Pictures
    database: Pictures
    relevance: tuple[Relevance, ...]


@dataclass(frozen=True)
class _GroundTruth:
    """Image names without ending, and relevance and window of each query."""

    database: list[str]
    queries: list[str]
    relevance: tuple[Relevance, ...]
    windows: list[Window]


def read_retrieval(
    truth: Path | str, images: Path | str, *, reading: Reading = AS_STORED
) -> RetrievalSet:
    """Read Revisited Oxford or Paris, or another set in that format; images are decoded on access.

    Args:
        truth: a JSON file with ``imlist`` and ``qimlist`` (names without ending) and ``gnd`` (for
            each query ``bbx``: left, top, right, bottom in pixels; ``easy``, ``hard``, ``junk``:
            indices into ``imlist``).
        images: folder of the ``.jpg`` images.
        reading: how the images are decoded, and their size.

    Raises:
        UserError: the file does not have this format, an index is out of range or repeated, or an
            image is missing.
    """
    truth, images = Path(truth), Path(images)
    known = _read_truth(truth)
    problems = []
    if len(known.queries) != len(known.relevance):
        rows, queries = f"{len(known.relevance)} rows", f"{len(known.queries)} rows"
        problems.append(Problem(str(truth), rows, queries, "gnd: one row a query"))
    for number, relevant in enumerate(known.relevance):
        problems += relevant.problems(f"{truth}: gnd[{number}]", len(known.database))
    database = [images / f"{name}.jpg" for name in known.database]
    asked = [images / f"{name}.jpg" for name in known.queries]
    if absent := [path.name for path in (*database, *asked) if not path.is_file()]:
        message = f"{len(absent)} images that {truth} names are missing here: add them"
        listed = f"without {abbreviated(absent, most=PROBLEMS_SHOWN)}"
        accepted = "every image of imlist and qimlist, as .jpg"
        problems.append(Problem(str(images), listed, accepted, message))
    if problems:
        raise UserError(*problems)
    cut = [Files(path, window=at) for path, at in zip(asked, known.windows, strict=True)]
    whole = [Files(path) for path in database]
    return RetrievalSet(Folder(cut, reading), Folder(whole, reading), known.relevance)


def _read_truth(path: Path) -> _GroundTruth:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        windows, relevance = [], []
        for row in content["gnd"]:
            left, top, right, bottom = (int(float(at)) for at in row["bbx"])
            windows.append((top, left, max(1, bottom - top), max(1, right - left)))
            kinds = (tuple(int(at) for at in row[kind]) for kind in ("easy", "hard", "junk"))
            relevance.append(Relevance(*kinds))
        return _GroundTruth(content["imlist"], content["qimlist"], tuple(relevance), windows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = "this is no ground truth of revisited Oxford or Paris as JSON"
        accepted = (
            "an object of imlist, qimlist and gnd, with bbx, easy, hard and junk for each query"
        )
        raise user_error(str(path), message, value=repr(error), accepted=accepted) from error


def descriptors(encoder: Encoder, pictures: Pictures, *, patches: bool = True) -> Tensor:
    """Return the mean over patches, or the backbone's pooled features, of pictures: ``[N, D]``.

    Pictures have one size. ``DECODED_PICTURES`` of them are decoded at a time and not kept."""
    means = []
    for at in range(0, len(pictures), DECODED_PICTURES):
        some = [pictures[i] for i in range(at, min(at + DECODED_PICTURES, len(pictures)))]
        features = freeze(encoder, some).features
        means.append(features.patches.float().mean(dim=(2, 3)) if patches else features.pooled)
    return torch.cat(means)


def retrieval(
    queries: Tensor, database: Tensor, relevance: Sequence[Relevance]
) -> dict[str, Score]:
    """Return ``map_easy``, ``map_medium`` and ``map_hard`` in [0, 1].

    A query without a right image at a difficulty is skipped there.

    Args:
        queries: ``[Q, D]`` pooled features, of any norm.
        database: ``[N, D]`` pooled features, without the queries.
        relevance: relevant images of each query.

    Raises:
        UserError: at some difficulty fewer than two queries have a right image, an index is out of
            range or repeated, or ``relevance`` does not have Q entries.
    """
    where = "evaluate.retrieval"
    if len(queries) != len(relevance):
        message = "each query says what is relevant to it"
        raise user_error(where, message, value=len(relevance), accepted=str(len(queries)))
    problems = [
        problem
        for number, relevant in enumerate(relevance)
        for problem in relevant.problems(f"{where}: query {number}", len(database))
    ]
    if problems:
        raise UserError(*problems)
    ranking = rank(queries, database)
    return {
        f"map_{name}": _mean_average_precision(ranking, relevance, name, right=right, junk=junk)
        for name, (right, junk) in DIFFICULTIES.items()
    }


def rank(queries: Tensor, database: Tensor) -> Tensor:
    """Rank the database by descending cosine similarity with each query: ``[Q, N]`` int64.

    Ties keep the order of the database."""
    similarity = (
        functional.normalize(queries.double(), dim=1)
        @ functional.normalize(database.double(), dim=1).T
    )
    return similarity.argsort(dim=1, descending=True, stable=True)


def average_precision(ranks: Sequence[int], right: int) -> float:
    """Area under the precision-recall curve by the trapezoidal rule.

    ``AP = 1 / right * sum_j (p_j- + p_j+) / 2`` with the precision at the j-th right image,
    ``p_j+ = (j + 1) / (r_j + 1)``, and just before it, ``p_j- = j / r_j`` (1 at rank 0).

    Args:
        ranks: ``r_j``, ascending ranks of the right images, from 0, with junk removed.
        right: number of right images, at least 1.
    """
    before = [j / r if r else 1.0 for j, r in enumerate(ranks)]
    at = [(j + 1) / (r + 1) for j, r in enumerate(ranks)]
    return sum(before + at) / 2 / right


def _mean_average_precision(
    ranking: Tensor,
    relevance: Sequence[Relevance],
    name: str,
    *,
    right: frozenset[str],
    junk: frozenset[str],
) -> Score:
    items = []
    for order, relevant in zip(ranking, relevance, strict=True):
        wanted = _indices(relevant, right)
        if not len(wanted):
            continue
        kept = order[~torch.isin(order, _indices(relevant, junk).to(order.device))]
        ranks = torch.isin(kept, wanted.to(order.device)).nonzero()[:, 0].tolist()
        items.append(average_precision(ranks, len(wanted)))
    if len(items) < 2:
        raise user_error(
            f"evaluate.retrieval.{name}",
            "too few queries have an image to find; give more, or leave retrieval out",
            value=f"{len(items)} of {len(relevance)} queries",
            accepted="2 or more",
        )
    return score(torch.tensor(items, dtype=torch.float64), higher_is_better=True)


def _indices(relevant: Relevance, kinds: frozenset[str]) -> Tensor:
    return torch.tensor(
        [at for kind in sorted(kinds) for at in getattr(relevant, kind)], dtype=torch.int64
    )
