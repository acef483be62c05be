"""Other libraries' rows: what is predicted of them, and which of them are the same."""

import copy

import pytest
from datasets import Dataset

from tests.integrations.conftest import TOKENIZER
from vpretrain.integrations.apart import check_apart, trained_on
from vpretrain.integrations.datasets import documents_of
from vpretrain.system.errors import UserError

EOS = TOKENIZER.eos_token_id
ASKED, ANSWER = "compute 5 9 - 3 4 .", "5 9 - 3 4 = 2 5 ."
CHAT = copy.deepcopy(TOKENIZER)
CHAT.chat_template = (
    "{% for m in messages %}{{ 'ann ' if m['role'] == 'user' else 'ben ' }}{{ m['content'] + "
    "' <eos>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ben ' }}{% endif %}"
)


def ids(text):
    return TOKENIZER(text)["input_ids"]


def read(*rows, tokenizer=TOKENIZER, max_tokens=64):
    return documents_of(rows, tokenizer, max_tokens=max_tokens, where="feedback_dataset")


def say(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"prompt": ASKED, "solution": ANSWER}, ASKED),
        ({"prompt": ASKED + " ", "completion": ANSWER + " <eos>"}, ASKED),
        ({"text": ANSWER}, ""),
        ({"messages": [say("user", ASKED), say("assistant", ANSWER)]}, f"ann {ASKED} <eos> ben"),
        (
            {"prompt": [say("user", ASKED)], "completion": [say("assistant", ANSWER)]},
            f"ann {ASKED} <eos> ben",
        ),
        ({"prompt": [say("user", ASKED)], "solution": ANSWER}, f"ann {ASKED} <eos> ben"),
        ({"prompt": ASKED, "solution": [say("assistant", ANSWER)]}, f"ann {ASKED} <eos> ben"),
        (
            {"prompt": ASKED, "completion": [say("user", ASKED), say("assistant", ANSWER)]},
            f"ann {ASKED} <eos> ben",
        ),
    ],
    ids=[
        *("solution", "completion", "text", "messages", "prompt and completion of messages"),
        *("prompt of messages", "answer of messages", "the prompt again"),
    ],
)
def test_the_answer_and_its_end_are_predicted_and_the_prompt_is_not(row, asked):
    (document,) = read(row, tokenizer=CHAT)
    assert list(document.ids) == [*ids(asked), *ids(ANSWER), EOS]
    assert document.predicted == [False] * len(ids(asked)) + [True] * (len(ids(ANSWER)) + 1)
    (again,) = documents_of(Dataset.from_list([row]), CHAT, max_tokens=64, where="feedback_dataset")
    assert again == document


def test_a_text_begins_as_the_tokenizer_begins_it_once():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.bos_token = "<unk>"
    tokenizer._tokenizer.post_processor = __import__("tokenizers").processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", tokenizer.unk_token_id)]
    )
    for prompt in (ASKED, f"<unk> {ASKED}"):  # chat templates write it out themselves
        (document,) = read({"prompt": prompt, "solution": ANSWER}, tokenizer=tokenizer)
        assert list(document.ids[:2]) == [tokenizer.bos_token_id, ids(ASKED)[0]]
        assert document.predicted.index(True) == 1 + len(ids(ASKED))


def test_rows_in_tokens_are_taken_as_they_are_and_cut():
    (document,) = read(
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, tokenizer=None, max_tokens=3
    )
    assert (document.ids, document.predicted) == ([5, 6, 7], [False, False, True])


