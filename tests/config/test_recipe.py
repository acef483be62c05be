"""A recipe's keys and values: read typed, overridden, refused where they are, and dumped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tests.config.toy import GOOD, Source, read, refused
from vpretrain.config.problems import shown
from vpretrain.config.recipe import Budget, Value, dump
from vpretrain.config.renamed import RENAMED
from vpretrain.config.yaml_places import parse


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
    result = refused(write(GOOD), override)
    assert list(result) == [f"override {key}"]
    problem = result[f"override {key}"]
    assert problem.accepted == accepted
    assert problem.value == shown(parse(value, str)[0])
    assert "Input should" not in problem.message


def test_every_problem_at_once_each_with_its_line(write: Callable[..., Path]) -> None:
    text = GOOD.replace("meta_period: 2", "meta_perod: 2\n  alignment: cosin").replace(
        "description: A toy.\n", ""
    )
    result = refused(
        write(text), "data.stream.0.wieght=2", "foo", "seed=x", "modality=toy", "budget.steps=null"
    )
    assert set(result) == {
        "toy.yaml:6 value.meta_perod",
        "toy.yaml:7 value.alignment",
        "toy.yaml description",
        "override data.stream.0.wieght",
        "override foo",
        "override seed",
        "toy.yaml:3 budget",
    }
    unknown = result["toy.yaml:6 value.meta_perod"]
    assert "did you mean meta_period?" in unknown.message
    assert unknown.value == "2"
    assert unknown.accepted == "the keys " + ", ".join(Value.model_fields)
    assert "did you mean weight?" in result["override data.stream.0.wieght"].message
    assert "did you mean cosine?" in result["toy.yaml:7 value.alignment"].message
    assert "at least one of steps, tokens, flops, seconds" in result["toy.yaml:3 budget"].message
    assert (result["toy.yaml:3 budget"].value, result["toy.yaml:3 budget"].accepted) == ("", "")
    assert result["toy.yaml description"].message == "this key is missing; add it"
    assert result["toy.yaml description"].value == ""


def test_a_known_key_in_the_wrong_place_is_sent_to_its_own(write: Callable[..., Path]) -> None:
    result = refused(write(GOOD), "meta_period=3", "utterly_unknown.x=3", "designer.stream=1")
    assert "did you mean value.meta_period?" in result["override meta_period"].message
    assert "remove it" in result["override utterly_unknown"].message
    assert result["override designer.stream"].accepted == "the keys kind, hidden"


def test_a_check_over_several_sections_is_shown_at_the_key_that_it_names(
    write: Callable[..., Path],
) -> None:
    result = refused(write(GOOD), "evaluate.split=nope")
    problem = result["override evaluate.split"]
    assert (problem.value, problem.accepted) == ('"nope"', "")
    assert problem.message == "evaluate.split is 'nope'; data has ['test']"
    assert list(refused(write(GOOD), "evaluate.split=odd")) == ["toy.yaml"]


def test_a_union_that_lacks_its_kind(write: Callable[..., Path]) -> None:
    result = refused(write(GOOD.replace("{kind: field}", "{hidden: 3}")))
    assert result["toy.yaml:12 designer.kind"].message == "this key is missing; add it"
    assert result["toy.yaml:12 designer.kind"].accepted == "field or onehot"


@pytest.mark.parametrize("given", ["", "modality: vison\n", "modality: 3\n"])
def test_the_modality_is_missing_or_unknown(write: Callable[..., Path], given: str) -> None:
    result = refused(write(GOOD.replace("modality: toy\n", given)))
    (problem,) = result.values()
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
    for text in ("a#1", "'a #1'", '"a #1"'):
        assert read(path, f"learner.model={text}").learner.model == text.strip("'\""), "no comment"
    assert read(path, "learner.model=../shared/data").learner.model == "../shared/data"


@pytest.mark.parametrize(
    ("override", "description"),
    [
        ("budget.steps", "key=value"),
        ("=3", "key=value"),
        ("budget..steps=3", "key=value"),
        ("learner.model=@x", "not valid YAML"),
        ("learner.model=#1", "reads what follows a # as a comment"),
        ("description=ours # theirs", "put the whole value in quotes"),
        ("value={meta_period: 3}  # often", "comment"),
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


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_key_is_refused_with_its_new_name(write: Callable[..., Path], old: str) -> None:
    """In a file and as an override, and nothing else is said of it."""
    new = RENAMED[old]
    result = refused(write(GOOD), f"{old}=a", *(["description=b"] if old == "says" else []))
    assert f"this key is now {new}" in result[f"override {old}"].message
    assert not any("missing" in problem.message for problem in result.values())


def test_a_renamed_key_of_a_file_is_shown_at_its_line(write: Callable[..., Path]) -> None:
    result = refused(write(GOOD.replace("description:", "says:")))
    assert list(result) == ["toy.yaml:2 says"]
