from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator

from vpretrain.config import recipe as recipes
from vpretrain.config.changes import changes
from vpretrain.config.problems import shown
from vpretrain.config.recipe import (
    Budget,
    Evaluate,
    Recipe,
    Section,
    Value,
    dump,
    listing,
    load,
    packaged,
)
from vpretrain.config.renamed import RENAMED
from vpretrain.config.yaml_places import parse
from vpretrain.system.errors import Problem, UserError


class Source(Section):
    path: Path
    weight: float = Field(1.0, gt=0, le=10)


class Data(Section):
    stream: tuple[Source, ...] = Field(min_length=1)


class Learner(Section):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    model: int | str | None = None
    shard: bool = False


class FieldDesigner(Section):
    kind: Literal["field"]
    hidden: PositiveInt = 64


class Onehot(Section):
    kind: Literal["onehot"]


class ToyEvaluate(Evaluate):
    split: str | None = None


class Toy(Recipe):
    data: Data
    learner: Learner = Learner()
    designer: Annotated[FieldDesigner | Onehot, Field(discriminator="kind")]
    weights: dict[str, float] = Field(default_factory=dict)
    evaluate: ToyEvaluate = ToyEvaluate()

    @model_validator(mode="after")
    def _split_is_known(self) -> Self:
        if self.evaluate.split == "nope":
            raise ValueError("evaluate.split is 'nope'; data has ['test']")
        if self.evaluate.split == "odd":
            raise ValueError("e.g. this opens with no key")
        return self


def never() -> type[Recipe]:
    raise AssertionError("the recipe of another modality was asked for")


SCHEMAS: dict[str, Callable[[], type[Recipe]]] = {"toy": lambda: Toy, "vision": never}

