"""What a launch refuses before anything runs."""

import json
import shutil

import pytest

from tests.reliability.runs import language_recipe
from vpretrain.run.launch import train_one
from vpretrain.system.errors import UserError


def test_data_that_changed_under_a_run_are_refused_with_both_hashes(tmp_path):
    recipe = language_recipe("arm=onehot", "checkpoint.every=1", "budget.steps=2")
    train_one(recipe, tmp_path, lambda record, fraction: None)
    (tmp_path / "result.json").unlink()
    shutil.rmtree(tmp_path / "model")
    environment = tmp_path / "environment.json"
    saved = json.loads(environment.read_text())
    name = next(iter(saved["data_hashes"]))
    mine, saved["data_hashes"][name] = saved["data_hashes"][name], "0" * 64
    environment.write_text(json.dumps(saved))
    with pytest.raises(UserError) as caught:
        train_one(recipe, tmp_path, lambda record, fraction: None)
    message = str(caught.value)
    assert name in message and mine[:16] in message and "0" * 16 in message
    assert "--accept-changes" in message and not (tmp_path / "model").exists()
    result = train_one(recipe, tmp_path, lambda record, fraction: None, accept_changes=True)
    assert result["changes"] == [
        {"what": f"data of {name}", "before": "0" * 16, "now": mine[:16]}
    ], "what was accepted is named in the result"
    assert json.loads((tmp_path / "result.json").read_text())["changes"] == result["changes"]
    assert (tmp_path / "model" / "config.json").is_file()
    assert json.loads(environment.read_text())["data_hashes"][name] == mine
