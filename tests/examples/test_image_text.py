"""A modality from outside: found by its entry point alone, compared like any other, and said
plainly where it cannot be.
"""

import re
from pathlib import Path

import pytest

from vpretrain.config.recipe import load
from vpretrain.run.modalities import MODALITIES, SCHEMAS
from vpretrain.studies.doctor import doctor
from vpretrain.system.errors import UserError

HERE = Path(__file__).parents[2] / "examples" / "image_text"
FEW = [
    "budget.steps=3",
    "data.stream=12",
    "data.feedback=12",
    "data.test=12",
    "data.batch_size=4",
    "value.settle_steps=1",
    "value.meta_period=2",
]


def installed(folder, name, value):
    """What pip leaves of a package: its name and its entry points."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vpretrain.modalities]\n{value}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    installed(folder, "vpretrain-image-text", "image-text = image_text:ImageText")
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_the_project_declares_what_the_tests_pretend():
    import tomllib

    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vpretrain.modalities"] == {"image-text": "image_text:ImageText"}


def test_it_stays_small_and_on_public_ground():
    files = [
        HERE / "pyproject.toml",
        HERE / "recipe.yaml",
        *sorted((HERE / "image_text").glob("*.py")),
    ]
    assert (
        sum(bool(line.strip()) for file in files for line in file.read_text().splitlines()) <= 300
    )
    taken = [
        line
        for file in files
        for line in file.read_text().splitlines()
        if line.startswith("from vpretrain")
    ]
    assert taken and not any(
        part.startswith("_") for line in taken for part in line.replace(".", " ").split()
    )


def test_two_arms_are_compared_by_the_command(site, command, tmp_path, monkeypatch):
    """Outside the repository, through nothing but the entry point."""
    monkeypatch.chdir(tmp_path)
    called = command(
        "compare",
        HERE / "recipe.yaml",
        *FEW,
        "--arms",
        "plain,words,masks",
        "--seeds",
        "1",
        "--jobs",
        "1",
        "--json",
    )
    assert called.code == 0, called.err[-2000:]
    result = called.document
    assert result["modality"] == "image-text" and set(result["metrics"]) == {
        "test/accuracy",
        "test/nll",
    }
    assert len({run["stream_digest"] for run in result["runs"]}) == 1
    nll = {run["arm"]: run["final"]["test/nll"] for run in result["runs"]}
    assert len(set(nll.values())) == 3, "steering does not reach the learner"


@pytest.mark.parametrize("arm", ["plain", "masks"])
def test_estimators_agree_on_what_its_controls_are_worth(arm, site):
    """``doctor`` holds what the arm's controls are worth (``plain`` has none: those of ``words``)
    against float64.
    """
    recipe = load(HERE / "recipe.yaml", [*FEW, f"arm={arm}"], schemas=SCHEMAS)
    result = {row["name"]: row for row in doctor(recipe)["estimators"]}
    assert all(row["supported"] for row in result.values())
    assert (
        result["forward_mode"]["relative_error"] < 1e-4
        and result["double_backward"]["relative_error"] < 1e-4
    )


def test_a_run_from_outside_goes_on_where_it_stopped(site, tmp_path):
    from vpretrain.run.launch import train_one

    recipe = load(HERE / "recipe.yaml", [*FEW, "checkpoint.every=1"], schemas=SCHEMAS)

    def stop(record, fraction):
        if record["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_one(recipe, tmp_path / "stopped", stop)
    whole = train_one(recipe, tmp_path / "whole", lambda record, fraction: None)
    resumed = train_one(recipe, tmp_path / "stopped", lambda record, fraction: None)
    assert resumed["final"] == whole["final"]
    assert (tmp_path / "whole" / "model" / "config.json").is_file()
    assert_explained_by_its_own(tmp_path / "whole")


def assert_explained_by_its_own(run):
    from vpretrain.studies.explain import explain

    with pytest.raises(UserError, match=r"(?s)no method `explain`.*got +image-text"):
        explain(run, documents=2)

    class Explained(MODALITIES["image-text"]().__class__):
        def explain(self, recipe, folder, *, documents, out):
            return {"page": str(out), "description": recipe.description, "documents": documents}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("image_text.ImageText", Explained)
        result = explain(run, documents=2)
    assert (
        result["documents"] == 2
        and result["page"] == str(run / "explain.html")
        and "captions" in result["description"]
    )


def test_it_is_listed_and_what_comes_with_the_package_comes_first(site):
    assert list(MODALITIES) == ["language", "vision", "image-text"] and "image-text" in SCHEMAS
    installed(site, "impostor", "language = image_text:ImageText")
    assert SCHEMAS["language"]().__name__ == "LanguageRecipe"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("other = nowhere_to_be_found:Modality", ["somebody", "nowhere_to_be_found"]),
        ("other = image_text:ImageTextRecipe", ["somebody", "no modality", "load"]),
    ],
)
def test_a_modality_that_cannot_be_had_names_its_package(value, said, site, tmp_path):
    installed(site, "somebody", value)
    (tmp_path / "recipe.yaml").write_text(
        "modality: other\ndescription: x\narm: a\nbudget: {steps: 1}\n"
    )
    with pytest.raises(UserError) as refused:
        load(tmp_path / "recipe.yaml", schemas=SCHEMAS)
    assert all(word in str(refused.value) for word in said)


def test_an_unknown_modality_lists_those_from_outside(site, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "modality: image-txt\ndescription: x\narm: a\nbudget: {steps: 1}\n"
    )
    with pytest.raises(
        UserError, match=r"did you mean image-text.*\n.*\n.*language, vision, image-text"
    ):
        load(tmp_path / "recipe.yaml", schemas=SCHEMAS)


def test_the_search_of_the_guide_is_one(site, tmp_path):
    from vpretrain.studies.sweep import Plan

    guide = (HERE.parents[1] / "docs" / "your-own.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", guide, flags=re.DOTALL)
    (block,) = (block for block in blocks if "recipe.yaml" in block)
    (tmp_path / "search.yaml").write_text(
        block.replace("recipe.yaml", str(HERE / "recipe.yaml")), encoding="utf-8"
    )
    result = Plan.read(str(tmp_path / "search.yaml"), [])
    assert (
        result.recipe.modality == "image-text"
        and result.at({"value.alignment": "cosine"}).budget.steps == 100
    )
