"""A result of a comparison that is not whole is named, with what to do."""

import json

import pytest

from vpretrain.studies.entries import read_entry, read_result
from vpretrain.system.errors import UserError

ENTRY = {
    "arm": "onehot",
    "seed": 0,
    "steps": 2,
    "tokens_or_images": 9,
    "seconds": 1.0,
    "stream_digest": "a",
    "final": {"test/nll": 1.0},
}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps(ENTRY | {"seed": 1}),
        json.dumps(ENTRY | {"final": []}),
        json.dumps(ENTRY | {"final": {"test/nll": float("nan")}}),
        json.dumps(ENTRY | {"final": {"test/nll": "x"}}),
        json.dumps(ENTRY | {"seconds": None}),
    ],
)
def test_an_entry_that_is_not_whole_is_named(content, tmp_path):
    path = tmp_path / "onehot-0.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"onehot-0\.json: this result is not whole.*remove"):
        read_entry(path, ("onehot", 0))


def test_a_whole_entry(tmp_path):
    path = tmp_path / "onehot-0.json"
    path.write_text(json.dumps(ENTRY))
    assert read_entry(path, ("onehot", 0)) == ENTRY
    with pytest.raises(UserError, match="no object with step0"):
        read_result(path, {"step0"})
    with pytest.raises(UserError, match="No such file"):
        read_result(tmp_path / "none")
