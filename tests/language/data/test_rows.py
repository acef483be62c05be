"""Encoding rows with exact masks, and finding rows that are in two sets."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vpretrain.language.data.layout import Layout
from vpretrain.language.data.row_store import StoredDocuments, StoredRows
from vpretrain.language.data.rows import (
    SHORTEST_TAIL_TOKENS,
    Document,
    Encoded,
    Row,
    documents_hash,
    encode,
    encode_into,
    held_out,
    overlap,
)
from vpretrain.language.data.texts import unfamiliar
from vpretrain.system.errors import UserError

EOS = 1


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{start + i}" for i in range(count))


def make_tokenizer(*, eos: bool = True) -> PreTrainedTokenizerFast:
    """One token a word: w0 is 2, w1 is 3, and so on; the separator costs nothing, ? and !
    vanish.
    """
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
    return Row(f"{prompt} ", text, origin, "solved")


def test_a_tokenizer_of_another_language_is_said() -> None:
    tokenizer = make_tokenizer()
    rows = [raw("w0 w1 der Hund"), raw("w2 ja")]
    assert encode(rows, tokenizer)[1].unknown == 0, "it does not say which token stands for that"
    tokenizer.unk_token = "<unk>"
    _, counts = encode(rows, tokenizer)
    assert (counts.unknown, counts.tokens) == (3, 8)
    (said,) = unfamiliar({"notes": counts, "test": counts})
    assert "unknown tokens: 38% of notes, 38% of test" in said
    assert encode([raw("w0 w1")] * 100 + rows[1:], tokenizer)[1].unfamiliar() == 0, "a name or so"
    tokenizer.unk_token = tokenizer.eos_token = "<unk>"
    assert encode(rows, tokenizer)[1].unknown == 0, "GPT-2's end is no unknown text"


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
    row = Row(prompt + separator, solution, "f:1", "f")
    ((document,), _) = encode([row], tokenizer)
    masked = [
        i for i, predicted in zip(document.ids, document.predicted, strict=True) if not predicted
    ]
    counted = [
        i for i, predicted in zip(document.ids, document.predicted, strict=True) if predicted
    ]
    given = (prompt + separator).rstrip(" ")  # tokenizers write a space into the word after it
    predicted = f"{prompt}{separator}{solution}".removeprefix(given)
    assert masked == tokenizer(given)["input_ids"]
    assert counted == [*tokenizer(predicted)["input_ids"], tokenizer.eos_token_id]
    assert len(masked) == len(given.encode())


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
    assert counts == Encoded(
        1, len(lengths), sum(lengths), chunked=int(text_tokens > 19), tails=tails
    )


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
    assert [document.ids for document in documents] == [list(range(2, 12))], (
        "truncated, not chunked"
    )


def test_truncation_set_in_the_tokenizer_and_its_own_length_do_not_matter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.model_max_length = 4
    ((document,), _) = encode([raw(words(50))], tokenizer)
    assert len(document.ids) == 51
    assert not caplog.records


def test_documents_on_disk_are_those_in_memory() -> None:
    rows = [
        solved(f"w{i % 50}", words(1 + i % 30), f"f:{i}") if i % 3 else raw(words(i % 50), f"f:{i}")
        for i in range(700)
    ]
    stored = StoredDocuments("solved")
    counts = encode_into(
        stored.keep, StoredRows("solved", rows), Layout(make_tokenizer()), max_tokens=20
    )
    documents, expected = encode(rows, make_tokenizer(), max_tokens=20)
    assert (
        counts == expected
        and counts.dropped == 0
        and counts.chunked
        and counts.truncated
        and counts.empty
    )
    result = [(list(d.ids), [bool(p) for p in d.predicted], d.origin) for d in stored]
    assert result == [(d.ids, d.predicted, d.origin) for d in documents]
    assert list(stored.lengths) == [len(d.ids) for d in documents]


def test_as_many_documents_as_are_asked_for() -> None:
    rows = [raw(words(45), "f:1"), raw(words(3), "f:2"), raw(words(4), "f:3"), raw(words(5), "f:4")]
    for most, lengths in ((1, [20]), (2, [20, 20]), (4, [20, 20, 4, 5]), (9, [20, 20, 4, 5, 6])):
        stored = StoredDocuments("raw")
        counts = encode_into(
            stored.keep, rows, Layout(make_tokenizer()), max_tokens=20, max_documents=most
        )
        assert list(stored.lengths) == lengths
        assert (counts.documents, counts.tokens) == (len(lengths), sum(lengths))
        assert counts.rows == 4 and counts.capped == 4 - len({d.origin for d in stored})


@pytest.mark.parametrize(("shortest", "lengths"), [(5, [20, 5]), (6, [20])])
def test_how_short_a_chunk_may_be(shortest: int, lengths: list[int]) -> None:
    stored = StoredDocuments("raw")
    counts = encode_into(
        stored.keep,
        [raw(words(24))],
        Layout(make_tokenizer()),
        max_tokens=20,
        shortest_chunk_tokens=shortest,
    )
    assert list(stored.lengths) == lengths
    assert counts.tails == 2 - len(lengths)


def test_what_was_lost_is_said_in_words() -> None:
    rows = [solved(words(30), "w1"), solved("w1", words(30)), raw("??"), raw(words(21)), raw("w1")]
    _, counts = encode(rows, make_tokenizer(), max_tokens=20)
    assert counts.losses(20) == [
        "1 of 5 rows left out: the prompt alone fills 20 tokens",
        "1 of 5 rows left out: the tokenizer finds nothing to predict in them",
        "1 of 5 rows cut at 20 tokens, their end with it",
        "1 of 5 rows cut into pieces of 20 tokens, the last left out as too short",
    ]
    assert Encoded(rows=3, documents=3).losses(20) == []


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


def test_overlap_ignores_white_space_and_case() -> None:
    a = [raw("The  cat\nsat "), raw("another")]
    b = [raw("x", "b:1"), raw(" the CAT sat", "b:2"), raw("the cat sat", "b:3")]
    assert overlap(a, b) == [(a[0], b[1])]


def test_overlap_of_prompts_ignores_the_answer() -> None:
    feedback = [
        solved("What is 3 + 4?", "7"),
        solved("What is 3 + 5?", "8"),
        solved("What is 34?", "34"),
    ]
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


def test_overlap_reads_the_larger_set_once() -> None:
    stream = [solved("q", "2", "f:1"), raw("Q  1", "f:2"), solved("q", "3", "f:3")]
    assert overlap([solved("Q", "1"), raw("q 3")], iter(stream)) == [
        (solved("Q", "1"), stream[0]),
        (raw("q 3"), stream[2]),
    ]
    assert overlap([solved("q", "1")], iter(stream[1:])) == [(solved("q", "1"), stream[2])]


def test_what_is_held_out_depends_on_the_content_alone() -> None:
    rows = [solved(f"question {i}", f"answer {i}", f"f:{i}") for i in range(4_000)]
    away = {row.prompt for row in rows if held_out(row, 0.1, seed=0)}
    assert 0.08 < len(away) / len(rows) < 0.12
    again = [solved(f"  Question\n{i}", "another answer", "g:1") for i in range(4_000)]
    assert {row.prompt.split()[1] for row in again if held_out(row, 0.1, seed=0)} == {
        p.split()[1] for p in away
    }
    more = {row.prompt for row in rows if held_out(row, 0.2, seed=0)}
    other = {row.prompt for row in rows if held_out(row, 0.1, seed=1)}
    assert away < more, "a larger share keeps what a smaller one held out"
    assert len(away & other) < len(away) / 2


def test_the_hash_of_documents_is_of_tokens_and_of_which_are_predicted():
    result = {
        documents_hash(documents)
        for documents in (
            [Document([1, 2, 3], [False, True, True], "a:1", "a")],
            [Document([1, 2, 4], [False, True, True], "a:1", "a")],
            [Document([1, 2, 3], [False, False, True], "a:1", "a")],
            [Document([1, 2, 3], [False, True, True], "a:1", "a")] * 2,
        )
    }
    assert (
        len(result) == 4 and documents_hash([Document([1, 2, 3], b"\0\1\1", "b:9", "b")]) in result
    )
