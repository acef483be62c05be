"""Both ways to the predictions."""

import pytest

from vpretrain.language.learner import predictions
from vpretrain.language.learner.head import HeadPass
from vpretrain.language.learner.predictions import WholeLogits

KINDS = (WholeLogits, HeadPass)


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """Both ways, whatever the size of the batch."""
    monkeypatch.setattr(predictions, "WHOLE_LOGITS", 0 if request.param is HeadPass else 2**40)
    return request.param
