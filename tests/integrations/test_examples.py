"""The example runs as it stands, as a new user runs it: from an empty folder, without a network."""

import json
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "steered_trainer.py"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_the_steered_trainer_of_thirty_lines(tmp_path, monkeypatch):
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 30
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(EXAMPLE)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    folder = tmp_path / "steered" / "checkpoint-40"
    assert (folder / "model.safetensors").is_file() and (
        folder / "steering" / "state.json"
    ).is_file()
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(entry["steering/steered"] == 1.0 and "steering/gain" in entry for entry in history)
