"""Feedback tasks from a recipe: read, tokenised, weighed, controlled; what is wrong with them; and
the label firewall.
"""

import json

import pytest
import torch
from pydantic import ValidationError

from tests.language.conftest import CONFIGS, tiny_learner
from vpretrain.language.data import word_problems
from vpretrain.language.data.reading import Reader
from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler, Source, Stream, padded
from vpretrain.language.feedback.checkers import CHECKERS
from vpretrain.language.feedback.likelihood import Likelihood, parted
from vpretrain.language.feedback.tasks import encode_tasks, feedback_from, read_tasks
from vpretrain.language.learner.targets import one_hot
from vpretrain.language.recipe.data import Data
from vpretrain.language.recipe.feedback import FeedbackSet
from vpretrain.language.steering.domains import Matched, matched
from vpretrain.method.accumulation import next_batches
from vpretrain.method.directional import ESTIMATORS
from vpretrain.method.feedback import EMAFeedback
from vpretrain.method.roles import Designer, Learned
from vpretrain.method.step import steered_step
from vpretrain.method.value import Alignment
from vpretrain.method.value_estimator import ValueEstimator
from vpretrain.system.errors import UserError

ROWS = 8


@pytest.fixture(scope="module")
def tokenizer():
    return word_problems.tokenizer()


@pytest.fixture
def tasks(tmp_path):
    """One task of each kind, from files; the rows are words of the packaged vocabulary."""
    made = word_problems.problems("feedback", 3 * ROWS, seed=0)
    lines = {"solve": [], "earn": [], "prefer": []}
    for at, row in enumerate(made):
        solution, other = row["solution"], made[at - 1]["solution"]
        lines[list(lines)[at % 3]].append(
            {"q": row["problem"], "a": solution, "b": f"{other} {solution}"}
        )
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = lambda name: {"kind": "jsonl", "path": f"{name}.jsonl", "prompt": "q", "solution": "a"}  # noqa: E731
    return {
        "solve": {"kind": "likelihood", "rows": rows("solve"), "weight": 2.0, "batch_size": 3},
        "earn": {
            "kind": "reward",
            "rows": rows("earn"),
            "checker": "contains",
            "answer": r"= (\d \d)",
            "samples": 4,
            "new_tokens": 5,
        },
        "prefer": {"kind": "preference", "rows": rows("prefer"), "rejected": "b", "beta": 0.5},
    }


def section_of(tasks, **keys):
    section = {"tasks": tasks, "batch_size": 2, "batches": 2, "max_tokens": 64, **keys}
    return FeedbackSet.model_validate_json(json.dumps(section))


def read(section, root, on_bad_row="stop"):
    stream = [{"name": name, "rows": {"kind": "chatter", "rows": 4}} for name in ("talk", "sums")]
    data = Data.model_validate_json(
        json.dumps(
            {
                "root": str(root),
                "window_tokens": 32,
                "batch_size": 2,
                "stream": stream,
                "on_bad_row": on_bad_row,
                "feedback": section.model_dump(mode="json"),
                "evaluation": {},
            }
        )
    )
    reader = Reader(data)
    result, problems = read_tasks(section, reader.rows, ["talk", "sums"])
    return result, [*reader.problems, *problems]


def built(section, root, tokenizer, **settings):
    rows, problems = read(section, root)
    assert not problems, problems
    documents, _ = encode_tasks(section, rows, tokenizer)
    return feedback_from(section, documents, tokenizer, pad_id=0, seed=0, **settings)


def learner_for(tokenizer, monkeypatch):
    monkeypatch.setitem(CONFIGS["llama"], "vocab_size", len(tokenizer))
    return tiny_learner("llama")


def test_three_kinds_of_signal_are_heard_together(tasks, tmp_path, tokenizer, monkeypatch):
    learner = learner_for(tokenizer, monkeypatch)
    section = section_of(tasks, conflict="project", scale="unit")
    feedback = built(section, tmp_path, tokenizer, around=lambda name, task: EMAFeedback(task, 0.5))
    before = torch.get_rng_state()
    result = feedback.gradients(learner)
    assert len(result) == 2 and set(result[0]) == set(learner.aligned)
    assert all(torch.isfinite(piece).all() for gradient in result for piece in gradient.values())
    assert torch.equal(torch.get_rng_state(), before)
    told = feedback.metrics()
    assert {"conflict/solve~earn", "conflict/solve~prefer", "conflict/earn~prefer"} < set(told)
    assert {"feedback/earn/reward", "feedback/earn/informative", "feedback/prefer/preferred"} < set(
        told
    )

    resumed = built(section, tmp_path, tokenizer, around=lambda name, task: EMAFeedback(task, 0.5))
    resumed.load_state_dict(feedback.state_dict())
    for one, other in zip(feedback.gradients(learner), resumed.gradients(learner), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["solve", "earn", "prefer"])
