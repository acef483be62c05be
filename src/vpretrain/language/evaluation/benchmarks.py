"""The benchmarks: required columns, prompt, and how answers are extracted and judged, each with a
version.

Any change of prompt, stop strings, extraction or judgement raises the version; scores of different
versions are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vpretrain.language.data.rows import Row
from vpretrain.language.evaluation import extraction, sandbox
from vpretrain.language.evaluation.equivalence import same_mathematics, same_quantity, same_within
from vpretrain.language.evaluation.wording import PLAIN, Wording
from vpretrain.system.errors import Problem

Extract = Callable[[str], str | None]
Judge = Callable[[str, str], bool]


@dataclass(frozen=True)
class Item:
    """One problem.

    Args:
        prompt: the complete prompt.
        expected: the answer: a number, a letter, or mathematics; for programs, the assertions.
        choices: continuations of the prompt to choose from by likelihood; empty if the model
            generates its answer.
        origin: ``file:line`` of the row.
        row: the row as training reads it, if its solution's likelihood is scored.
    """

    prompt: str
    expected: str
    choices: tuple[str, ...] = ()
    origin: str = ""
    row: Row | None = None


@dataclass(frozen=True)
class Hub:
    """The location of a benchmark on the Hugging Face hub.

    Args:
        path: id of the data set.
        name: its configuration; None if it has only one, or with ``each_configuration``.
        splits: the splits; several are reported separately.
        each_configuration: whether every configuration is reported separately.
    """

    path: str
    name: str | None
    splits: tuple[str, ...] = ("test",)
    each_configuration: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Args:
        name: name on the command line.
        version: see the module docstring.
        prompt: template of the prompt, with the fields of :attr:`fields`.
        columns: required columns of a row, each with a short description.
        fields: maps a row to the fields of the prompt.
        expected: maps a row to the answer (:attr:`Item.expected`).
        extract: functions that extract the answer from a completion, by name (``strict``,
            ``flexible``); empty for multiple choice.
        judge: ``(expected, answer) -> bool``, whether the answer is right.
        choices: continuations of every prompt; the most likely one is the answer.
        stop: a completion ends before the first of these strings.
        new_tokens: maximum number of generated tokens.
        files: paths of the rows in the data folder, without ``.jsonl`` or ``.parquet``.
        hub: location on the hub; None if there is no single one.
        runs_code: whether judging executes generated code.
        trained: maps a row and its origin to the row as training reads it, if its solution's
            likelihood is scored too.
        max_tokens: tokens at which such a row is cut; None for no limit but the model's.
    """

    name: str
    version: int
    prompt: str
    columns: Mapping[str, str]
    fields: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    expected: Callable[[Mapping[str, Any]], str]
    extract: Mapping[str, Extract] = field(default_factory=dict)
    judge: Judge = same_mathematics
    choices: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    new_tokens: int = 512
    files: tuple[str, ...] = ()
    hub: Hub | None = None
    runs_code: bool = False
    trained: Callable[[Mapping[str, Any], str], Row] | None = None
    max_tokens: int | None = None

    def item(self, row: Mapping[str, Any], origin: str) -> Item:
        """The problem in a row.

        Raises:
            KeyError, TypeError, ValueError, IndexError: the row does not fit this benchmark.
        """
        prompt = self.prompt.format_map(self.fields(row))
        trained = self.trained(row, origin) if self.trained else None
        return Item(prompt, self.expected(row), self.choices, origin, trained)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r} is {'empty' if value in ('', None) else 'not text'}")
    return value


def _same(*columns: str) -> Callable[[Mapping[str, Any]], Mapping[str, str]]:
    return lambda row: {column: _text(row, column).strip() for column in columns}


def _gsm8k_answer(row: Mapping[str, Any]) -> str:
    answer = extraction.number_after_hashes(_text(row, "answer"))
    if answer is None:
        raise ValueError("column 'answer' has no number after ####")
    return answer


LETTERS = "ABCD"


