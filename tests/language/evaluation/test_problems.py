"""A benchmark of several configurations and splits: each is read, and reported, by itself."""

import json
from dataclasses import replace

import pytest

from tests.language.evaluation.harness_models import ROWS, byte_tokenizer, tiny_model
from vpretrain.language.evaluation.benchmarks import BENCHMARKS
from vpretrain.language.evaluation.problems import chosen, parts
from vpretrain.system.errors import UserError

CONFIGURATIONS, SPLITS = ("algebra_line", "logic_grid"), ("train", "test_in", "test_out")
PARTS = [f"omega/{name}/{split}" for name in CONFIGURATIONS for split in SPLITS[1:]]


@pytest.fixture
def omega(tmp_path):
    """A stand-in of the data set: its layout, and the card that names configurations and splits."""
    folder = tmp_path / "data" / "omega"
    card = []
    for name in CONFIGURATIONS:
        (folder / name).mkdir(parents=True)
        files = []
        for number, split in enumerate(SPLITS):
            path = f"{name}/{split}-00000-of-00001.jsonl"
            rows = ROWS["omega"][: number + 1]
            (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
            files.append(f"  - split: {split}\n    path: {path}\n")
        card.append(f"- config_name: {name}\n  data_files:\n" + "".join(files))
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(card) + "---\n")
    return folder


def as_if_on_the_hub(monkeypatch, folder):
    task = BENCHMARKS["omega"]
    task = replace(task, hub=replace(task.hub, path=str(folder)))
    monkeypatch.setattr("vpretrain.language.evaluation.problems.BENCHMARKS", {"omega": task})
    return task


def test_every_part_of_a_data_set_is_read_by_itself(omega, monkeypatch):
    task = as_if_on_the_hub(monkeypatch, omega)
    read = parts(task, None, None)
    assert sorted(read) == PARTS
    assert [len(read[name]) for name in PARTS] == [2, 2, 2, 2]
    assert {len(items) for items in parts(task, None, 1).values()} == {1}
    assert read[PARTS[0]][0].origin == f"{omega}/algebra_line/test_in:1"
    local = parts(task, omega.parent, None)
    for name, items in local.items():
        assert [item.prompt for item in items] == [item.prompt for item in read[name]]
    assert sorted(local) == PARTS


def test_the_command_reports_the_parts_apart(omega, monkeypatch, command, tmp_path):
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    as_if_on_the_hub(monkeypatch, omega)
    options = ("--tasks", "omega", "--limit", 1, "--new-tokens", 4, "--out", tmp_path / "out")
    called = command("evaluate", model, *options, "--json")
    assert called.code == 0, called.err
    assert sorted(called.document) == PARTS
    assert {part["flexible/pass@1"]["n"] for part in called.document.values()} == {1}
    files = {path.name for path in (tmp_path / "out").glob("generations-*")}
    assert "generations-omega_logic_grid_test_out.jsonl" in files and len(files) == 4


def test_one_file_is_one_task_and_a_split_without_rows_is_named(omega):
    (omega / "logic_grid" / "test_in-00000-of-00001.jsonl").write_text("")
    with pytest.raises(UserError, match=r"omega/logic_grid/test_in: the file holds no rows"):
        parts(BENCHMARKS["omega"], omega.parent, None)
    (omega / "test.jsonl").write_text(json.dumps(ROWS["omega"][0]) + "\n")
    names = chosen(
        "omega", root=omega.parent, limit=None, prompt="prompt", solution="solution", answer=None
    )
    assert list(names) == ["omega"]
