"""Values and weights of a batch, compared with those of the recent batches."""

import pytest
import torch

from tests.method.toy import Context, Given, PairWeights, Weights, exact, pairs
from vpretrain.method.recent import Recent

PAIRS = pairs(torch.Generator().manual_seed(0))
VALUES = torch.randn(16, generator=torch.Generator().manual_seed(1))


def weights(recent, values, factor=1.0):
    context = Context(*(each[: len(values)] for each in PAIRS))
    rule = PairWeights()
    return recent.task(rule, rule.probe(context), values, factor).each


def test_a_first_batch_is_compared_with_itself():
    z = (VALUES - VALUES.mean()) / VALUES.std(correction=0)
    expected = (1 + z.clamp(-3, 3)).clamp_min(0)
    torch.testing.assert_close(weights(Recent(), VALUES), expected / expected.mean())


@pytest.mark.parametrize("size", [1, 2, 8])
def test_small_batches_are_weighted_as_parts_of_a_large_one(size):
    """Once enough has been seen, however small the batches are, down to a single pair."""
    recent, generator = Recent(), torch.Generator().manual_seed(2)
    recent.values.memory = 0.999
    values = torch.randn(4096, generator=generator) + 5
    small = torch.cat([weights(recent, part) for part in values.split(size)])[-1024:]
    large = (1 + (values - values.mean()) / values.std()).clamp_min(0)
    large = (large / large.mean())[-1024:]
    torch.testing.assert_close(small, large, atol=0.1, rtol=0.05)


def test_scale_and_origin_of_values_cancel():
    one, other = Recent(), Recent()
    for values in VALUES.split(4):
        torch.testing.assert_close(
            weights(one, values), weights(other, 7 * values - 3), atol=1e-5, rtol=1e-5
        )


def test_a_single_value_and_values_without_a_spread_leave_the_task_as_it_is():
    for values in (torch.tensor([4.0]), torch.full((16,), 4.0)):
        recent = Recent()
        for _ in range(3):
            assert torch.equal(weights(recent, values), torch.ones(len(values)))


def test_weights_that_are_all_zero_stay_zero():
    class Nothing(PairWeights):
        def task(self, probe, values):
            return Weights(torch.zeros_like(values))

    rule = Nothing()
    assert not Recent().task(rule, rule.probe(Context(*PAIRS)), VALUES).each.any()


def test_tasks_without_weights_are_not_scaled():
    class Targets(PairWeights):
        weighted = False

    rule = Targets()
    task = Recent().task(rule, rule.probe(Context(*PAIRS)), VALUES)
    z = (VALUES - VALUES.mean()) / VALUES.std(correction=0)
    torch.testing.assert_close(task.each, (1 + z).clamp_min(0))


def test_batches_under_another_direction_are_not_compared_with():
    """From another origin, in another unit and of another sign: the values of a later meta step."""
    context, designer, fresh = Context(*PAIRS), exact(), exact()
    designer.learn(context, Given(100 * VALUES + 500, 100 * VALUES + 500))
    tasks = [each.learn(context, Given(-VALUES, -VALUES)).task for each in (designer, fresh)]
    assert torch.equal(tasks[0].each, tasks[1].each)


def test_the_gain_is_of_this_batch_alone_and_leaves_no_trace():
    """Tasks of one half of the feedback are not those that the learner gets."""
    context = Context(*PAIRS)
    one, other = exact(), exact()
    for each in (one, other):
        each.learn(context, Given(VALUES, VALUES))
    one._gain(PairWeights().probe(context), [VALUES, -VALUES])
    tasks = [each.make_task(context, Given(VALUES)).each for each in (one, other)]
    assert torch.equal(*tasks)


def test_a_resumed_designer_makes_the_same_task():
    context, value_of = Context(*PAIRS), Given(VALUES, VALUES + 0.1)
    designer, again = exact(), exact()
    designer.learn(context, value_of)
    again.load_state_dict(designer.state_dict())
    other = Context(*(each[:1] for each in PAIRS))
    tasks = [each.make_task(other, Given(VALUES[:1])).each for each in (designer, again)]
    assert torch.equal(*tasks) and tasks[0] != 1
