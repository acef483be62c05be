"""Warnings about how much text there is, for the whole run and in one batch."""

import pytest

from tests.language.data.small_recipe import recipe
from vpretrain.language.data.amounts import amounts
from vpretrain.language.data.rows import Encoded

COUNTS = {
    "stream/problems": Encoded(rows=12, documents=12, tokens=300),
    "stream/prose": Encoded(rows=5, documents=4000, tokens=80_000),
}
"""Documents of 25 and 20 tokens."""


def warnings(here, *overrides):
    return amounts(recipe(here, "arm=onehot", *overrides), COUNTS)


@pytest.mark.parametrize("weight", [1, 3])
def test_a_text_that_is_read_over_and_over_is_warned_of(here, weight):
    """1,000 steps of 2 x 48 tokens; the sources' documents are drawn equally often."""
    weights = [f"data.stream.{at}.weight={weight}" for at in range(2)]
    (said,) = warnings(here, "budget.steps=1000", *weights)
    assert "stream/problems: its 300 tokens are read about 178 times over" in said
    assert warnings(here, "budget.steps=10") == []
    assert warnings(here, "budget={seconds: 9}", "budget.steps=null") == []


@pytest.mark.parametrize(
    ("overrides", "few"),
    [
        (["data.batch_size=1"], "about 2.1:"),  # a row of 48 tokens
        (["data.batch_size=1", "learner.accumulate=8"], "about 2.1:"),
        (["data.batch_size=2"], None),
        (["data.batch_size=2", "data.packing=false"], "about 2.0:"),
        (["data.batch_size=1", "data.window_tokens=16"], "about 1.0:"),
        (["data.batch_size=1", "arm=token_weights"], None),
    ],
)
def test_weights_among_few_documents_are_warned_of(here, overrides, few):
    said = warnings(here, "arm=document_weights", "budget.steps=1", *overrides)
    assert len(said) == (few is not None) and all("data.batch_size" in each for each in said)
    assert few is None or few in said[0]
