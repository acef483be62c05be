"""The guide works as it is written: its files, its recipe and its commands, in an empty folder."""

import re
import shlex
from pathlib import Path

GUIDE = (Path(__file__).parent.parent / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, flags=re.DOTALL)
SHORTER = {"budget: {steps: 40}": "budget: {steps: 4}", 'asked("test", 64)': 'asked("test", 8)'}
"""What is written with smaller figures: the test is about the commands, not about the table."""


def shortened(text):
    for written, smaller in SHORTER.items():
        text = text.replace(written, smaller)
    return text


def test_what_is_shortened_is_there():
    assert all(GUIDE.count(written) == 1 for written in SHORTER)


def test_every_command_of_the_guide_runs(command, tmp_path, monkeypatch):
    """In their order: the later ones use what the earlier ones wrote."""
    monkeypatch.chdir(tmp_path)
    ((_, recipe),) = [block for block in BLOCKS if block[0] == "yaml"]
    Path("steer.yaml").write_text(shortened(recipe), encoding="utf-8")
    ((_, script), *commands) = [block for block in BLOCKS if block[0] == "bash"]
    heading, *lines, ending = script.strip().splitlines()
    assert (heading, ending) == ("python - <<'EOF'", "EOF")
    exec(compile(shortened("\n".join(lines)), "guide.md", "exec"), {})
    said = {}
    for line in "".join(text for _, text in commands).strip().splitlines():
        program, verb, *words = shlex.split(line)
        assert program == "vpretrain"
        called = command(verb, *words)
        assert called.code == 0, f"{line}\n{called.out[-1500:]}\n{called.err[-1500:]}"
        said[verb] = called.out + called.err
    assert "no problem found" in said["check"] and "near-duplicates" not in said["check"]
    assert "step 0" in said["compare"] and "step 0" in said["train"]
    run = Path("runs") / "steer-token_weights-0"
    assert (run / "model" / "README.md").is_file() and (run / "explain.html").is_file()
