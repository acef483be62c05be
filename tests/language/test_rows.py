"""Reading rows, encoding them with exact masks, and finding rows that are in two sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vpretrain.errors import UserError
from vpretrain.language.rows import SHORTEST_TAIL_TOKENS, Document, Encoded, Row, encode, overlap, read_jsonl

EOS = 1
WHERE = "data.stream[0].path"


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{start + i}" for i in range(count))


def make_tokenizer(*, eos: bool = True) -> PreTrainedTokenizerFast:
    """One token a word: w0 is 2, w1 is 3, and so on; the separator costs nothing, ? and ! vanish."""
    vocabulary = {"<unk>": 0, "<eos>": EOS, **{f"w{i}": i + 2 for i in range(100)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(Regex("[?!]"), "")
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"eos_token": "<eos>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


def make_byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, white space included, as every byte-level BPE can fall back to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, **{character: i + 1 for i, character in enumerate(alphabet)}}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def raw(text: str, origin: str = "raw.jsonl:1") -> Row:
    return Row("", text, origin, "raw")


def solved(prompt: str, text: str, origin: str = "solved.jsonl:1") -> Row:
    return Row(prompt, text, origin, "solved")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(path: Path, **columns: str) -> UserError:
    with pytest.raises(UserError) as caught:
        read_jsonl(path, name="s", where=WHERE, **(columns or {"text": "text"}))
    return caught.value


# --- reading -----------------------------------------------------------------------------------------------


def test_raw_text_and_pairs_are_read_in_order(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "one", "q": "2?", "a": "two"}, {"text": " é ", "q": "3?", "a": "3"})
    assert read_jsonl(file, name="s", text="text", where=WHERE) == [
        Row("", "one", f"{file}:1", "s"),
        Row("", " é ", f"{file}:2", "s"),
    ]
    assert read_jsonl(str(file), name="s", prompt="q", solution="a", where=WHERE) == [
        Row("2?", "two", f"{file}:1", "s"),
        Row("3?", "3", f"{file}:2", "s"),
    ]


def test_blank_lines_crlf_a_byte_order_mark_and_a_missing_last_newline_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \r\n{"text": "b\\r\\n\xe2\x80\xa8c", "text": "d\xe2\x80\xa8e"}'
    )
    rows = read_jsonl(file, name="s", text="text", where=WHERE)
    assert [row.text for row in rows] == ["a", "d\u2028e"], "blank lines skipped, the last of two keys wins"
    assert [row.origin for row in rows] == [f"{file}:1", f"{file}:4"]


def test_a_missing_file_says_which_files_are_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"text": "a"})
    write(tmp_path / "test.jsonl", {"text": "a"})
    (tmp_path / "notes.txt").write_text("no")
    (problem,) = refused(tmp_path / "trian.jsonl").problems
    assert problem.where == WHERE
    assert problem.value.endswith("trian.jsonl")
    assert "no such file" in problem.message
    assert "test.jsonl, train.jsonl" in problem.accepted
    assert "notes.txt" not in problem.accepted


def test_a_missing_file_without_siblings_or_with_many_says_so(tmp_path: Path) -> None:
    assert "no *.jsonl is in" in refused(tmp_path / "a.jsonl").problems[0].accepted
    for i in range(13):
        write(tmp_path / f"{i:02}.jsonl", {"text": "a"})
    accepted = refused(tmp_path / "a.jsonl").problems[0].accepted
    assert "09.jsonl and 3 more" in accepted
    assert "10.jsonl" not in accepted


def test_a_missing_folder_and_a_folder_in_place_of_a_file_say_so(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path / "nowhere" / "a.jsonl").problems
    assert "nor its folder" in problem.message
    assert str(tmp_path / "nowhere") in problem.accepted
    write(tmp_path / "in.jsonl", {"text": "a"})
    (problem,) = refused(tmp_path).problems
    assert "this is a folder" in problem.message
    assert "in.jsonl" in problem.accepted


def test_a_file_that_cannot_be_opened_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "a"})

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "cannot be read: Permission denied" in str(refused(file))


@pytest.mark.parametrize("content", [b"", b"\n \r\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    (problem,) = refused(file).problems
    assert problem.where == WHERE
    assert "holds no rows" in problem.message
    assert problem.value == str(file)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "a"', "this row is not JSON: Expecting ',' delimiter at column 13"),
        (b"plain words", "this row is not JSON"),
        (b"[" * 100_000, "this row is not JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", "this row is not JSON"),
        (b'["a"]', "this row is a list, not an object"),
        (b'"a"', "this row is a string, not an object"),
        (b"3", "this row is a number, not an object"),
        (b"null", "this row is null, not an object"),
        (b'{"txt": "a", "id": "b"}', "no column 'text' (did you mean 'txt'?): set data.stream[0].text"),
        (b"{}", "no column 'text': set data.stream[0].text"),
        (b'{"text": 42}', "column 'text' is a number, not text"),
        (b'{"text": null}', "column 'text' is null, not text"),
        (b'{"text": ["a"]}', "column 'text' is a list, not text"),
        (b'{"text": {"a": 1}}', "column 'text' is an object, not text"),
        (b'{"text": ""}', "column 'text', the text, is empty"),
        (b'{"text": " \\n\\t\xc2\xa0"}', "column 'text', the text, is empty"),
        (b'{"text": "caf\xe9"}', "byte 14 of this line is not UTF-8"),
        (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: bytes, says: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "good"}\n\n' + line + b"\n" + b'{"text": "good"}\n')
    error = refused(file)
    (problem,) = error.problems
    assert problem.where == f"{file}:3"
    assert says in problem.message
    assert problem.value
    assert len(problem.value) < 90
    assert problem.accepted
    assert error.exit_code == 2


def test_a_missing_column_lists_those_that_are_there(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"problem": "1+1?", "answer": "2", "id": 7})
    (problem,) = refused(file, prompt="problem", solution="solution").problems
    assert problem.value == "'solution'"
    assert problem.accepted == "'problem', 'answer', 'id'"
    assert "data.stream[0].solution" in problem.message


def test_an_empty_solution_or_prompt_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"q": "1+1?", "a": " "}, {"q": "", "a": "2"}, {"q": "1+2?", "a": "3"})
    error = refused(file, prompt="q", solution="a")
    assert [problem.where for problem in error.problems] == [f"{file}:1", f"{file}:2"]
    assert "column 'a', the solution, is empty" in str(error)
    assert "column 'q', the prompt, is empty" in str(error)


def test_five_problems_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *[{"text": "ok"} if i % 2 else {"text": i} for i in range(24)])
    problems = refused(file).problems
    assert [problem.where for problem in problems[:5]] == [f"{file}:{line}" for line in (1, 3, 5, 7, 9)]
    assert len(problems) == 6
    assert problems[5].message == "7 more rows of this file are unusable"
    exactly_five = write(tmp_path / "b.jsonl", *[{"text": i} for i in range(5)])
    assert len(refused(exactly_five).problems) == 5


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "q"},
        {"solution": "a"},
        {"text": "t", "prompt": "q", "solution": "a"},
        {"text": "t", "solution": "a"},
    ],
)
def test_columns_that_do_not_belong_together_are_refused(tmp_path: Path, columns: dict[str, str]) -> None:
    (problem,) = refused(write(tmp_path / "a.jsonl", {"text": "a"}), **columns).problems
    assert problem.where == "data.stream[0]"
    assert problem.value == repr(columns)


def test_no_columns_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="columns to read are not clear"):
        read_jsonl(write(tmp_path / "a.jsonl", {"text": "a"}), name="s", where=WHERE)


# --- encoding ----------------------------------------------------------------------------------------------


def test_raw_text_is_predicted_throughout_and_ends_with_eos() -> None:
    documents, counts = encode([raw("w0 w1 w2")], make_tokenizer())
    assert documents == [Document([2, 3, 4, EOS], [True] * 4, "raw.jsonl:1", "raw")]
    assert counts == Encoded(rows=1, documents=1, tokens=4)


def test_the_prompt_is_masked_and_the_solution_and_eos_are_predicted() -> None:
    documents, counts = encode([solved("w5 w6", "w0")], make_tokenizer())
    assert documents == [
        Document([7, 8, 2, EOS], [False, False, True, True], "solved.jsonl:1", "solved"),
    ]
    assert counts == Encoded(rows=1, documents=1, tokens=4)


@pytest.mark.parametrize("separator", [" ", "\n", "", " Answer: "])
def test_the_mask_falls_between_separator_and_solution_byte_for_byte(separator: str) -> None:
    tokenizer = make_byte_tokenizer()
    prompt, solution = "3 + 4 é?", " 7!"
    ((document,), _) = encode([solved(prompt, solution)], tokenizer, separator=separator)
    masked = [i for i, predicted in zip(document.ids, document.predicted, strict=True) if not predicted]
    counted = [i for i, predicted in zip(document.ids, document.predicted, strict=True) if predicted]
    assert masked == tokenizer(prompt + separator)["input_ids"]
    assert counted == [*tokenizer(solution)["input_ids"], tokenizer.eos_token_id]
    assert len(masked) == len((prompt + separator).encode())


def test_documents_keep_the_order_of_mixed_rows_over_many_tokenizer_calls() -> None:
    rows = [
        solved(f"w{i % 90}", f"w{(i + 1) % 90}", f"f:{i}") if i % 3 else raw(f"w{i % 90}", f"f:{i}")
        for i in range(2_500)
    ]
    tokenizer = make_tokenizer()
    documents, counts = encode(rows, tokenizer)
    assert documents == [encode([row], tokenizer)[0][0] for row in rows]
    assert [document.origin for document in documents] == [row.origin for row in rows]
    assert counts == Encoded(rows=2_500, documents=2_500, tokens=sum(len(d.ids) for d in documents))
    assert encode([], tokenizer) == ([], Encoded())


@pytest.mark.parametrize(
    ("text_tokens", "lengths", "tails"),
    [
        (19, [20], 0),  # with eos exactly one window: not a chunk
        (20, [20], 1),  # the end token alone would be the second
        (26, [20], 1),
        (27, [20, 8], 0),
        (59, [20, 20, 20], 0),
        (60, [20, 20, 20], 1),
    ],
)
def test_long_raw_text_is_chunked(text_tokens: int, lengths: list[int], tails: int) -> None:
    documents, counts = encode([raw(words(text_tokens))], make_tokenizer(), max_tokens=20)
    assert [len(document.ids) for document in documents] == lengths
    assert all(all(document.predicted) for document in documents)
    assert all(len(document.predicted) == len(document.ids) for document in documents)
    joined = [i for document in documents for i in document.ids]
    whole = [*range(2, text_tokens + 2), EOS]
    assert joined == whole[: len(joined)]
    assert (joined[-1] == EOS) == (tails == 0)
    assert len(whole) - len(joined) < SHORTEST_TAIL_TOKENS
    assert counts == Encoded(1, len(lengths), sum(lengths), chunked=int(text_tokens > 19), tails=tails)


def test_a_short_raw_text_is_no_tail() -> None:
    assert len(encode([raw("w0")], make_tokenizer(), max_tokens=20)[0]) == 1


def test_a_long_solution_is_cut_and_a_prompt_that_fills_the_window_is_dropped() -> None:
    rows = [
        solved(words(3), words(6), "f:1"),  # 3 + 6 + eos = 10: fits
        solved(words(3), words(7), "f:2"),  # its end token does not
        solved(words(9), words(7), "f:3"),  # one token of the solution fits
        solved(words(10), words(1), "f:4"),  # none does
        solved(words(30), words(1), "f:5"),
    ]
    documents, counts = encode(rows, make_tokenizer(), max_tokens=10)
    assert [document.origin for document in documents] == ["f:1", "f:2", "f:3"]
    assert [len(document.ids) for document in documents] == [10, 10, 10]
    assert [document.ids[-1] == EOS for document in documents] == [True, False, False]
    assert [sum(document.predicted) for document in documents] == [7, 7, 1]
    assert counts == Encoded(rows=5, documents=3, tokens=30, dropped=2, truncated=2)


def test_a_row_in_which_the_tokenizer_finds_nothing_is_counted() -> None:
    documents, counts = encode([raw("?? !!"), solved("w1", "??"), raw("w1")], make_tokenizer())
    assert [document.ids for document in documents] == [[3, EOS]]
    assert counts == Encoded(rows=3, documents=1, tokens=2, empty=2)


def test_a_prompt_in_which_the_tokenizer_finds_nothing_leaves_the_solution() -> None:
    documents, _ = encode([solved("??", words(30))], make_tokenizer(), max_tokens=10)
    assert [document.ids for document in documents] == [list(range(2, 12))], "truncated, not chunked"


def test_truncation_set_in_the_tokenizer_and_its_own_length_do_not_matter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.model_max_length = 4
    ((document,), _) = encode([raw(words(50))], tokenizer)
    assert len(document.ids) == 51
    assert not caplog.records


def test_a_tokenizer_without_eos_names_the_model() -> None:
    with pytest.raises(UserError) as caught:
        encode([raw("w0")], make_tokenizer(eos=False))
    (problem,) = caught.value.problems
    assert problem.where == "learner.model"
    assert "eos_token" in problem.message
    assert problem.value


def test_a_window_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        encode([raw("w0")], make_tokenizer(), max_tokens=1)


# --- overlap -----------------------------------------------------------------------------------------------


def test_overlap_ignores_white_space_and_case() -> None:
    a = [raw("The  cat\nsat "), raw("another")]
    b = [raw("x", "b:1"), raw(" the CAT sat", "b:2"), raw("the cat sat", "b:3")]
    assert overlap(a, b) == [(a[0], b[1])]


def test_overlap_of_prompts_ignores_the_answer() -> None:
    feedback = [solved("What is 3 + 4?", "7"), solved("What is 3 + 5?", "8"), solved("What is 34?", "34")]
    stream = [solved("what is  3 + 4?", "6"), solved("What is 3 4?", "8")]
    assert overlap(feedback, stream) == [(feedback[0], stream[0])]
    assert overlap(stream, feedback) == [(stream[0], feedback[0])]


def test_overlap_compares_whole_rows_where_one_of_them_is_raw() -> None:
    pair, text = solved("What is 3 + 4?", "7"), raw("What is 3 + 4?\n7")
    assert overlap([pair], [text]) == [(pair, text)]
    assert overlap([text], [pair]) == [(text, pair)]
    assert overlap([pair], [raw("What is 3 + 4? 8")]) == []
    # Two pairs that only agree once joined are different questions.
    assert overlap([solved("a b", "c")], [solved("a", "b c")]) == []


def test_overlap_of_nothing_is_empty() -> None:
    assert overlap([], [raw("a")]) == []
    assert overlap([raw("a")], []) == []