def test_the_labels_reach_the_learner_through_the_designer_alone(
    name, tasks, tmp_path, tokenizer, monkeypatch
):
    """With a designer that is given feedback but does not act on it, wrong labels leave the learner
    as it is, bit for bit; the gradients differ.
    """
    if name == "earn":  # a learner that never earns anything says nothing: pay for what it can do
        monkeypatch.setitem(CHECKERS, "share", lambda pattern: shared_words)
        tasks["earn"] |= {"checker": "share"}
    section = section_of({name: tasks[name]})

    class Deaf(Designer):
        uses_feedback = True

        def baseline_task(self, context):
            return one_hot(context.labels)

        def learn(self, context, value_of):
            return Learned({"gain": float(value_of(context, self.baseline_task(context)).value)})

    def run(wrong_labels):
        learner = learner_for(tokenizer, monkeypatch)
        feedback = built(section, tmp_path, tokenizer, wrong_labels=wrong_labels)
        optimizer = torch.optim.AdamW(learner.model.parameters(), lr=1e-2)
        step = steered_step(
            learner,
            Deaf(),
            feedback,
            ValueEstimator(learner, Alignment("dot"), ESTIMATORS["central_difference"]),
            optimizer,
            period=1,
            preconditioner_floor=0.1,
            clip_norm=1.0,
            guard_window=0,
        )
        documents = next(
            iter(encode_tasks(section, read(section, tmp_path)[0], tokenizer)[0].values())
        ).documents
        stream = Stream(
            [Source("s", documents, 1.0)], batch_size=2, window_tokens=64, seed=0, pad_id=0
        )
        gains = [step(next_batches(stream, 1), 1e-2)["gain"] for _ in range(2)]
        return learner.model.state_dict(), gains

    (right, gains), (wrong, others) = run(False), run(True)
    assert all(torch.equal(value, wrong[key]) for key, value in right.items())
    assert gains != others


def shared_words(row, completion):
    return float(len(set(row.text.split()) & set(completion.split())))


def test_domains_are_matched_from_the_recipe(tasks, tmp_path, tokenizer, monkeypatch):
    learner = learner_for(tokenizer, monkeypatch)
    tasks["solve"]["sources"] = ["sums"]
    section = section_of(tasks)
    sources = {name: task.sources for name, task in section.named().items()}
    view, feedback = matched(learner, built(section, tmp_path, tokenizer), sources)
    assert isinstance(view, Matched) and view.of_source == {"sums": "solve"}
    for gradient in feedback.gradients(view):
        assert set(gradient) == set(view.aligned) and len(gradient) == 2 * len(learner.aligned)
    tasks["solve"]["sources"] = ["summs"]
    _, problems = read(section_of(tasks), tmp_path)
    assert [(p.where, p.value) for p in problems] == [
        ("data.feedback.tasks.solve.sources", "summs")
    ]


def test_a_single_set_of_rows_is_one_task_of_likelihood(tmp_path, tokenizer, monkeypatch):
    section = FeedbackSet.model_validate_json(
        '{"rows": {"kind": "word_problems", "split": "feedback", "rows": 12}, "batch_size": '
        '4, "max_tokens": 64}'
    )
    (gradient, _) = built(section, tmp_path, tokenizer).gradients(
        learner_for(tokenizer, monkeypatch)
    )
    assert max(float(piece.abs().max()) for piece in gradient.values()) > 0
    _, problems = read(section.model_copy(update={"batch_size": 7}), tmp_path)
    assert [(p.where, p.value) for p in problems] == [("data.feedback.batch_size", "7")]


def rewrite(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(at, row)) + "\n" for at, row in enumerate(rows)))


def test_rows_without_an_answer_are_named(tasks, tmp_path):
    rewrite(
        tmp_path / "earn.jsonl",
        lambda at, row: row | ({"a": "i do not know"} if at in (2, 5) else {}),
    )
    _, problems = read(section_of(tasks), tmp_path)
    assert [p.where.rpartition(":")[2] for p in problems] == ["3", "6"]
    assert all(
        "data.feedback.tasks.earn.answer" in p.message and p.value == "i do not know"
        for p in problems
    )


def test_pairs_that_prefer_nothing_are_named(tasks, tmp_path):
    rewrite(tmp_path / "prefer.jsonl", lambda at, row: row | {"b": row["a"]})
    _, problems = read(section_of(tasks), tmp_path)
    assert (
        len(problems) == 6
        and "the same" in problems[0].message
        and problems[0].where.endswith("prefer.jsonl:1")
    )
    assert "3 more rows" in problems[-1].message


def test_an_unknown_checker_is_answered_with_those_that_there_are(tasks, tmp_path):
    tasks["earn"]["checker"] = "exakt"
    _, problems = read(section_of(tasks), tmp_path)
    assert [(p.where, p.value, p.accepted) for p in problems] == [
        ("data.feedback.tasks.earn.checker", "exakt", ", ".join(CHECKERS))
    ]


def test_a_missing_column_is_answered_with_those_that_there_are(tasks, tmp_path):
    tasks["prefer"]["rejected"] = "worse"
    _, problems = read(section_of(tasks), tmp_path)
    assert problems[0].value == "'worse'" and problems[0].accepted == "'q', 'a', 'b'"
    assert "set data.feedback.tasks.prefer.rejected" in problems[0].message


