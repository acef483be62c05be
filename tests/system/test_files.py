from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vpretrain.system.errors import UserError
from vpretrain.system.files import replacing, tidy, write_json, write_text


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_text(path, "first\N{GREEK SMALL LETTER PHI}")
    assert path.read_text(encoding="utf-8") == "first\N{GREEK SMALL LETTER PHI}"
    with pytest.raises(OSError, match="disk"), replacing(path) as scratch:
        scratch.write_text("half")
        raise OSError("disk")
    assert path.read_text(encoding="utf-8").startswith("first")
    write_json(path, {"a": 1})
    assert path.read_text(encoding="utf-8") == '{\n "a": 1\n}\n'
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]


def test_a_folder_that_was_being_replaced_when_the_process_was_killed_is_back(
    tmp_path: Path,
) -> None:
    for name in (".best.former.partial", ".best.partial", ".step-4.former.partial", "step-4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    tidy(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["best", "step-4"]
    assert (tmp_path / "best" / "weights").read_text() == ".best.former.partial"
    assert (tmp_path / "step-4" / "weights").read_text() == "step-4"


def test_others_may_read_what_safetensors_writes(tmp_path: Path) -> None:
    """It makes files for their owner alone."""
    with replacing(tmp_path / "model") as scratch:
        scratch.mkdir()
        (scratch / "config.json").write_text("{}")
        save_file({"weight": torch.zeros(2)}, scratch / "model.safetensors")
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1


def test_permissions_are_given_without_touching_those_of_other_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The umask is the whole process's; two threads that set it back would leave it changed."""

    def refused(*_: object) -> None:
        raise PermissionError("no permissions on this file system")

    monkeypatch.setattr("os.umask", refused)
    for chmod in (Path.chmod, refused):
        monkeypatch.setattr(Path, "chmod", chmod)
        with replacing(tmp_path / "model") as scratch:
            scratch.mkdir()
            save_file({"weight": torch.zeros(2)}, scratch / "model.safetensors")
        names = [path.name for path in (tmp_path / "model").iterdir()]
        assert names == ["model.safetensors"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "best"
    for name in ("old", "new"):
        with replacing(path, flush=True) as scratch:
            scratch.mkdir()
            (scratch / name).write_text(name)
    assert [each.name for each in path.iterdir()] == ["new"]
    with pytest.raises(KeyError), replacing(path) as scratch:
        scratch.mkdir()
        raise KeyError
    assert [each.name for each in tmp_path.iterdir()] == ["best"]


def test_a_folder_that_cannot_be_removed_gives_way_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder must never be gone, or half gone, before the new one is in place."""
    path = tmp_path / "best"
    path.mkdir()
    (path / "old").write_text("")
    present = []

    def rmtree(folder: Path) -> None:
        present.append([each.name for each in path.iterdir()])
        raise OSError("Directory not empty")  # as on NFS, where a file is still open

    monkeypatch.setattr("shutil.rmtree", rmtree)
    with replacing(path) as scratch:
        scratch.mkdir()
        (scratch / "new").write_text("")
    assert present == [["new"]]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("")
    with pytest.raises(UserError, match="mine: a folder stands where this file belongs"):
        write_text(tmp_path / "mine", "page")
    assert [each.name for each in tmp_path.rglob("*")] == ["mine", "thesis"]


def test_what_a_killed_process_left_behind_gives_way(tmp_path: Path) -> None:
    (tmp_path / ".page.partial").mkdir()
    write_text(tmp_path / "page", "whole")
    assert [each.name for each in tmp_path.iterdir()] == ["page"]