@pytest.mark.parametrize("mask", [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
def test_padding_of_rows_in_tokens_is_left_out_before_they_are_cut(mask):
    def padded(tokens, fill):
        left = iter(tokens)
        return [next(left) if real else fill for real in mask]

    row = {
        "input_ids": padded([5, 6, 7, 8], 0),
        "labels": padded([-100, -100, 7, 8], -100),
        "attention_mask": mask,
    }
    (document,) = read(row, tokenizer=None, max_tokens=3)
    assert (document.ids, document.predicted) == ([5, 6, 7], [False, False, True])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"question": "x", "answer": "y"},
            r"feedback_dataset\[0\]: this row has none of the columns.*got +question, answer",
        ),
        ({"input_ids": [5, 6]}, r"feedback_dataset\[0\]: these tokens have nothing to predict"),
        (
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 9]},
            r"feedback_dataset\[0\]: labels are read only.*corrupted inputs",
        ),
        (
            {"input_ids": [5, 6, 7], "labels": [6, 7]},
            r"feedback_dataset\[0\]: .*one entry for each",
        ),
        (
            {"prompt": "x", "solution": None},
            r"feedback_dataset\[0\]: the cell of solution is empty",
        ),
        ("train", "feedback_dataset: rows are dicts of columns; of a DatasetDict take one split"),
        (
            {"messages": [say("user", "a"), say("assistant", "b")]},
            "no chat template; set its chat_template",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_named(row, said):
    with pytest.raises(UserError, match=f"(?s){said}"):
        read(row)
    with pytest.raises(
        UserError, match=r"(?s)the assistant's, and has to come last.*got +assistant, user"
    ):
        read({"messages": [say("assistant", "b"), say("user", "a")]}, tokenizer=CHAT)
    with pytest.raises(UserError, match="processing_class: the rows of feedback_dataset are text"):
        read({"text": "a"}, tokenizer=None)


SAME = [
    {"prompt": ASKED, "solution": ANSWER},
    {"text": f"{ASKED} {ANSWER}"},
    {"input_ids": [*ids(f"{ASKED} {ANSWER}"), EOS]},
    {"prompt": ASKED, "completion": " 0 0 ."},  # the same question with another answer
    {"input_ids": ids(f"{ASKED} 0 0 ."), "labels": [-100] * len(ids(ASKED)) + ids("0 0 .")},
    {  # as TRL marks completions before it makes labels of them
        "input_ids": ids(f"{ASKED} 0 0 ."),
        "completion_mask": [0] * len(ids(ASKED)) + [1] * len(ids("0 0 .")),
    },
    {
        "input_ids": [*ids("ann sings ."), *ids(f"{ASKED} {ANSWER}")],
        "seq_lengths": [3, len(ids(f"{ASKED} {ANSWER}"))],
    },
]


@pytest.mark.parametrize("row", SAME)
def test_rows_that_are_trained_on_are_found_in_any_form(row):
    feedback = read(
        {"prompt": "compute 0 1 - 0 1 .", "solution": "0 ."}, {"prompt": ASKED, "solution": ANSWER}
    )
    special = set(TOKENIZER.all_special_ids)
    for rows in ([row, row], Dataset.from_list([row, row])):
        with pytest.raises(
            UserError, match=r"(?s)1 of 2 rows are also in train_dataset.*feedback_dataset\[1\]"
        ):
            check_apart(feedback, trained_on(rows, TOKENIZER), special)
        check_apart(feedback[:1], trained_on(rows, TOKENIZER), special)


def test_rows_inside_blocks_cut_from_joined_texts_are_found():
    """As run_clm.py makes them: texts joined, cut anywhere, all tokens predicted."""
    asked = "compute 4 1 - 2 3 + 1 7 + 1 8 ."
    feedback = read(
        {"prompt": "compute 9 9 .", "solution": "0 ."}, {"prompt": asked, "solution": "5 ."}
    )
    joined = [*ids("ann sings . bob sleeps ."), EOS, *ids(f"{asked} 5 ."), EOS] * 3
    special = set(TOKENIZER.all_special_ids)
    for length in (20, 37, 52):
        blocks = [joined[at : at + length] for at in range(0, len(joined), length)]
        rows = [{"input_ids": block, "labels": block} for block in blocks]
        with pytest.raises(UserError, match=r"(?s)1 of 2 rows.*feedback_dataset\[1\] = train_"):
            check_apart(feedback, trained_on(rows, TOKENIZER), special)
    other = ids(asked.replace("1 8 .", "1 9 ."))  # begins alike
    check_apart(feedback, trained_on([{"input_ids": other}], TOKENIZER), special)


def test_rows_that_are_tokenised_when_they_are_read_are_found():
    table = Dataset.from_list([{"line": "ann sings ."}] * 300 + [{"line": f"{ASKED} {ANSWER}"}])
    table.set_transform(lambda part: {"input_ids": [ids(line) for line in part["line"]]})
    feedback = read({"prompt": ASKED, "solution": ANSWER})
    with pytest.raises(UserError, match=r"feedback_dataset\[0\] = train_dataset\[300\]"):
        check_apart(feedback, trained_on(table, TOKENIZER), set(TOKENIZER.all_special_ids))
