"""Batches of labelled pictures: every picture comes, and a position is one number."""

import pytest
import torch

from vpretrain.vision.data.images import Picture
from vpretrain.vision.feedback.pools import Draws, split_evenly
from vpretrain.vision.feedback.tasks import Depth, Segmentation


def test_draws_pass_over_everything_and_resume():
    draws = Draws(7, 3, "a")
    first = draws.draw() + draws.draw()
    assert len(set(first)) == 6
    passes = [sorted(draws.draw() + draws.draw()) for _ in range(20)]
    assert {at for each in passes for at in each} == set(
        range(7)
    )  # no picture is left out of every pass
    again = Draws(7, 3, "a")
    again.batch = draws.batch
    assert again.draw() == draws.draw()
    assert Draws(7, 3, "b").draw() != first[:3]
    assert sorted(Draws(2, 5, "a").draw()) == [0, 1]


@pytest.mark.parametrize(("labels", "depths", "both"), [(1, 1, 1), (1, 1, 3), (5, 3, 0), (2, 7, 6)])
def test_every_part_has_as_many_pictures_of_each_task(labels, depths, both):
    tasks = [Segmentation(2), Depth()]
    kinds = [(True, False)] * labels + [(False, True)] * depths + [(True, True)] * both
    pictures = [
        Picture(
            f"{at}",
            torch.zeros(3, 2, 2, dtype=torch.uint8),
            torch.zeros(2, 2, dtype=torch.int64) if labelled else None,
            torch.ones(2, 2) if deep else None,
        )
        for at, (labelled, deep) in enumerate(kinds)
    ]
    for count in (2, 3):
        parts = split_evenly(pictures, tasks, count, "seed")
        assert sorted(p.name for part in parts for p in part) == sorted(p.name for p in pictures)
        for task in tasks:
            counts = [sum(task.has(picture) for picture in part) for part in parts]
            assert max(counts) - min(counts) <= 1
