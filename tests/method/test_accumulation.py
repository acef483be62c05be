"""Batches that make one step together: what each counts."""

from dataclasses import dataclass

import pytest

from vpretrain.method.accumulation import MicroBatches, next_batches


@dataclass(frozen=True)
class Sized:
    name: str
    tokens: int
    weight: float

    def digest(self):
        return self.name


def test_each_batch_counts_by_what_its_loss_is_a_mean_over():
    parts = MicroBatches((Sized("a", 10, 1.0), Sized("b", 30, 3.0))).weighted()
    assert [part.fraction for part in parts] == [0.25, 0.75]
    assert [part.fraction_of_batch for part in parts] == [1.0, 1.0]


def test_one_batch_is_the_step():
    batches = MicroBatches((Sized("a", 10, 0.0),))
    [part] = batches.weighted()
    assert (part.fraction, part.fraction_of_batch, batches.tokens) == (1.0, 1.0, 10)
    assert batches.digest() == "a"


def test_batches_without_a_predicted_token_divide_by_no_zero():
    parts = MicroBatches((Sized("a", 4, 0.0), Sized("b", 4, 0.0))).weighted()
    assert [part.fraction for part in parts] == [0.0, 0.0]


def test_tokens_are_added_up_and_the_digest_knows_the_order():
    one, other = Sized("a", 10, 1.0), Sized("b", 30, 3.0)
    there, back = MicroBatches((one, other)), MicroBatches((other, one))
    assert there.tokens == back.tokens == 40
    assert there.digest() != back.digest()


def test_no_batch_of_the_stream_is_left_out():
    stream = iter([Sized(str(i), 1, 1.0) for i in range(5)])
    drawn = [next_batches(stream, 2), next_batches(stream, 2)]
    assert [[batch.name for batch in each.batches] for each in drawn] == [["0", "1"], ["2", "3"]]
    with pytest.raises((StopIteration, RuntimeError)):
        next_batches(stream, 2)