def test_a_bad_row_of_a_pair_can_be_skipped_whole(tasks, tmp_path):
    rewrite(tmp_path / "prefer.jsonl", lambda at, row: row | ({"b": None} if at == 1 else {}))
    assert read(section_of(tasks), tmp_path)[1]
    result, problems = read(section_of(tasks), tmp_path, on_bad_row="skip")
    assert not problems and len(result["prefer"].rows) == ROWS - 1
    assert set(result["prefer"].rejected) == {row.origin for row in result["prefer"].rows}


def test_an_empty_task_and_too_few_rows(tasks, tmp_path):
    (tmp_path / "solve.jsonl").write_text("")
    _, problems = read(section_of(tasks), tmp_path)
    assert [p.where for p in problems] == ["data.feedback.tasks.solve.rows"]
    tasks["earn"]["batch_size"] = 5
    _, problems = read(section_of(tasks), tmp_path)
    assert ("data.feedback.tasks.earn.batch_size", "5") in [(p.where, p.value) for p in problems]


def test_prompts_longer_than_max_tokens_are_counted_and_refused_where_too_few_are_left(
    tasks, tmp_path, tokenizer
):
    long = "there are 1 2 pens on the table . " * 10
    rewrite(tmp_path / "solve.jsonl", lambda at, row: row | ({"q": long} if at < 1 else {}))
    rewrite(tmp_path / "prefer.jsonl", lambda at, row: row | ({"q": long} if at < 2 else {}))
    section = section_of(tasks)
    rows, problems = read(section, tmp_path)
    assert not problems
    _, counts = encode_tasks(section, rows, tokenizer)
    assert counts["solve"].dropped == 1 and counts["prefer"].dropped == 2
    rewrite(tmp_path / "solve.jsonl", lambda at, row: row | {"q": long})
    rows, _ = read(section, tmp_path)
    with pytest.raises(
        UserError, match=r"data\.feedback\.tasks\.solve\.batch_size: of 8 rows 8 do not fit"
    ):
        encode_tasks(section, rows, tokenizer)


def test_answers_that_are_the_same_once_cut_prefer_nothing_and_are_counted(
    tasks, tmp_path, tokenizer
):
    rewrite(
        tmp_path / "prefer.jsonl",
        lambda at, row: {"q": "drill :", "a": "1 " * 70 + str(at), "b": "1 " * 75},
    )
    section = section_of({"prefer": tasks["prefer"]})
    rows, _ = read(section, tmp_path)
    with pytest.raises(UserError, match="of 8 rows 8"):
        encode_tasks(section, rows, tokenizer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": {"kind": "chatter", "rows": 3}}, "either `rows`"),
        ({"tasks": {}}, "either `rows`"),
        ({"tasks": {"a~b": "solve"}}, "letters, digits"),
        ({"tasks": {"x": {"kind": "hope"}}}, "'likelihood', 'preference', 'reward'"),
        ({"tasks": {"x": {"kind": "reward", "answer": "no group"}}}, "exactly one group"),
        ({"tasks": {"x": {"kind": "reward", "answer": "(open"}}}, "no regular expression"),
        ({"tasks": {"x": {"kind": "reward", "samples": 1}}}, "greater than or equal to 2"),
        ({"tasks": {"x": {"kind": "preference", "rejected": "a"}}}, "column of the chosen"),
        (
            {"tasks": {"x": {"kind": "preference", "rows": {"kind": "word_problems", "rows": 3}}}},
            "from a table",
        ),
    ],
)
def test_sections_that_make_no_sense_are_refused(change, said, tasks):
    kinds = {task["kind"]: task for task in tasks.values()} | {"hope": tasks["solve"]}
    if "tasks" in change:
        made = {
            n: tasks[t] if isinstance(t, str) else kinds[t["kind"]] | t
            for n, t in change["tasks"].items()
        }
        change = {"tasks": made}
    with pytest.raises(ValidationError, match=said):
        section_of(**{"tasks": tasks, **change})


def test_feedback_gradient_is_that_of_the_mean_over_all_solution_tokens():
    """Chunks of rows change the padding, not the mean (eq. 38)."""
    learner = tiny_learner(dtype=torch.float64)
    documents = [
        Document(list(range(3, 3 + size)), [at >= 2 for at in range(size)], f"fb:{size}", "fb")
        for size in range(4, 30)
    ]
    batch = padded(documents, pad_id=0)
    losses, _ = learner.token_losses(batch)
    expected = torch.autograd.grad(losses.mean(), list(learner.aligned.values()))
    (result,) = Likelihood(
        [Sampler(documents, batch_size=len(documents), seed=0, pad_id=0)]
    ).gradients(learner)
    for got, want in zip(result.values(), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_feedback_batches_share_no_rows():
    """Their agreement would otherwise be that of the same rows used twice."""
    documents = [Document([1, 2, at], [False, False, True], f"fb:{at}", "fb") for at in range(20)]
    samplers = parted(documents, 2, batch_size=5, seed=0, pad_id=0)
    rows = [
        {document.origin for _ in range(4) for document in sampler.draw()} for sampler in samplers
    ]
    assert all(len(each) == 10 for each in rows) and not rows[0] & rows[1]
