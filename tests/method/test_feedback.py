"""Several feedback tasks as one, and the state of everything that wraps a feedback."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vpretrain.method.conflict import projected
from vpretrain.method.feedback import (
    EMAFeedback,
    MultiTaskFeedback,
    RandomDirection,
    Reversed,
)
from vpretrain.method.roles import Feedback
from vpretrain.run.controls import controlled
from vpretrain.system.errors import NonFinite


class Said(Feedback):
    """Feedback that says the same vectors again and again, each time a step longer."""

    def __init__(self, *batches):
        self.batches = batches
        self.calls = 0

    def gradients(self, learner):
        self.calls += 1
        return [{"w": self.calls * torch.tensor(batch)} for batch in self.batches]

    def metrics(self):
        return {"calls": float(self.calls)}

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Silent(Feedback):
    """The least that the role asks for."""

    def gradients(self, learner):
        return [{"w": torch.ones(2)}]


def pieces(gradients):
    return [gradient["w"].tolist() for gradient in gradients]


def test_tasks_are_weighed_batch_by_batch():
    """Eq. 18 by hand, the weights divided by their sum."""
    together = MultiTaskFeedback(
        {"a": Said([1.0, 0.0], [0.0, 1.0]), "b": Said([4.0, 4.0], [8.0, 0.0])}, {"a": 3.0, "b": 1.0}
    )
    assert pieces(together.gradients(None)) == [[1.75, 1.0], [2.0, 0.75]]


def test_a_single_task_is_heard_bit_for_bit():
    batch = torch.randn(5, generator=torch.Generator().manual_seed(0)).tolist()
    (result,) = MultiTaskFeedback({"only": Said(batch)}, {"only": 0.3}).gradients(None)
    assert result["w"].tolist() == torch.tensor(batch).tolist()


def test_unit_scale_makes_weights_shares_of_the_direction():
    together = MultiTaskFeedback(
        {"a": Said([1000.0, 0.0]), "b": Said([0.0, 0.001])}, {"a": 1.0, "b": 3.0}, unit=True
    )
    assert pieces(together.gradients(None)) == [pytest.approx([0.25, 0.75])]


def test_a_task_with_nothing_to_say_is_no_nan():
    together = MultiTaskFeedback(
        {"a": Said([0.0, 0.0]), "b": Said([0.0, 2.0])}, {"a": 1.0, "b": 1.0}, unit=True
    )
    assert pieces(together.gradients(None)) == [[0.0, 0.5]]


def test_projection_leaves_no_task_harmed():
    tasks = {"a": Said([1.0, 0.2]), "b": Said([-3.0, 0.2])}
    harmed = MultiTaskFeedback(tasks, {"a": 1.0, "b": 1.0}).gradients(None)[0]["w"]
    mended = MultiTaskFeedback(tasks, {"a": 1.0, "b": 1.0}, resolve=projected).gradients(None)[0][
        "w"
    ]
    assert harmed @ torch.tensor([1.0, 0.2]) < 0 <= mended @ torch.tensor([1.0, 0.2])
    assert mended @ torch.tensor([-3.0, 0.2]) >= 0


def test_conflict_and_the_tasks_own_figures_are_told():
    together = MultiTaskFeedback(
        {"a": Said([1.0, 0.0]), "b": Said([-1.0, 1.0]), "c": Silent()},
        {"a": 1.0, "b": 1.0, "c": 1.0},
    )
    together.gradients(None)
    told = EMAFeedback(RandomDirection(together, 0, fixed=False), 0.5).metrics()
    assert told["conflict/a~b"] == pytest.approx(-(0.5**0.5)) and told[
        "conflict/a~c"
    ] == pytest.approx(0.5**0.5)
    assert told["feedback/a/calls"] == told["feedback/b/calls"] == 1 and len(told) == 5
    assert Silent().metrics() == {}


def test_resumed_feedback_goes_on_as_if_never_stopped():
    def made():
        inner = MultiTaskFeedback({"a": Said([1.0, 2.0]), "b": Silent()}, {"a": 1.0, "b": 2.0})
        return EMAFeedback(RandomDirection(inner, 3, fixed=False), 0.9)

    straight, stopped, resumed = made(), made(), made()
    for feedback in (straight, stopped):
        for _ in range(3):
            feedback.gradients(None)
    resumed.load_state_dict(stopped.state_dict())
    for _ in range(3):
        assert pieces(straight.gradients(None)) == pieces(resumed.gradients(None))


def test_what_is_not_finite_is_not_remembered():
    said = Said([1.0, 0.0])
    remembered, untouched = EMAFeedback(said, 0.5), EMAFeedback(Said([1.0, 0.0]), 0.5)
    first = pieces(remembered.gradients(None))
    assert first == pieces(untouched.gradients(None))
    said.batches = ([math.nan, 0.0],)
    with pytest.raises(NonFinite, match="nan"):
        remembered.gradients(None)
    said.batches, said.calls = ([1.0, 0.0],), 1
    assert pieces(remembered.gradients(None)) == pieces(untouched.gradients(None))


def test_what_is_remembered_is_taken_to_the_gradients_device():
    remembered, resumed = (EMAFeedback(Said([1.0]), 0.5) for _ in range(2))
    remembered.gradients(None)
    with FakeTensorMode(
        allow_non_fake_inputs=True
    ):  # stands for an accelerator; checkpoints come back on the CPU
        resumed.load_state_dict({**remembered.state_dict(), "feedback": {"calls": 1}})
        resumed.feedback.gradients = lambda learner: [{"w": torch.ones(1, device="cuda")}]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "vpretrain.method.feedback.finite_norm", lambda batches: 1.0
            )  # a fake number has no value
            assert resumed.gradients(None)[0]["w"].device.type == "cuda"


def test_remembered_gradients_are_the_mean_of_the_past():
    class Counting:
        def __init__(self):
            self.calls = 0

        def gradients(self, learner):
            self.calls += 1
            return [
                {"w": torch.tensor([float(self.calls)])},
                {"w": torch.tensor([-2.0 * self.calls])},
            ]

    remembered = EMAFeedback(Counting(), 0.5)
    assert [float(g["w"]) for g in remembered.gradients(None)] == [1, -2]
    first, second = remembered.gradients(None)
    assert float(first["w"]) == pytest.approx((0.5 * 1 + 2) / 1.5)
    assert float(second["w"]) == pytest.approx(-2 * (0.5 * 1 + 2) / 1.5)


def test_reversed_feedback_is_the_opposite_with_its_memory_and_its_place():
    real, against = (
        EMAFeedback(Said([1.0, -2.0], [0.5, 0.0]), 0.5),
        controlled(Said([1.0, -2.0], [0.5, 0.0]), "reversed", memory=0.5, seed=0),
    )
    for _ in range(3):
        pairs = zip(real.gradients(None), against.gradients(None), strict=True)
        for one, other in pairs:
            assert torch.equal(one["w"], -other["w"])
    again = controlled(Said([1.0, -2.0], [0.5, 0.0]), "reversed", memory=0.5, seed=0)
    again.load_state_dict(against.state_dict())
    assert isinstance(again.feedback, Reversed)
    assert pieces(again.gradients(None)) == pieces(against.gradients(None))


def test_a_conflict_cannot_be_told_from_what_is_not_finite():
    together = MultiTaskFeedback(
        {"a": Said([1.0, math.nan]), "b": Said([-1.0, 1.0]), "c": Silent()},
        {"a": 1.0, "b": 1.0, "c": 1.0},
        resolve=projected,
    )
    with pytest.raises(NonFinite, match="nan"):
        together.gradients(None)
