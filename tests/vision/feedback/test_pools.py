"""Batches of labelled pictures: every picture comes, and a position is one number."""

from vpretrain.vision.feedback.pools import Draws


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
