"""The warning about how much text there is."""

import pytest

from tests.language.data.small_recipe import recipe
from vpretrain.language.data.amounts import repeated
from vpretrain.language.data.rows import Encoded

COUNTS = {
    "stream/problems": Encoded(rows=12, documents=12, tokens=300),
    "stream/prose": Encoded(rows=5, documents=4000, tokens=80_000),
}
"""Documents of 25 and 20 tokens."""


def warnings(here, *overrides):
    return list(repeated(recipe(here, "arm=onehot", *overrides), COUNTS))


@pytest.mark.parametrize("weight", [1, 3])
def test_a_text_that_is_read_over_and_over_is_warned_of(here, weight):
    """1,000 steps of 2 x 48 tokens; the sources' documents are drawn equally often."""
    weights = [f"data.stream.{at}.weight={weight}" for at in range(2)]
    (said,) = warnings(here, "budget.steps=1000", *weights)
    assert "stream/problems: its 300 tokens are read about 178 times over" in said
    assert warnings(here, "budget.steps=10") == []
    assert warnings(here, "budget={seconds: 9}", "budget.steps=null") == []
