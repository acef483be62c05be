"""The mixture of sources that follows the feedback."""

import logging
import math

import pytest
import torch

from tests.language.conftest import tiny_learner
from tests.run.test_train import tiny_recipe, trained
from vpretrain.language import Language
from vpretrain.language.data.batch import laid_out
from vpretrain.language.data.rows import Document
from vpretrain.language.steering.dga import SourceMixture
from vpretrain.language.steering.rules import sources_of
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Estimate


class Given:
    """A value function that says the same under both halves of the feedback."""

    def __init__(self, values):
        self.values = values

    def each(self, context, task):
        return [Estimate(torch.zeros(()), (self.values,))] * 2


def context_of(sizes):
    """A row with one document of each source."""
    draw = torch.Generator().manual_seed(0)
    row = [
        Document(torch.randint(3, 40, (size,), generator=draw).tolist(), [True] * size, name, name)
        for name, size in sizes.items()
    ]
    return tiny_learner().forward(laid_out([row], width=16, pad_id=0, padding_apart=True))


@pytest.fixture
def context():
    return context_of({"a": 9, "b": 5})


def designer_of(step=0.5, memory=0.0):
    return SourceMixture(step, memory, Reliability(shrink=False, unit="raw"))


def test_a_batch_of_one_source_forgets_no_mixture_and_is_weighted(context):
    """Under `learner.accumulate` a meta step sees one part of the step, where a source may lack."""
    designer, (source, _) = designer_of(), sources_of(context)
    designer.learn(context, Given(torch.tensor([1.0, -2.0])[source][:, None]))
    logs, alone = dict(designer.logs), context_of({"a": 9})
    for seed in range(6):
        values = torch.randn(8, 1, generator=torch.Generator().manual_seed(seed))
        task = designer.learn(alone, Given(values)).task
    assert designer.logs == pytest.approx(logs)
    # a has 56 of 60 tokens by now, so that its ratio is nearer to 1, and that of b is as it was.
    odds = math.exp(logs["a"] - logs["b"])
    assert designer.ratio["a"] / designer.ratio["b"] == pytest.approx(odds)
    torch.testing.assert_close(task.mass[:, 0], torch.full((8,), designer.ratio["a"]))


def test_a_step_is_exponentiated_alignment_by_hand(context):
    """8 and 4 predicted tokens, values 1 and -2, their mean 0 and standard deviation the root of 2:
    8 and -8 over it, and over the root of 8 and 4.
    """
    source, names = sources_of(context)
    assert names == ["a", "b"] and source.tolist() == [0] * 8 + [1] * 4
    values = torch.tensor([1.0, -2.0])[source][:, None]
    task = designer_of().learn(context, Given(values)).task
    aligned = [8 / 2**0.5 / 8**0.5, -8 / 2**0.5 / 2]
    alpha = [8 / 12 * math.exp(0.5 * aligned[0]), 4 / 12 * math.exp(0.5 * aligned[1])]
    ratio = [alpha[0] / sum(alpha) * 12 / 8, alpha[1] / sum(alpha) * 12 / 4]
    expected = torch.tensor(ratio)[source]
    torch.testing.assert_close(task.mass[:, 0], expected)
    assert task.mass.mean().item() == pytest.approx(1)


def test_between_meta_steps_the_mixture_stays_and_is_remembered(context):
    source, _ = sources_of(context)
    values = torch.tensor([1.0, -2.0])[source][:, None]
    slow, fast = designer_of(memory=0.9), designer_of()
    mixtures = {d: d.learn(context, Given(values)).metrics["mixture.a"] for d in (slow, fast)}
    assert 8 / 12 < mixtures[slow] < mixtures[fast]
    again = designer_of()
    again.load_state_dict(fast.state_dict())
    tasks = [d.make_task(context, None).mass for d in (fast, again)]
    assert torch.equal(*tasks)


def test_the_gain_is_of_the_mixture_before_this_feedback(context):
    source, _ = sources_of(context)
    values = torch.tensor([1.0, -2.0])[source][:, None]
    designer = designer_of()
    first, second, turned = (
        designer.learn(context, Given(v)).metrics["gain"] for v in (values, values, -values)
    )
    assert first == 0 and second > 0 > turned


def test_a_starved_source_is_warned_of_once(context, caplog):
    source, _ = sources_of(context)
    values = torch.tensor([1.0, -2.0])[source][:, None]
    designer = designer_of(step=3.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            designer.learn(context, Given(values))
    assert [record.args[0] for record in caplog.records] == ["b"]


def test_a_step_of_zero_is_the_onehot_run_bit_for_bit():
    materials = Language().load(tiny_recipe())
    plain, still = (
        trained(materials, *arm)[0] for arm in (["arm=onehot"], ["arm=dga", "designer.step_size=0"])
    )
    assert plain == still
