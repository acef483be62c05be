"""Instance retrieval by the protocol of the revisited Oxford and Paris sets: cosine ranking, mAP
easy, medium and hard.

Every query has database images that show the same building easily or with difficulty, and junk (too
little to be seen). What a difficulty does not ask for is junk too: it is taken out of the ranking,
neither right nor wrong.

Shapes: Q queries, N database images, D feature width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vpretrain.run.scores import Score
from vpretrain.system.errors import Problem, UserError, user_error
from vpretrain.vision.data.files import AS_STORED, PROBLEMS_SHOWN, Files, Folder, Reading
from vpretrain.vision.data.images import Pictures
from vpretrain.vision.evaluation.probes import mean_score
from vpretrain.vision.feedback.features import Encoder, freeze

DIFFICULTIES: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "easy": (frozenset({"easy"}), frozenset({"junk", "hard"})),
    "medium": (frozenset({"easy", "hard"}), frozenset({"junk"})),
    "hard": (frozenset({"hard"}), frozenset({"junk", "easy"})),
}
"""What counts as right, and what is taken out."""


@dataclass(frozen=True)
class Relevance:
    """The database images that one query is about, as indices into the database, 0 .. N - 1.

    Args:
        easy: clearly visible.
        hard: visible under difficult conditions.
        junk: barely visible, or not to be decided.
    """

    easy: tuple[int, ...] = ()
    hard: tuple[int, ...] = ()
    junk: tuple[int, ...] = ()


@dataclass(frozen=True)
class Searched:
    """Revisited Oxford or Paris.

    Args:
        queries: cut to the building that is asked for.
        database: what is searched.
        relevance: what belongs to each query.
    """

    queries: Pictures
    database: Pictures
    relevance: tuple[Relevance, ...]


def read_retrieval(
    truth: Path | str, images: Path | str, *, reading: Reading = AS_STORED
) -> Searched:
    """Revisited Oxford or Paris: its ground truth as JSON, and the folder of the ``.jpg`` images;
    decoded when drawn.

    Args:
        truth: a JSON object of ``imlist`` and ``qimlist`` (names without ending) and ``gnd`` (for
            each query ``bbx``: left, top, right, bottom in pixels; ``easy``, ``hard``, ``junk``:
            indices into ``imlist``).
        images: folder of the images.
        reading: how the images are decoded, and the size that they are brought to.

    Raises:
        UserError: the file is not of this form, an index is out of range or in two sets, or an
            image is missing.
    """
    truth, images = Path(truth), Path(images)
    try:
        content: Any = json.loads(truth.read_text(encoding="utf-8"))
        names, query_names, rows = content["imlist"], content["qimlist"], content["gnd"]
        boxes = [[float(at) for at in row["bbx"]] for row in rows]
        relevance = tuple(
            Relevance(
                *(tuple(int(index) for index in row[key]) for key in ("easy", "hard", "junk"))
            )
            for row in rows
        )
        windows = [
            (int(y), int(x), max(1, int(b) - int(y)), max(1, int(r) - int(x)))
            for x, y, r, b in boxes
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = "this is no ground truth of revisited Oxford or Paris as JSON"
        accepted = (
            "an object of imlist, qimlist and gnd, with bbx, easy, hard and junk for each query"
        )
        raise user_error(str(truth), message, value=repr(error), accepted=accepted) from error
    problems = []
    if len(query_names) != len(rows):
        problems.append(
            Problem(
                str(truth), f"{len(rows)} rows", f"{len(query_names)} rows", "gnd: one row a query"
            )
        )
    for number, row in enumerate(relevance):
        indices = row.easy + row.hard + row.junk
        if len(set(indices)) < len(indices) or any(
            not 0 <= index < len(names) for index in indices
        ):
            accepted = f"each index once, 0 to {len(names) - 1}"
            problems.append(
                Problem(
                    f"{truth}: gnd[{number}]",
                    "",
                    accepted,
                    "an index is out of range, or there twice",
                )
            )
    paths = [images / f"{name}.jpg" for name in (*names, *query_names)]
    if absent := [path for path in paths if not path.is_file()]:
        shown = ", ".join(path.name for path in absent[:PROBLEMS_SHOWN])
        message = f"{len(absent)} images that {truth} names are missing here: add them"
        problems.append(
            Problem(
                str(images),
                f"without {shown}",
                "every image of imlist and qimlist, as .jpg",
                message,
            )
        )
    if problems:
        raise UserError(*problems)
    database = [Files(path) for path in paths[: len(names)]]
    queries = [
        Files(path, window=window)
        for path, window in zip(paths[len(names) :], windows, strict=True)
    ]
    return Searched(
        Folder(queries, reading),
        Folder(database, reading),
        relevance,
    )


def pooled(
    encoder: Encoder, pictures: Pictures, *, patches: bool = True, batch_size: int = 32
) -> Tensor:
    """``[N, D]``: the mean over patches of pictures of one size, decoded some at a time; nothing
    else of them is kept.

    Args:
        encoder: as it is.
        pictures: N of them.
        patches: False takes what the backbone pools (CLS, where there is one).
        batch_size: pictures decoded at a time.
    """
    found = []
    for at in range(0, len(pictures), batch_size):
        some = [pictures[i] for i in range(at, min(at + batch_size, len(pictures)))]
        features = freeze(encoder, some).features
        found.append(features.patches.float().mean(dim=(2, 3)) if patches else features.pooled)
    return torch.cat(found)


def retrieval(
    queries: Tensor, database: Tensor, relevance: Sequence[Relevance]
) -> dict[str, Score]:
    """``map_easy``, ``map_medium`` and ``map_hard`` in [0, 1]; a query without a right image at a
    difficulty is skipped there.

    Args:
        queries: ``[Q, D]`` pooled features; their length does not matter.
        database: ``[N, D]``; it does not hold the queries.
        relevance: of each query.

    Raises:
        UserError: fewer queries than two have a right image at some difficulty, an index is out of
            range, or an image is relevant in two ways.
    """
    _check(len(queries), len(database), relevance)
    ranking = rank(queries, database)
    return {
        f"map_{name}": _mean_average_precision(ranking, relevance, name, right=right, junk=junk)
        for name, (right, junk) in DIFFICULTIES.items()
    }


def rank(queries: Tensor, database: Tensor) -> Tensor:
    """``[Q, N]`` int64: the database by falling cosine with each query, equals in the database's
    order.
    """
    similarity = (
        functional.normalize(queries.double(), dim=1)
        @ functional.normalize(database.double(), dim=1).T
    )
    return similarity.argsort(dim=1, descending=True, stable=True)


def average_precision(ranks: Sequence[int], right: int) -> float:
    """Area under precision over recall, by the trapezoid between a right image's rank and the one
    before it.

    ``AP = 1 / right * sum_j (p_j- + p_j+) / 2`` with ``p_j+ = (j + 1) / (r_j + 1)`` and
    ``p_j- = j / r_j`` (1 at rank 0).

    Args:
        ranks: ``r_j``, those of the right images in rising order, from 0, junk not counted.
        right: how many right images there are, at least 1.
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
    return mean_score(items, higher_is_better=True)


def _indices(relevant: Relevance, kinds: frozenset[str]) -> Tensor:
    return torch.tensor(
        [at for kind in sorted(kinds) for at in getattr(relevant, kind)], dtype=torch.int64
    )


def _check(queries: int, database: int, relevance: Sequence[Relevance]) -> None:
    where = "evaluate.retrieval"
    if queries != len(relevance):
        raise user_error(
            where,
            "each query says what is relevant to it",
            value=len(relevance),
            accepted=str(queries),
        )
    for number, relevant in enumerate(relevance):
        every = [*relevant.easy, *relevant.hard, *relevant.junk]
        if len(set(every)) < len(every):
            twice = sorted({at for at in every if every.count(at) > 1})
            message = f"query {number} lists images more than once; an image is easy, hard or junk"
            raise user_error(where, message, value=twice, accepted="each image once")
        if wrong := [at for at in every if not 0 <= at < database]:
            message = f"query {number} lists images that the database does not have"
            raise user_error(where, message, value=wrong, accepted=f"0 to {database - 1}")
