"""The places given to ``init``, as folders and files come."""

import json
from pathlib import Path

import pytest

from vpretrain.language.init_places import Place
from vpretrain.system.errors import UserError
from vpretrain.system.locations import files


def test_a_folder_may_have_signs_of_patterns_in_its_name(tmp_path):
    folder = tmp_path / "books [2020]"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    place = Place("--stream", str(folder))
    assert files(Path(place.section(solutions=False)["path"]), "rows") == place.files()


def test_the_rows_of_a_folder_are_counted_as_the_recipe_reads_them(tmp_path):
    for name in ("a.jsonl", "._a.jsonl", "b/.ipynb_checkpoints/c.jsonl", "b/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    place = Place("--stream", str(tmp_path))
    recipes = files(Path(place.section(solutions=False)["path"]), "rows")
    assert place.files() == recipes == [tmp_path / "a.jsonl", tmp_path / "b" / "d.jsonl"]


def test_columns_are_read_from_the_first_file_with_a_row(tmp_path):
    (tmp_path / "part-0.jsonl").write_text("")
    (tmp_path / "part-1.jsonl").write_text(json.dumps({"text": "a"}))
    assert Place("--stream", str(tmp_path)).section(solutions=False)["text"] == "text"


def test_more_columns_than_a_prompt_and_a_solution_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": "1", "b": "2", "c": "3"}))
    place = Place("--feedback", str(tmp_path / "a.jsonl"), ("a", "b", "c"))
    with pytest.raises(UserError, match="--feedback-columns: these are too many"):
        place.section(solutions=True)


def test_of_a_folder_of_data_sets_one_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="--stream: this folder holds several data sets") as caught:
        Place("--stream", str(tmp_path / "saved")).section(solutions=False)
    assert f"{tmp_path}/saved/train" in str(caught.value)
    place = Place("--stream", str(tmp_path / "saved" / "train"))
    assert place.section(solutions=False)["kind"] == "arrow"
