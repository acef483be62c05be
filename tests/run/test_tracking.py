"""wandb and trackio: the same figures as metrics.jsonl, under a name that a resumed run keeps."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from tests.reliability.runs import language_recipe
from vpretrain.run.folder import RunFolder
from vpretrain.run.launch import train_one
from vpretrain.studies.check import check
from vpretrain.system.errors import UserError


class Package(ModuleType):
    """Stands in for either: what it was called with, and what it fails at."""

    def __init__(self, name, failing=""):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, origin="somewhere")
        self.failing, self.begun, self.logged, self.finished = failing, [], [], 0

    def _try(self, what):
        if what == self.failing:
            raise RuntimeError(f"{what} says no\nand more")

    def init(self, **named):
        self._try("init")
        print("* a line of its own")
        self.begun.append(named)

    def log(self, figures, *, step):
        self._try("log")
        self.logged.append((step, figures))

    def finish(self):
        self.finished += 1


@pytest.fixture
def package(monkeypatch):
    def give(name, failing=""):
        made = Package(name, failing)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return give


def tracked(kind):
    return language_recipe("arm=onehot", f"track={{kind: {kind}, project: mine}}")


@pytest.mark.parametrize(("kind", "named_by"), [("wandb", {"id", "name"}), ("trackio", {"name"})])
def test_it_gets_the_figures_and_a_resumed_run_goes_on_under_its_name(
    kind, named_by, package, tmp_path, capsys
):
    fake, recipe, folder = package(kind), tracked(kind), tmp_path / "run"
    first = RunFolder(folder, recipe)
    first.log({"step": 1, "loss": 0.5, "batch": "digest"})
    first.close()
    RunFolder(folder, recipe, records=1).close()
    RunFolder(folder, recipe).close()
    assert fake.logged == [(1, {"loss": 0.5})] and fake.finished == 3
    assert capsys.readouterr().out == "", "--json promises one document there"
    one, resumed, anew = fake.begun
    assert one["project"] == "mine" and one["resume"] == "allow"
    assert one["config"]["budget"] == recipe.model_dump(mode="json")["budget"]
    assert {key for key, value in one.items() if value == one["name"]} == named_by
    assert one["name"].startswith("run-") and resumed["name"] == one["name"] != anew["name"]


def test_what_it_fails_at_later_does_not_end_the_run(package, tmp_path, caplog):
    package("wandb", failing="log")
    folder = RunFolder(tmp_path, tracked("wandb"))
    for step in (1, 2):
        folder.log({"step": step, "loss": 0.5})
    folder.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert caplog.text.count("wandb failed, and gets nothing more: log says no\n") == 1
    package("wandb", failing="init")
    with pytest.raises(UserError, match=r"track.kind: wandb does not begin \(init says no\)"):
        RunFolder(tmp_path, tracked("wandb"))


def test_a_package_that_is_not_installed_is_named_with_its_pip_line(tmp_path, monkeypatch):
    monkeypatch.setattr("vpretrain.run.tracking.find_spec", lambda name: None)
    said = "track.kind: this package is not installed.*accepted +pip install trackio"
    with pytest.raises(UserError, match=f"(?s){said}"):
        train_one(tracked("trackio"), tmp_path / "run", lambda record, fraction: None)
    assert not (tmp_path / "run").exists()
    problems = check("demo-language", ["track={kind: trackio}", "learner.model=no/where"])
    assert problems[0].where == "track.kind" and "pip install" in problems[0].accepted
    assert "accepted  one of wandb, trackio" in str(
        check("demo-language", ["track.kind=mlflow"])[0]
    )