def _mmlu_fields(row: Mapping[str, Any]) -> Mapping[str, str]:
    options = list(row["choices"])
    if len(options) != len(LETTERS):
        raise ValueError(f"column 'choices' holds {len(options)} options; accepted: {len(LETTERS)}")
    options_text = "\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)
    )
    subject = str(row.get("subject") or "general knowledge").replace("_", " ")
    return {"question": _text(row, "question").strip(), "options": options_text, "subject": subject}


def _mmlu_answer(row: Mapping[str, Any]) -> str:
    answer = row["answer"]
    if isinstance(answer, str) and answer in LETTERS and len(answer) == 1:
        return answer
    if not isinstance(answer, int) or not 0 <= answer < len(LETTERS):
        raise ValueError(f"column 'answer' is {answer!r}; accepted: 0 to 3, or a letter A to D")
    return LETTERS[answer]


def _mbpp_fields(row: Mapping[str, Any]) -> Mapping[str, str]:
    return {"text": _text(row, "text").strip(), "tests": "\n".join(row["test_list"])}


def _mbpp_tests(row: Mapping[str, Any]) -> str:
    if not row["test_list"]:
        raise ValueError("column 'test_list' is empty")
    return "\n".join([row.get("test_setup_code") or "", *row["test_list"]])


def _program_passes(tests: str, program: str) -> bool:
    return sandbox.passes(program, tests=tests)


def _boxed_answer(row: Mapping[str, Any]) -> str:
    answer = extraction.boxed(_text(row, "solution"))
    if answer is None:
        raise ValueError("column 'solution' has no \\boxed{} that closes")
    return answer


def _omega_fields(row: Mapping[str, Any]) -> Mapping[str, str]:
    questions = [turn["content"].strip() for turn in row["messages"] if turn["role"] == "user"]
    if not any(questions):
        raise ValueError("column 'messages' has no turn of the user")
    return {"messages": "\n\n".join(questions)}


_MATH_PROMPT = (
    "Problem: {problem}\n"
    "Solve it step by step, and end with the final answer in \\boxed{{}}.\n"
    "Solution:"
)
_MATH_WAYS: Mapping[str, Extract] = {"strict": extraction.boxed, "flexible": extraction.any_answer}

GSM8K = Benchmark(
    name="gsm8k",
    version=2,
    prompt="Question: {question}\n"
    "Work it out step by step, and end with one line that holds the final number alone after "
    '"#### ".\n'
    "Answer:",
    columns={"question": "the problem", "answer": "the solution, which ends in `#### NUMBER`"},
    fields=_same("question"),
    expected=_gsm8k_answer,
    extract={"strict": extraction.number_after_hashes, "flexible": extraction.any_number},
    judge=same_quantity,
    stop=("\nQuestion:",),
    new_tokens=256,
    files=("gsm8k/test", "gsm8k"),
    hub=Hub("openai/gsm8k", "main"),
)
MATH500 = Benchmark(
    name="math500",
    version=2,
    prompt=_MATH_PROMPT,
    columns={"problem": "the problem", "answer": "the final answer, in LaTeX"},
    fields=_same("problem"),
    expected=lambda row: _text(row, "answer"),
    extract=_MATH_WAYS,
    stop=("\nProblem:",),
    files=("math500/test", "math500"),
    hub=Hub("HuggingFaceH4/MATH-500", None),
)
MATH = Benchmark(
    name="math",
    version=2,
    prompt=_MATH_PROMPT,
    columns={"problem": "the problem", "solution": "the solution, its answer in a box"},
    fields=_same("problem"),
    expected=_boxed_answer,
    extract=_MATH_WAYS,
    stop=("\nProblem:",),
    new_tokens=1024,
    files=("math/test", "math"),
)
OMEGA = Benchmark(  # v1 A.4 extracts like `flexible`; in and out of distribution are separate parts
    name="omega",
    version=2,
    prompt="Solve the problem step by step, and give nothing as the final answer but one "
    "\\boxed{{answer}}.\n\n{messages}\n\nAnswer:",
    columns={
        "messages": "a list of turns, each with `role` and `content`",
        "ground_truth": "the final answer",
    },
    fields=_omega_fields,
    expected=lambda row: str(row["ground_truth"]).strip(),
    extract={"strict": extraction.first_box, "flexible": extraction.first_box_or_end},
    judge=same_within,
    files=("omega/test", "omega"),
    hub=Hub("allenai/omega-explorative", None, ("test_in", "test_out"), each_configuration=True),
)
MMLU = Benchmark(
    name="mmlu",
    version=1,
    prompt="A multiple-choice question about {subject}.\n\n{question}\n{options}\nAnswer:",
    columns={
        "question": "the question",
        "choices": "a list of four options",
        "answer": "0 to 3 (or A to D)",
    },
    fields=_mmlu_fields,
    expected=_mmlu_answer,
    choices=tuple(f" {letter}" for letter in LETTERS),
    files=("mmlu/test", "mmlu"),
    hub=Hub("cais/mmlu", "all"),
)
MBPP = Benchmark(
    name="mbpp",
    version=1,
    prompt="Write a Python function for this task. These assertions have to "
    "hold:\n{tests}\n\nTask: "
    "{text}\nPython code:\n",
    columns={
        "text": "the task",
        "test_list": "a list of assertions (`test_setup_code` goes before them)",
    },
    fields=_mbpp_fields,
    expected=_mbpp_tests,
    extract={"strict": extraction.as_written, "flexible": extraction.code},
    judge=_program_passes,
    stop=("\nTask:", "\nassert "),
    runs_code=True,
    files=("mbpp/test", "mbpp"),
    hub=Hub("google-research-datasets/mbpp", "full"),
)

