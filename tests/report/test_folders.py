from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.synthetic import comparison, run_folder
from vpretrain.report.folders import read
from vpretrain.system.errors import UserError


def test_a_comparison(tmp_path: Path) -> None:
    section = read([comparison(tmp_path / "c")])[0]
    assert section.kind == "comparison"
    assert section.arms == ["onehot", "closed_form", "random_feedback"]
    assert section.seeds == [0, 1, 2]
    assert section.lead == "test/nll"
    assert section.metrics == {"test/nll": False, "test/pass@1": True}
    assert all(len(run.records) == 60 for run in section.runs)
    assert section.notes == []


def test_the_same_folder_twice_is_one(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    assert len(read([folder, tmp_path / "." / "c"])) == 1


def test_an_unfinished_comparison_shows_what_has_ended_and_nothing_paired(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", changes={"arm": "onehot"})
    (folder / "compare.json").unlink()
    (folder / "runs" / "closed_form-2.json").unlink()
    section = read([folder])[0]
    assert section.kind == "unfinished"
    assert section.arms[0] == "onehot"
    assert len(section.runs) == 8
    assert section.summaries["closed_form"]["test/nll"].n == 2
    assert section.paired == {}
    assert section.match == "steps"
    assert "goes on where it stopped" in section.notes[0]


def test_an_unfinished_comparison_without_a_single_run_says_so(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    (folder / "compare.json").unlink()
    for path in (folder / "runs").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no run of this comparison has ended"):
        read([folder])


def test_run_folders_of_one_recipe_share_a_section(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path / "a"),
        run_folder(tmp_path / "b", seed=1),
        run_folder(tmp_path / "c", arm="onehot"),
    ]
    (section,) = read(folders)
    assert section.kind == "runs"
    assert [(run.arm, run.entry.seed) for run in section.runs] == [
        ("closed_form", 0),
        ("closed_form", 1),
        ("onehot", 0),
    ]
    assert section.paired == {}


def test_runs_of_two_arms_share_a_section_though_each_has_a_designer_of_its_own(
    tmp_path: Path,
) -> None:
    """`train RECIPE arm=A` and `train RECIPE arm=B` exchange the section `designer`."""
    mine, others = {"kind": "closed_form", "tilt": 0.4}, {"kind": "token_weights", "tilt": 0.4}
    a = run_folder(tmp_path / "a", designer=mine, designers={})
    b = run_folder(
        tmp_path / "b", arm="token_weights", designer=others, designers={"closed_form": mine}
    )
    assert len(read([a, b])) == 1
    with pytest.raises(UserError, match=r"designer\.tilt"):
        read([a, run_folder(tmp_path / "c", seed=1, designer=mine | {"tilt": 1.0}, designers={})])


def test_a_run_that_goes_on_is_shown_as_of_its_last_whole_line(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", finished=False)
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 61, "tok')
    (section,) = read([folder, run_folder(tmp_path / "b", seed=1)])
    assert section.runs[0].entry.steps == 60
    assert not section.runs[0].finished
    assert section.runs[0].step0 == section.runs[1].step0, "one recipe is one checkpoint"
    assert any("line 61" in note and "cut off" in note for note in section.notes)


def test_two_folders_of_the_same_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="both runs of arm closed_form, seed 0"):
        read([run_folder(tmp_path / "a"), run_folder(tmp_path / "b")])


def test_a_resumed_runs_repeated_step_counts_once(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    again = json.loads(lines[10]) | {"loss": 7.0}
    (folder / "metrics.jsonl").write_text(
        "\n".join([*lines[:11], json.dumps(again), *lines[11:]]) + "\n"
    )
    result = read([folder])[0].runs[0].records
    assert [record["step"] for record in result] == list(range(1, 61))
    assert result[10]["loss"] == 7.0


def test_metrics_that_were_lost_leave_the_result_in_the_tables(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    (folder / "runs" / "onehot-1.metrics.jsonl").unlink()
    section = read([folder])[0]
    assert len(section.runs) == 9
    assert section.notes == [
        "There are no metrics of onehot, seed 1: it is in the tables, not in the curves."
    ]


def test_an_arms_name_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    table = json.loads((folder / "compare.json").read_text())
    (tmp_path / "secret-0.metrics.jsonl").write_text("not ours\n")
    for entry in table["runs"]:
        entry["arm"] = "../../secret"
    (folder / "compare.json").write_text(json.dumps(table))
    assert all(not run.records for run in read([folder])[0].runs)


def test_folders_of_different_recipes_are_refused_by_name(tmp_path: Path) -> None:
    a = comparison(tmp_path / "a")
    b = comparison(tmp_path / "b", changes={"learner": {"model": "made-up", "learning_rate": 1e-4}})
    with pytest.raises(UserError) as caught:
        read([a, b])
    said = str(caught.value)
    assert (
        str(a) in said
        and str(b) in said
        and "learner.learning_rate: 5e-05" in said
        and "0.0001" in said
    )


def test_arm_seed_and_budget_may_differ(tmp_path: Path) -> None:
    other = {
        "arm": "closed_form",
        "seed": 5,
        "budget": {"steps": 9, "tokens": None, "seconds": None},
    }
    a, b = comparison(tmp_path / "a"), comparison(tmp_path / "b", changes=other)
    assert [section.kind for section in read([a, b, run_folder(tmp_path / "r")])] == [
        "comparison",
        "comparison",
        "runs",
    ]


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:-40])


def broken_line(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"step": 3, "tok', *lines[3:]]) + "\n")


def no_tokens(path: Path) -> None:
    lines = path.read_text().splitlines()
    record = json.loads(lines[4])
    del record["tokens"]
    path.write_text("\n".join([*lines[:4], json.dumps(record), *lines[5:]]) + "\n")


def not_text(path: Path) -> None:
    path.write_bytes(b"{}\n\xff\xfe")


def no_verdict(path: Path) -> None:
    path.write_text(path.read_text().replace('"verdict": "better"', '"verdict": "great"', 1))


@pytest.mark.parametrize(
    ("name", "damage", "where", "description"),
    [
        ("compare.json", cut, "compare.json:{last}", "half-written"),
        ("compare.json", lambda path: path.write_text(""), "compare.json:1", "empty"),
        ("compare.json", not_text, "compare.json:2", "not text"),
        (
            "compare.json",
            lambda path: path.write_text('{\n "recipe": 3\n}'),
            "compare.json:2 recipe",
            "string",
        ),
        ("compare.json", lambda path: path.write_text("[" * 100_000), "compare.json:1", "damaged"),
        (
            "compare.json",
            no_verdict,
            "compare.json:{verdict} paired.closed_form.test/nll.verdict",
            "better",
        ),
        ("recipe.yaml", lambda path: path.write_text("a: [1\nb: }"), "recipe.yaml:2", "YAML"),
        ("recipe.yaml", lambda path: path.write_text("- 1"), "recipe.yaml:1", "no recipe"),
        ("recipe.yaml", lambda path: path.unlink(), "recipe.yaml", "missing"),
        ("runs/onehot-0.metrics.jsonl", broken_line, "runs/onehot-0.metrics.jsonl:3", "not JSON"),
        (
            "runs/onehot-0.metrics.jsonl",
            no_tokens,
            "runs/onehot-0.metrics.jsonl:5",
            "no number for tokens",
        ),
        (
            "runs/onehot-0.metrics.jsonl",
            lambda p: p.write_text("3\n"),
            "onehot-0.metrics.jsonl:1",
            "no number for step",
        ),
    ],
)
def test_damaged_files_are_named_with_their_line(
    tmp_path: Path, name: str, damage: object, where: str, description: str
) -> None:
    folder = comparison(tmp_path / "c")
    assert callable(damage)
    damage(folder / name)
    text = (folder / name).read_text(errors="replace") if (folder / name).is_file() else ""
    lines = text.splitlines()
    verdict = next((number for number, line in enumerate(lines, 1) if "great" in line), 0)
    with pytest.raises(UserError) as caught:
        read([folder])
    said = str(caught.value)
    assert where.format(last=len(lines), verdict=verdict) in said
    assert description in said
    assert caught.value.exit_code == 2


def test_a_half_written_run_of_an_unfinished_comparison_says_what_to_remove(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    (folder / "compare.json").unlink()
    cut(folder / "runs" / "onehot-0.json")
    with pytest.raises(UserError, match="remove this file and run the same"):
        read([folder])


@pytest.mark.parametrize("made", ["missing", "empty", "file"])
def test_what_holds_no_results_is_refused(tmp_path: Path, made: str) -> None:
    path = tmp_path / made
    if made == "empty":
        path.mkdir()
    if made == "file":
        path.write_text("")
    with pytest.raises(UserError, match=r"no such folder|neither a comparison nor a run"):
        read([path])
    with pytest.raises(UserError, match="at least one"):
        read([])
