"""The revisited protocol by hand: trapezoids, junk, and which queries count."""

import json

import numpy
import pytest
import torch
from PIL import Image

from tests.vision.conftest import tiny_recipe
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision
from vpretrain.vision.evaluation.retrieval import Relevance, average_precision, rank, retrieval


def test_average_precision_by_hand():
    assert average_precision([0], 1) == 1
    assert average_precision([0, 1, 2], 3) == 1
    # one right image at rank 1: precision 0 / 1 before it, 1 / 2 at it
    assert average_precision([1], 1) == pytest.approx((0 + 1 / 2) / 2)
    # ranks 0 and 3: (1 + 1) / 2, then (1/3 + 2/4) / 2; each is half of the recall
    assert average_precision([0, 3], 2) == pytest.approx((1 + 5 / 12) / 2)


def database(order):
    """Two equal queries and a database that both rank in this order."""
    angles = torch.zeros(len(order))
    for place, at in enumerate(order):
        angles[at] = 0.1 * (place + 1)
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    return torch.tensor([[2.0, 0.0], [0.5, 0.0]]), vectors * torch.linspace(1, 9, len(order))[
        :, None
    ]


def test_ranking_is_by_cosine_whatever_the_length():
    queries, vectors = database([3, 0, 2, 1])
    assert rank(queries, vectors).tolist() == [[3, 0, 2, 1]] * 2


def test_difficulties_take_out_what_they_do_not_ask_for():
    # ranked: junk 4, hard 0, wrong 5, easy 1, wrong 2, hard 3
    queries, vectors = database([4, 0, 5, 1, 2, 3])
    one = Relevance(easy=(1,), hard=(0, 3), junk=(4,))
    scores = retrieval(queries, vectors, [one, one])
    # easy: without 4, 0, 3 the order is 5, 1, 2: right at 1
    assert scores["map_easy"].value == pytest.approx((0 + 1 / 2) / 2)
    # medium: without 4 it is 0, 5, 1, 2, 3: right at 0, 2, 4
    assert scores["map_medium"].value == pytest.approx(
        (1 + (1 / 2 + 2 / 3) / 2 + (2 / 4 + 3 / 5) / 2) / 3
    )
    # hard: without 4 and 1 it is 0, 5, 2, 3: right at 0, 3
    assert scores["map_hard"].value == pytest.approx((1 + (1 / 3 + 2 / 4) / 2) / 2)
    assert scores["map_hard"].higher_is_better and scores["map_hard"].n == 2


def test_queries_without_a_right_image_are_skipped():
    queries, vectors = database([0, 1, 2, 3])
    queries = torch.cat([queries, queries[:1]])
    relevance = [
        Relevance(easy=(0,), hard=(1,)),
        Relevance(easy=(1,), hard=(2,)),
        Relevance(hard=(0,), junk=(1,)),
    ]
    scores = retrieval(queries, vectors, relevance)
    assert scores["map_easy"].items == pytest.approx((1.0, 1 / 4))
    assert scores["map_hard"].n == 3 and scores["map_easy"].n == 2
    assert scores["map_easy"].value == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("relevance", "said"),
    [
        ([Relevance(easy=(0,))], "what is relevant"),
        ([Relevance(easy=(0,)), Relevance(easy=(9,))], "does not have"),
        ([Relevance(easy=(0,), junk=(0,))] * 2, "more than once"),
        ([Relevance(easy=(0,), hard=(1,)), Relevance(easy=(1,))], "too few queries"),
    ],
)
def test_bad_relevance_is_refused(relevance, said):
    queries, vectors = database([0, 1, 2, 3])
    with pytest.raises(UserError, match=said):
        retrieval(queries, vectors, relevance)


def test_a_recipe_can_ask_for_retrieval(tmp_path, materials):
    draw = numpy.random.default_rng(0)
    for name in ("a", "b", "c", "q", "r"):
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=numpy.uint8)).save(
            tmp_path / f"{name}.jpg"
        )
    rows = [{"bbx": [0, 0, 30, 20], "easy": [at], "hard": [2], "junk": []} for at in (0, 1)]
    (tmp_path / "truth.json").write_text(
        json.dumps({"imlist": ["a", "b", "c"], "qimlist": ["q", "r"], "gnd": rows})
    )
    asked = "evaluate.retrieval.tiny={{truth: truth.json, images: ., size: [{0}, {0}]}}"
    known = [f"data.root={tmp_path}", "evaluate.probes=[segmentation]"]
    recipe = tiny_recipe(*known, asked.format(32))
    scores = Vision().build(recipe, Vision().load(recipe)).evaluate()
    assert {"test/tiny_map_easy", "test/tiny_map_medium", "test/tiny_map_hard"} < scores.keys()
    assert 0 <= scores["test/tiny_map_hard"].value <= 1 and scores["test/tiny_map_medium"].n == 2
    assert "evaluate.retrieval.tiny.size" in str(
        Vision().check(tiny_recipe(*known, asked.format(30))).problems[0]
    )
    (tmp_path / "b.jpg").unlink()
    assert "b.jpg" in str(Vision().check(recipe).problems[0])
