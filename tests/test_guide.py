"""The guide works as it is written: its files, its recipe and its commands, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parent.parent / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader writes by hand."""
    here = tmp_path_factory.mktemp("guide")
    ((_, recipe),) = [block for block in BLOCKS if block[0] == "yaml"]
    (here / "steer.yaml").write_text(recipe, encoding="utf-8")
    return here


def commands():
    for kind, text in BLOCKS:
        if kind == "bash":
            yield from [text] if "<<" in text else text.strip().splitlines()


def test_every_command_of_the_guide_runs(folder):
    """In their order: the later ones use what the earlier ones wrote."""
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    said = {}
    for command in commands():
        if command.startswith("vpretrain compare"):
            command += " budget.steps=2"  # the table, not its figures
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        said[command.split()[1] if command.startswith("vpretrain") else "files"] = (
            done.stdout + done.stderr
        )
    assert "no problem found" in said["check"] and "near-duplicates" not in said["check"]
    assert "step 0" in said["compare"] and "step 0" in said["train"]
    run = folder / "runs" / "steer-token_weights-0"
    assert (run / "model" / "README.md").is_file() and (run / "explain.html").is_file()
