"""docs/trainer.md: its scripts run as they stand, from an empty folder, and its table is complete."""

import csv
import json
import re
from pathlib import Path

import pytest

from tests.integrations.conftest import TOKENIZER, tiny
from vpretrain.integrations.steering import Steering
from vpretrain.language.data.word_problems import problems

PAGE = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
SMALLER = {"max_steps=200": "max_steps=2, use_cpu=True, report_to='none'", "seeds=3": "seeds=1"}
"""What is written with other figures: the test is about the scripts, not about what they find."""


def write(path, columns, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_its_scripts_run_one_after_the_other(tmp_path, monkeypatch, capsys, no_plots):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tiny().save_pretrained("MODEL")
    TOKENIZER.save_pretrained("MODEL")
    stream = problems("stream", 40, seed=0)
    write("notes.csv", ["text"], [[f"{row['problem']} {row['solution']}"] for row in stream])
    for name, split, count in (("verified", "feedback", 64), ("held-out", "test", 8)):
        rows = [[row["problem"], row["solution"]] for row in problems(split, count, seed=0)]
        write(f"{name}.csv", ["prompt", "solution"], rows)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    for block in blocks:
        for written, smaller in SMALLER.items():
            block = block.replace(written, smaller)
        exec(compile(block, "trainer.md", "exec"), names)
    assert len(blocks) == 3 and names["trainer"].state.global_step == 2
    said = capsys.readouterr().out
    assert "document_weights: undecided against onehot" in said
    assert "one seed decides nothing: compare three or more" in said
    assert Path("runs/compare-trainer/report.html").is_file()


def test_its_table_has_every_key_with_its_default():
    table = PAGE.split("\n## Keys of `Steering`\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE))
    defaults = Steering().model_dump()
    said = {
        **{name: json.dumps(value).strip('"') for name, value in defaults.items()},
        "designer": "the arm's",
        "feedback": "likelihood",
        "aligned_patterns": "none",
    }
    assert {name: shown.strip("`") for name, shown in rows.items()} == said