BENCHMARKS: Mapping[str, Benchmark] = {
    each.name: each for each in (GSM8K, MATH500, MATH, MMLU, MBPP, OMEGA)
}


def own(
    name: str, *, prompt: str, solution: str, answer: str | None, wording: Wording = PLAIN
) -> Benchmark:
    """A benchmark over a user's rows: prompts as in training, scored by likelihood and answer.

    ``strict`` extracts the answer as the solution marks it: by the given expression or, without
    one, after ``####``, in a box, or after "the answer is", or the whole text if nothing is marked.
    ``flexible`` also accepts the last number, or the whole text.

    Args:
        name: name of the task in results.
        prompt: column of the prompt, unless a template or format reads columns of its own.
        solution: column of the solution, unless a format reads columns of its own.
        answer: regular expression with one group, whose last match in a solution is the answer.
        wording: how rows are worded in training.
    """
    columns = wording.columns(prompt, solution)
    marked: Extract = (
        extraction.final_answer
        if answer is None
        else partial(extraction.plain_match, pattern=answer)
    )

    def strict(text: str) -> str | None:
        return marked(text) or (None if answer else extraction.as_written(text))

    def flexible(text: str) -> str | None:
        return marked(text) or extraction.any_answer(text) or extraction.as_written(text)

    def trained(cells: Mapping[str, Any], origin: str = "") -> Row:
        row = columns.row(cells, origin)
        if isinstance(row, Problem):
            raise ValueError(row.message)
        return row

    def expected(cells: Mapping[str, Any]) -> str:
        solved = strict(trained(cells).text)
        if solved is None:
            raise ValueError(f"the answer's expression {answer!r} matches nothing in the solution")
        return solved

    separator = columns.separator
    return Benchmark(
        name=name,
        version=4,
        prompt=f"{{prompt}}{separator.replace('{', '{{').replace('}', '}}')}",
        columns={
            column: _MEANINGS.get(role, "as in the run's rows")
            for column, role in columns.named.items()
        },
        fields=lambda cells: {"prompt": trained(cells).prompt.removesuffix(separator)},
        expected=expected,
        extract={"strict": strict, "flexible": flexible},
        trained=trained,
        max_tokens=wording.max_tokens,
        new_tokens=256,
    )


_MEANINGS = {"prompt": "what is given", "solution": "what follows, with the answer"}
