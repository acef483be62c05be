"""Golden texts of the row formats: a version, once released, never changes."""

import json
from dataclasses import replace

import pytest

from vpretrain.language.data.formats import FORMATS, ChatColumns, FormatColumns, without_fences
from vpretrain.language.data.rows import Row
from vpretrain.system.errors import Problem

QUESTIONS, ANSWERS = (
    ("question", "query", "text", "problem"),
    ("answer", "response", "code", "solution"),
)
CODE = "def add(a, b):\n    return a + b"
GOLDEN = [
    (
        "gsm8k@1",
        {
            "question": "Ann has 3 pens and buys 1,231. How many?",
            "answer": "3 + 1231 = <<3+1231=1234>>1234\n####  1,234\n",
        },
        "Question: Ann has 3 pens and buys 1,231. How many?\nAnswer:",
        "3 + 1231 = <<3+1231=1234>>1234\n#### 1,234",
    ),
    (
        "qa@1",
        {"question": "2 + 2?", "answer": "It is 4.\n"},
        "Question: 2 + 2?\nAnswer:",
        "It is 4.",
    ),
    ("gsm8k@1", {"question": "2 + 2?", "answer": "#### 4"}, "Question: 2 + 2?\nAnswer:", "#### 4"),
    (
        "mbpp@1",
        {
            "text": "Write a function that adds.",
            "code": f"```python\r\n{CODE}\r\n```",
            "test_list": ["assert add(1, 2) == 3"],
        },
        "Task: Write a function that adds.\nThe code has to pass:\nassert add(1, 2) == 3\n"
        "Python code without comments around it:",
        CODE,
    ),
    (
        "metamathqa@1",
        {
            "query": "Ann has 3 pens and buys 4. How many?",
            "response": "Ann has 3 + 4 = 7 pens.\n#### 7\nThe answer is: 7",
        },
        "Question: Ann has 3 pens and buys 4. How many?\nAnswer:",
        "Ann has 3 + 4 = 7 pens.\n#### 7",
    ),
    (
        "metamathqa@1",
        {
            "query": "Solve $2x = 3$.",
            "response": "The answer is: half of 3, so\n$x = \\frac{3}{2}$.\nThe answer is: "
            "\\frac{3}{2}\n",
        },
        "Question: Solve $2x = 3$.\nAnswer:",
        "The answer is: half of 3, so\n$x = \\frac{3}{2}$.\n#### \\frac{3}{2}",
    ),
    (
        "metamathqa@1",
        {"query": "Two lines?", "response": "The answer is: (1,\n2)."},
        "Question: Two lines?\nAnswer:",
        "#### (1, 2)",
    ),
    (
        "magicoder@1",
        {
            "problem": "Write a function that adds.",
            "solution": f"It adds:\n```python\n{CODE}\n```\nThat is all.",
        },
        "Task: Write a function that adds.\nPython code without comments around it:",
        CODE,
    ),
    (
        "mmlu@1",
        {"question": "Which is prime?", "choices": ["4", "6", "7", "8"], "answer": 2},
        "Which is prime?\nA. 4\nB. 6\nC. 7\nD. 8\nAnswer:",
        "C",
    ),
    (
        "mmlu@1",
        {"question": "True?", "choices": ["yes", "no"], "answer": "b"},
        "True?\nA. yes\nB. no\nAnswer:",
        "B",
    ),
]


@pytest.mark.parametrize(("name", "record", "prompt", "solution"), GOLDEN)
def test_golden(name, record, prompt, solution):
    assert FORMATS[name].prompt(record) == prompt and FORMATS[name].solution(record) == solution
    row = FormatColumns("src", "data.feedback.rows", format=name).row(record, "f:1")
    asked = next(record[field] for field in QUESTIONS if field in record)
    assert row == Row(prompt, solution, "f:1", "src", asked)


@pytest.mark.parametrize(("name", "record", "prompt", "solution"), GOLDEN)
def test_the_prompt_needs_no_answer(name, record, prompt, solution):
    """So that an evaluation can write it, and no label can leak into it."""
    hidden = {field: value for field, value in record.items() if field not in ANSWERS}
    assert FORMATS[name].prompt(hidden) == prompt


def test_a_rewritten_row_is_read_as_an_evaluation_reads_it():
    """Answers of MetaMathQA end as those of GSM8K, and its prompt is the one that is evaluated."""
    record = {"query": "2 + 2?", "response": "It is 4.\n#### 4\nThe answer is: 4"}
    rewritten, gsm8k = FORMATS["metamathqa@1"], FORMATS["gsm8k@1"]
    own = {"question": record["query"], "answer": rewritten.solution(record)}
    assert gsm8k.prompt(own) == rewritten.prompt(record)
    assert gsm8k.solution(own) == own["answer"] == "It is 4.\n#### 4"


