"""A result of a comparison that is not whole is named, with what to do."""

import json

import pytest

from vpretrain.studies.run_files import read_entry, read_items, read_result
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


@pytest.mark.parametrize("figures", [1, [], ["onehot"], [{}], [0.1, float("nan")], [[0.1]]])
def test_items_that_are_no_figures_are_named(figures, tmp_path):
    path = tmp_path / "onehot-0.items.json"
    path.write_text(json.dumps({"test/nll": figures}))
    with pytest.raises(UserError, match=r"not whole \(.*test/nll.*remove onehot-0\.\*"):
        read_items(path)
    path.write_text(json.dumps({"test/nll": [0.1, 1]}))
    assert read_items(path) == {"test/nll": [0.1, 1]}
