"""The learner's pass over a batch."""

import pytest

from tests.language.conftest import tiny_batch, tiny_learner


@pytest.fixture
def context():
    return tiny_learner().forward(tiny_batch())
