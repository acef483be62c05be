"""What a run leaves: records that a resumed run cuts back, and what its results began with."""

import json

import pytest

from tests.reliability.runs import language_recipe
from vpretrain.run.folder import (
    RunFolder,
    accepted_changes,
    changed_data,
    environment,
    write_environment,
)
from vpretrain.system.errors import Problem, UserError


def record(step):
    return {"step": step, "loss": 1.0 / step}


def test_a_resumed_run_keeps_the_records_before_its_checkpoint_and_no_others(tmp_path):
    recipe = language_recipe("arm=onehot")
    first = RunFolder(tmp_path, recipe)
    for step in (1, 2, 3):
        first.log(record(step))
    first.close()
    resumed = RunFolder(tmp_path, recipe, records=2)
    resumed.log(record(3) | {"loss": 9.0})
    resumed.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0, 0.5, 9.0]
    RunFolder(tmp_path, recipe).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"", "a new run begins without records"


def test_a_board_whose_records_are_gone_begins_anew(tmp_path):
    """As of a run that was killed before its first checkpoint."""
    recipe = language_recipe("arm=onehot")

    def boards(records):
        folder = RunFolder(tmp_path, recipe, records=records)
        folder.log(record(records + 1))
        folder.close()
        return len([*(tmp_path / "tensorboard").iterdir()])

    assert [boards(0), boards(0), boards(1)] == [1, 1, 2]
    (tmp_path / "metrics.jsonl").unlink()
    assert boards(2) == 1


def test_data_that_changed_are_named_with_both_hashes(tmp_path):
    assert changed_data(tmp_path, {"stream": "a" * 64}) == [], "nothing to compare with"
    write_environment(tmp_path, {"stream": "a" * 64, "evaluation": "b" * 64}, [])
    assert changed_data(tmp_path, {"stream": "a" * 64, "evaluation": "b" * 64}) == []
    [problem, gone] = changed_data(tmp_path, {"stream": "c" * 64})
    assert (problem.where, problem.value, problem.accepted) == (
        "data of stream",
        "c" * 16,
        "a" * 16,
    )
    assert (gone.where, gone.value) == ("data of evaluation", "none")


def test_changes_are_refused_or_kept_with_those_that_were_accepted_before(tmp_path):
    one, two = (Problem(name, "now", "before", "changed") for name in ("one", "two"))
    with pytest.raises(UserError):
        accepted_changes(tmp_path, [one], accept=False)
    first = accepted_changes(tmp_path, [one], accept=True)
    write_environment(tmp_path, {}, first)
    both = accepted_changes(tmp_path, [two], accept=True)
    assert [change["what"] for change in both] == ["one", "two"]
    assert accepted_changes(tmp_path, [], accept=False) == first


@pytest.mark.parametrize("content", ["", "[]", "{", '{"data_hashes"'])
def test_an_environment_that_cannot_be_read_stops_nobody(tmp_path, content):
    (tmp_path / "environment.json").write_text(content)
    assert changed_data(tmp_path, {"stream": "a"}) == []


def test_the_environment_says_what_a_figure_was_made_with():
    result = environment()
    assert result["versions"]["torch"] and result["cores"] and "command" in result
