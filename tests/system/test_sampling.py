"""Endless orders that resume, and halves."""

from itertools import chain

import pytest

from vpretrain.method.simple import (
    ShuffledBatches,
    halves,
)


def test_batches_go_on_where_they_were_and_give_every_item_once_a_pass():
    drawn = ShuffledBatches(6, 4, "key", list)
    first = [next(drawn) for _ in range(3)]
    assert sorted(chain(*first)) == sorted([*range(6), *range(6)])
    state, then = drawn.state_dict(), [next(drawn) for _ in range(5)]
    again = ShuffledBatches(6, 4, "key", list)
    again.load_state_dict(state)
    assert [next(again) for _ in range(5)] == then
    assert [next(ShuffledBatches(6, 4, "other", list)) for _ in range(1)] != first[:1]


@pytest.mark.parametrize("count", [7, 8])
def test_halves_share_no_item_and_leave_none_out(count):
    seen = [set(chain(*(next(half) for _ in range(8)))) for half in halves(count, 2, "key", list)]
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(count))
