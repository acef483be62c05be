"""The benchmarks of cost run on tiny shapes; what they measure there means nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
COMMANDS = {
    "head": ["--minute", "--rounds", "1", "--arms", "plain", "pass 8"],
    "trainer": ["--quick", "--arms", "HF Trainer", "onehot", "SteeredTrainer token_weights"],
    "meta_step": ["--quick"],
    "growth": ["--quick", "--axes", "vocabulary", "--arms", "closed_form"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_it_runs_and_writes_ratios_with_command_and_versions(name, tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, f"{name}.py", *COMMANDS[name], "--out", str(out)]
    ran = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(out.read_text())
    assert result["environment"]["versions"]["torch"] and name in result["environment"]["command"]
    rows = result.get("rows") or list(result["ways"].values())
    if name == "growth":
        rows = list(rows[0]["arms"].values())
    ratio = {"head": "ratio", "trainer": "speed", "meta_step": "faster", "growth": "ratio"}[name]
    assert len(rows) >= 1 and all(row[ratio] > 0 for row in rows)
    if name == "meta_step":
        assert all(row["cosine"] > 0.999 for row in rows)  # the ways agree, whatever they take