GOOD = """\
modality: toy
description: A toy.
arm: onehot
budget:
  steps: 10
value:
  meta_period: 2
data:
  stream:
    - {path: a.jsonl}
    - {path: b.jsonl, weight: 5e-5}
designer: {kind: field}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "toy.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def read(path: Path | str, *overrides: str) -> Toy:
    recipe = load(path, overrides, schemas=SCHEMAS)
    assert isinstance(recipe, Toy)
    return recipe


def refused(path: Path | str, *overrides: str) -> dict[str, Problem]:
    """The problems by where they are, the folder of the file left out."""
    with pytest.raises(UserError) as caught:
        load(path, overrides, schemas=SCHEMAS)
    folder = f"{Path(path).parent}/"
    found = {problem.where.replace(folder, ""): problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one problem, one place"
    return found


def test_a_recipe_is_read_typed_and_frozen(write: Callable[..., Path]) -> None:
    recipe = read(write(GOOD))
    assert recipe.data.stream == (
        Source(path=Path("a.jsonl")),
        Source(path=Path("b.jsonl"), weight=5e-5),
    )
    assert recipe.value == Value(meta_period=2)
    assert recipe.budget == Budget(steps=10)
    assert (recipe.seed, recipe.threads, recipe.checkpoint.every, recipe.evaluate.every) == (
        0,
        None,
        0,
        0,
    )
    with pytest.raises(ValidationError):
        recipe.seed = 3  # type: ignore[misc]


def test_numbers_as_people_write_them(write: Callable[..., Path]) -> None:
    path = write(GOOD)
    for text, expected in (
        ("5e-5", 5e-5),
        ("1", 1.0),
        (".5", 0.5),
        ("1E+1", 10.0),
        ("2.5e0", 2.5),
        ("-3", -3.0),
    ):
        lr = read(path, f"learner.lr={text}").learner.lr
        assert lr == expected
        assert type(lr) is float
    assert read(path, "budget.tokens=1e6").budget.tokens == 1_000_000
    assert read(path, "budget.tokens=1_000").budget.tokens == 1000
    # Text that YAML 1.1 reads as true, octal or sixty minutes stays what it looks like.
    for text in ("no", "on", "010", "1:30", "2024-01-01"):
        assert read(path, f"learner.model={text}").learner.model == text
    assert read(path, "weights={no: 1, 7: 2}").weights == {"no": 1.0, "7": 2.0}


@pytest.mark.parametrize(
    ("override", "accepted"),
    [
        ("value.meta_period=two", "a whole number (above 0)"),
        ("value.meta_period=2.5", "a whole number (above 0)"),
        ("value.meta_period='2'", "a whole number (above 0)"),
        ("value.meta_period=true", "a whole number (above 0)"),
        ("value.meta_period=", "a whole number (above 0)"),
        ("value.meta_period=0", "a whole number (above 0)"),
        ("value.settle_steps=-1", "a whole number (at least 0)"),
        ("value.preconditioner_floor=0", "a number (above 0)"),
        ("value.smoothness=-0.1", "a number (at least 0)"),
        ("value.smoothness=.inf", "a number (at least 0)"),
        ("learner.lr=.nan", "a number"),
        ("learner.lr='5e-5'", "a number"),
        ("value.shrink=yes", "true or false"),
        ("value.shrink=1", "true or false"),
        ("description=3", "text"),
        ("seed=-1", "a whole number (at least 0 and below 2147483648)"),
        ("threads=0", "a whole number (above 0 and at most 1024) or null"),
        ("budget.seconds=0", "a number (above 0) or null"),
        (
            "checkpoint=3",
            "a section with the keys every, seconds, keep_last, keep_best, asynchronous",
        ),
        ("data.stream.1.weight=11", "a number (above 0 and at most 10)"),
        ("data.stream.0.path=3", "a path"),
        (
            "data.stream=a.jsonl",
            "a list, each item a section with the keys path, weight (items: at least 1)",
        ),
        (
            "data.stream=[]",
            "a list, each item a section with the keys path, weight (items: at least 1)",
        ),
        ("weights.code=much", "a number"),
        ("weights=3", "a section of names, each with a number"),
        ("learner.model=1.5", "a whole number or text or null"),
        (
            "value.estimator=forward",
            "one of one_sided_difference, central_difference, forward_mode, double_backward",
        ),
        ("designer.kind=fild", "field or onehot"),
    ],
)
def test_a_wrong_value_says_what_is_accepted(
    write: Callable[..., Path], override: str, accepted: str
) -> None:
    key, _, value = override.partition("=")
    found = refused(write(GOOD), override)
    assert list(found) == [f"override {key}"]
    problem = found[f"override {key}"]
    assert problem.accepted == accepted
    assert problem.value == shown(parse(value, str)[0])
    assert "Input should" not in problem.message


def test_every_problem_at_once_each_with_its_line(write: Callable[..., Path]) -> None:
    text = GOOD.replace("meta_period: 2", "meta_perod: 2\n  alignment: cosin").replace(
        "description: A toy.\n", ""
    )
    found = refused(
        write(text), "data.stream.0.wieght=2", "foo", "seed=x", "modality=toy", "budget.steps=null"
    )
    assert set(found) == {
        "toy.yaml:6 value.meta_perod",
        "toy.yaml:7 value.alignment",
        "toy.yaml description",
        "override data.stream.0.wieght",
        "override foo",
        "override seed",
        "toy.yaml:3 budget",
    }
    unknown = found["toy.yaml:6 value.meta_perod"]
    assert "did you mean meta_period?" in unknown.message
    assert unknown.value == "2"
    assert unknown.accepted == "the keys " + ", ".join(Value.model_fields)
    assert "did you mean weight?" in found["override data.stream.0.wieght"].message
    assert "did you mean cosine?" in found["toy.yaml:7 value.alignment"].message
    assert "at least one of steps, tokens, flops, seconds" in found["toy.yaml:3 budget"].message
    assert (found["toy.yaml:3 budget"].value, found["toy.yaml:3 budget"].accepted) == ("", "")
    assert found["toy.yaml description"].message == "this key is missing; add it"
    assert found["toy.yaml description"].value == ""


def test_a_known_key_in_the_wrong_place_is_sent_to_its_own(write: Callable[..., Path]) -> None:
    found = refused(write(GOOD), "meta_period=3", "utterly_unknown.x=3", "designer.stream=1")
    assert "did you mean value.meta_period?" in found["override meta_period"].message
    assert "remove it" in found["override utterly_unknown"].message
    assert found["override designer.stream"].accepted == "the keys kind, hidden"


def test_a_check_over_several_sections_is_shown_at_the_key_that_it_names(
    write: Callable[..., Path],
) -> None:
    found = refused(write(GOOD), "evaluate.split=nope")
    problem = found["override evaluate.split"]
    assert (problem.value, problem.accepted) == ('"nope"', "")
    assert problem.message == "evaluate.split is 'nope'; data has ['test']"
    assert list(refused(write(GOOD), "evaluate.split=odd")) == ["toy.yaml"]


def test_a_union_that_lacks_its_kind(write: Callable[..., Path]) -> None:
    found = refused(write(GOOD.replace("{kind: field}", "{hidden: 3}")))
    assert found["toy.yaml:12 designer.kind"].message == "this key is missing; add it"
    assert found["toy.yaml:12 designer.kind"].accepted == "field or onehot"


@pytest.mark.parametrize("given", ["", "modality: vison\n", "modality: 3\n"])
def test_the_modality_is_missing_or_unknown(write: Callable[..., Path], given: str) -> None:
    found = refused(write(GOOD.replace("modality: toy\n", given)))
    (problem,) = found.values()
    assert problem.where.endswith("modality")
    assert problem.accepted == "one of toy, vision"
    assert ("did you mean vision?" in problem.message) == ("vison" in given)


def test_overrides(write: Callable[..., Path]) -> None:
    path = write(GOOD)
    recipe = read(
        path,
        "data.stream.0.weight=2",
        "seed=1",
        "seed=4",
        "evaluate.every=5",
        "learner.betas=[0.8, 0.9]",
    )
    assert recipe.data.stream[0].weight == 2.0
    assert recipe.seed == 4
    assert recipe.evaluate.every == 5
    assert recipe.learner.betas == (0.8, 0.9)
    assert read(path, "budget={tokens: 7}").budget == Budget(tokens=7), (
        "a value replaces the whole section"
    )
    assert read(path, "learner.model=a=b").learner.model == "a=b"
    assert read(path, "learner.model=../shared/data").learner.model == "../shared/data"


@pytest.mark.parametrize(
    ("override", "description"),
    [
        ("budget.steps", "key=value"),
        ("=3", "key=value"),
        ("budget..steps=3", "key=value"),
        ("learner.model=@x", "not valid YAML"),
        ("learner={lr: 1, lr: 2}", "already"),
        ("data.stream.2.weight=1", "is a list"),
        ("data.stream.-1.weight=1", "is a list"),
        ("arm.kind=1", "single value"),
    ],
)
def test_an_override_that_cannot_be_applied(
    write: Callable[..., Path], override: str, description: str
) -> None:
    (problem,) = refused(write(GOOD), override).values()
    assert problem.where.startswith(f"override {override}")
    assert description in problem.message


def test_extends_merges_deeply_and_replaces_lists(write: Callable[..., Path]) -> None:
    write(GOOD, "base.yaml")
    write(
        "extends: ../base.yaml\nvalue: {settle_steps: 3}\ndata: {stream: [{path: c}]}\n",
        "more/middle.yaml",
    )
    path = write("extends: more/middle.yaml\nvalue: {settle_steps: 4}\nbudget: {tokens: 5}\n")
    recipe = read(path)
    assert recipe.value == Value(meta_period=2, settle_steps=4)
    assert recipe.budget == Budget(steps=10, tokens=5)
    assert recipe.data.stream == (Source(path=Path("c")),)
    path = write("extends: base.yaml\nvalue: {smoothness: -1}\n")
    assert "toy.yaml:2 value.smoothness" in refused(path)
    write(GOOD.replace("steps: 10", "steps: ten"), "base.yaml")
    assert "base.yaml:5 budget.steps" in refused(write("extends: base.yaml\n")), (
        "the file that said it"
    )


@pytest.mark.parametrize(
    ("text", "where", "description"),
    [
        ("extends: toy.yaml\n", "toy.yaml:1 extends", "circle"),
        ("extends: other.yaml\n", "other.yaml:2 extends", "circle"),
        ("seed: 1\nextends: [a]\n", "toy.yaml:2 extends", "one other"),
        ("extends: othr.yaml\n", "toy.yaml:1 extends", "did you mean"),
    ],
)
def test_extends_that_leads_nowhere(
    write: Callable[..., Path], text: str, where: str, description: str
) -> None:
    write("seed: 1\nextends: toy.yaml\n", "other.yaml")
    found = refused(write(text))
    assert list(found) == [where]
    assert description in found[where].message


@pytest.mark.parametrize(
    ("text", "where", "description"),
    [
        ("seed: 1\nseed: 2\n", "toy.yaml:2 seed", "line 1"),
        ("value:\n  shrink: true\n  shrink: true\n", "toy.yaml:3 value.shrink", "line 2"),
        ("seed: 1\nbudget: [\n", "toy.yaml:2", "not valid YAML"),
        ("seed: 1\n\tarm: x\n", "toy.yaml:2", "not valid YAML"),
        ("description: a: b\n", "toy.yaml:1", "not valid YAML"),
        ("description: &a [*a]\n", "toy.yaml:1", "contains itself"),
        ("description: !!python/name:os.system\n", "toy.yaml:1", "not valid YAML"),
        ("a: 1\n---\nb: 1\n", "toy.yaml:2", "single document"),
        ("description: !!int abc\n", "toy.yaml:1", "not valid YAML"),
        ("description: !!timestamp x\n", "toy.yaml:1", "not valid YAML"),
        (f"a: {'[' * 5000}\n", "toy.yaml:1", "not valid YAML"),
        (f"seed: {'9' * 5000}\n", "toy.yaml:1", "not valid YAML"),
        ("description: \a\n", "toy.yaml:1", "special characters"),
        ("- a\n", "toy.yaml", "mapping"),
        ("", "toy.yaml", "mapping"),
    ],
)
def test_a_broken_file(write: Callable[..., Path], text: str, where: str, description: str) -> None:
    found = refused(write(text), "foo")
    assert description in found[where].message
    assert "override foo" in found, "the other problems are told as well"


def test_a_file_that_is_not_text_or_not_there(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(GOOD)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(tmp_path / "binary.yaml")["binary.yaml"].message
    (problem,) = refused(tmp_path / "tpy.yaml").values()
    assert f"did you mean {path}?" in problem.message
    assert problem.value == str(tmp_path / "tpy.yaml")
    for name in packaged():
        assert name in problem.accepted
    (folder,) = refused(tmp_path).values()
    assert "this is a folder" in folder.message and str(path) in folder.accepted
    (problem,) = refused("seed=3").values()
    assert "the recipe comes first" in problem.message


def test_a_packaged_recipe_goes_by_its_name(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(GOOD, "demo-toy.yaml")
    monkeypatch.setattr(recipes, "packaged", lambda: {"demo-toy": path})
    assert read("demo-toy") == read(path)
    assert read(write("extends: demo-toy\nseed: 3\n")).seed == 3
    with pytest.raises(UserError, match="did you mean demo-toy"):
        read("demo-tyo")


def test_what_is_dumped_loads_to_the_same_recipe(write: Callable[..., Path]) -> None:
    awkward = [
        "1e5",
        "5e-5",
        "no",
        "010",
        "1:30",
        "null",
        "",
        "naïve: #x",
        "0x1f",
        "2024-01-01",
        "<<",
        "~",
        ".inf",
    ]
    for text in awkward:
        recipe = read(write(GOOD)).model_copy(update={"description": text})
        written = dump(recipe)
        assert read(write(written, "again.yaml")) == recipe
        assert yaml.safe_load(written)["description"] == text, "also for readers of YAML 1.1"
    assert yaml.safe_load(dump(read(write(GOOD))))["value"]["preconditioner_floor"] == 0.1, (
        "defaults are written"
    )


def test_anchors_may_be_used_and_share_nothing(write: Callable[..., Path]) -> None:
    text = GOOD.replace("- {path: a.jsonl}", "- &a {path: a.jsonl, weight: 2}")
    path = write(text.replace("- {path: b.jsonl, weight: 5e-5}", "- *a\n    - {<<: *a, weight: 3}"))
    weights = [source.weight for source in read(path, "data.stream.0.weight=7").data.stream]
    assert weights == [7.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "bomb",
    [
        "\n".join(
            ["a0: &a0 {k0: 1}"]
            + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
        ),
        "\n".join(
            ["a0: &a0 {k0: 1}"]
            + [
                f"a{n}: &a{n} {{<<: *a{n - 1}, {', '.join(f'k{n}x{i}: 1' for i in range(10))}}}"
                for n in range(1, 300)
            ]
        ),
        f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1_000)}]",
    ],
    ids=["merges of merges", "a chain of merges", "long text"],
)
def test_a_few_lines_that_stand_for_much_are_refused_at_once(bomb: str) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match="with anchors written out"):
        parse(bomb, str)
    assert time.process_time() - began < 5  # a second, on a machine that has nothing else to do


def test_listing(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "packaged", lambda: {})
    assert listing(None) == listing(tmp_path / "none") == []
    write("value: {}\n", "a/base.yaml")  # there to be extended
    write(GOOD, "a/toy.yaml")
    write("extends: toy.yaml\ndescription: Another.\n", "a/z.yaml")
    write("a: [\n", "a/broken.yaml")
    broken, toy, another = listing(tmp_path)
    assert toy == {
        "name": str(tmp_path / "a" / "toy.yaml"),
        "modality": "toy",
        "description": "A toy.",
    }
    assert another["description"] == "Another."
    assert broken["description"].startswith("cannot be read: ")
    assert read(toy["name"]).description == "A toy."


def test_every_packaged_recipe_is_listed() -> None:
    assert {row["name"] for row in listing(None)} >= set(packaged())
    assert all(row["modality"] and row["description"] for row in listing(None))


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_key_is_refused_with_its_new_name(write: Callable[..., Path], old: str) -> None:
    """In a file and as an override, and nothing else is said of it."""
    new = RENAMED[old]
    found = refused(write(GOOD), f"{old}=a", *(["description=b"] if old == "says" else []))
    assert f"this key is now {new}" in found[f"override {old}"].message
    assert not any("missing" in problem.message for problem in found.values())


def test_a_renamed_key_of_a_file_is_shown_at_its_line(write: Callable[..., Path]) -> None:
    found = refused(write(GOOD.replace("description:", "says:")))
    assert list(found) == ["toy.yaml:2 says"]


def test_a_folder_of_another_version_is_named_as_such(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = read(write(GOOD))
    (tmp_path / "run").mkdir()
    old = GOOD.replace("description:", "says:")
    (tmp_path / "run" / "recipe.yaml").write_text(old, encoding="utf-8")
    (problem,) = changes(tmp_path / "run", recipe, "name another folder")
    assert "an earlier version" in problem.message and "name another folder" in problem.message


@pytest.mark.parametrize("text", ["x: [" + "1, " * 60_000 + "]", "x" * 20_000_000])
def test_more_than_any_recipe_holds_is_refused_at_once(
    text: str, write: Callable[..., Path]
) -> None:
    began = time.process_time()
    with pytest.raises(UserError, match=r"more than 20000 values|too long for a recipe"):
        recipes.load(write(text), schemas=SCHEMAS)
    assert time.process_time() - began < 5  # a second, on a machine that has nothing else to do