def test_fences():
    assert without_fences(CODE) == CODE
    assert (
        without_fences(f"Here it is:\n```\n{CODE}\n```\nand its use:\n```py\nadd(1, 2)\n```\n")
        == f"{CODE}\n\nadd(1, 2)"
    )
    assert without_fences("    indented = 1\n") == "    indented = 1"


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("gsm8k@1", {"question": "q", "answer": "it is four"}, "####"),
        ("gsm8k@1", {"question": "q", "answer": "four\n####"}, "####"),
        ("gsm8k@1", {"question": " ", "answer": "#### 4"}, "question holds no text"),
        ("metamathqa@1", {"query": "q", "response": "it is 4\n#### 4"}, "The answer is"),
        ("metamathqa@1", {"query": "q", "response": "4. The answer is: ."}, "The answer is"),
        ("magicoder@1", {"problem": "t", "solution": "```python\n\n```"}, "but fences"),
        ("mbpp@1", {"text": "t", "code": "x = 1", "test_list": []}, "test_list"),
        ("mmlu@1", {"question": "q", "choices": ["a", "b"], "answer": 2}, "none of the choices"),
        ("mmlu@1", {"question": "q", "choices": ["a", "b"], "answer": True}, "none of the choices"),
        ("mmlu@1", {"question": "q", "choices": ["a", ""], "answer": 0}, "choices"),
        ("mmlu@1", {"question": "q", "choices": ["a", "b"]}, "'answer'"),
    ],
)
def test_a_record_without_an_answer_is_named(name, record, said):
    result = FormatColumns("src", "data.feedback.rows", format=name).row(record, "rows.jsonl:7")
    assert isinstance(result, Problem) and result.where == "rows.jsonl:7" and said in str(result)


@pytest.mark.parametrize("cut", ["an answer \ud83d", "\udc4d an answer"])
def test_half_of_an_emoji_is_named_in_every_format(cut):
    """JSON can hold it (a text cut between two units of UTF-16), and no tokenizer takes it."""
    asked, said = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": cut}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": cut}}]}
    answered = {"role": "assistant", "content": "So."}
    for columns, cells in (
        (FormatColumns("s", "rows", format="qa@1"), {"question": cut, "answer": "a"}),
        (FormatColumns("s", "rows", format="qa@1"), {"question": "q", "answer": cut}),
        (ChatColumns("s", "rows"), {"messages": [asked, said]}),
        (ChatColumns("s", "rows"), {"messages": [asked, call, answered]}),
        (
            ChatColumns("s", "rows", prompt="prompt", solution="chosen"),
            {"prompt": "2?", "chosen": [said]},
        ),
    ):
        problem = columns.row(cells, "a.jsonl:1")
        assert isinstance(problem, Problem) and problem.where == "a.jsonl:1"
        assert "half of a surrogate pair" in problem.message


def test_columns_may_have_other_names(tmp_path):
    from vpretrain.language.data import sources

    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "1 + 1?", "a": "#### 2"}) + "\n")
    columns = FormatColumns(
        "src", "data.feedback.rows", format="gsm8k@1", renamed={"question": "q", "answer": "a"}
    )
    (row,) = sources.table(path, "jsonl", columns)
    assert (row.prompt, row.text) == ("Question: 1 + 1?\nAnswer:", "#### 2")
    wrong = FormatColumns(
        "src", "data.feedback.rows", format="gsm8k@1", renamed={"question": "qu", "answer": "a"}
    )
    (problem,) = sources.table(path, "jsonl", wrong)
    assert (
        "did you mean 'q'" in problem.message
        and "data.feedback.rows.columns.question" in problem.message
    )


@pytest.mark.parametrize("form", ["text and turn", "turns and turn", "text and conversation"])
def test_preferences_as_conversations(form):
    asked, chosen = {"role": "user", "content": "2?"}, {"role": "assistant", "content": "two"}
    prompt, _, answer = form.partition(" and ")
    cells = {
        "prompt": "2?" if prompt == "text" else [asked],
        "chosen": [chosen] if answer == "turn" else [asked, chosen],
        "rejected": [asked],
    }
    columns = ChatColumns("s", "rows", prompt="prompt", solution="chosen")
    row = columns.row(cells, "a.parquet:1")
    assert isinstance(row, Row) and row.conversation == {"messages": [asked, chosen]}
    assert (row.text, row.question) == ("two", "2?")
    problem = replace(columns, solution="rejected").row(cells, "a.parquet:1")
    assert isinstance(problem, Problem) and "has to come last" in problem.message
