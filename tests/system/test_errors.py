"""Problems as people see them."""

import pytest

from vpretrain.system.errors import Problem, UserError, abbreviated, renamed, user_error


def test_a_problem_names_place_value_and_what_is_accepted():
    problem = Problem("budget.steps", "-1", "1 or more", "a run needs steps")
    assert str(problem).splitlines() == [
        "budget.steps: a run needs steps",
        "    got       -1",
        "    accepted  1 or more",
    ]
    assert str(Problem("a", "", "", "b")) == "a: b"


def test_nothing_is_longer_than_anybody_reads():
    long = "x" * 10_000_000
    problem = Problem(long, long, long, "start " + long + " end")
    assert len(str(problem)) < 8000 and "start" in problem.message and "end" in problem.message
    short = "y" * 400
    assert Problem(short, short, "", "z").value == short


def test_a_name_that_no_terminal_takes_can_be_shown():
    assert str(Problem("\udcff", "", "", "m")) == "\\udcff: m"


def test_errors_of_a_shared_part_speak_of_the_callers_keys():
    with pytest.raises(UserError) as caught, renamed({"--data-root": "data.root"}):
        raise user_error("--data-root", "there is no such folder", value=3)
    [problem] = caught.value.problems
    assert (problem.where, problem.value) == ("data.root", "3")


def test_names_are_abbreviated():
    assert abbreviated("abc") == "a, b, c"
    assert abbreviated("abcd", most=2) == "a, b, ... and 2 more"
