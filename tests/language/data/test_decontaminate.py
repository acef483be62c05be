"""Near-duplicates are found in whatever holds them, unrelated rows are kept, and what is written is
whole.
"""

from __future__ import annotations

import gzip
import inspect
import json
import pickle
import random
import re
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from vpretrain import cli
from vpretrain.language.data import certificate, decontaminate, similarity
from vpretrain.language.data.decontaminate import decontaminate as clean
from vpretrain.language.data.rows import Row
from vpretrain.language.data.similarity import Protected, words
from vpretrain.system.errors import UserError

QUESTION = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes "
    "muffins for her friends"
    " every day with four. Janet sells the remainder at the farmers' market daily for $2 per "
    "fresh duck egg. How much in"
    " dollars does she make every day at the farmers' market?"
)
OTHER = (
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in "
    "total does it take?"
)
FILLER = (
    "The river rose slowly in the night, and nobody in the village thought of the bridge "
    "until morning came. "
)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!])\s+", text)


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    return write(
        tmp_path / "test.jsonl",
        {"question": QUESTION, "answer": "#### 18"},
        {"question": OTHER, "answer": "3"},
    )


# --- similarity
# --------------------------------------------------------------------------------------------

CHANGED = {
    "itself": QUESTION,
    "number": QUESTION.replace("16", "23"),
    "name": QUESTION.replace("Janet", "Priscilla"),
    "reordered": " ".join(sentences(QUESTION)[::-1]),
    "case, punctuation, layout": re.sub(r"[^\w\s]", "", QUESTION.upper()).replace(" ", " \n"),
    "typographic": QUESTION.replace("'", "’")
    .replace("day", "da\u00ady")
    .replace("fresh", "ｆｒｅｓｈ"),
    "in a long document": FILLER * 30 + QUESTION.replace("16", "23") + FILLER * 30,
    "answer between its sentences": QUESTION.replace(
        "How much", "Four and three are seven. How much"
    ),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_question_is_found(change: str) -> None:
    found = Protected([OTHER, QUESTION]).best(CHANGED[change])
    assert found is not None and found.text == 1


def test_the_similarity_is_the_share_of_ngrams_in_common() -> None:
    text = "a b c d e f g h i j k l"  # ten 3-grams, of which the changed last word breaks one
    found = Protected([text], ngram=3, threshold=0.5).best("x y " + text.replace("l", "z"))
    assert found is not None and found.similarity == pytest.approx(9 / 10)
    assert Protected([text], threshold=0.95).best(text.replace("l", "z")) is None


def test_the_index_misses_nothing_that_comparing_all_pairs_finds() -> None:
    draw = random.Random(0)
    vocabulary = [a + b for a in "bcdfgh" for b in "aeiou"]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(12, 40))) for _ in range(60)]
    protected = Protected(texts, threshold=0.6)
    hits = 0
    for _ in range(200):
        of = draw.choice(texts).split()
        for _ in range(draw.randint(0, 6)):
            of[draw.randrange(len(of))] = draw.choice(vocabulary)
        there = grams(" ".join(of))
        fractions = [len(grams(text) & there) / len(grams(text)) for text in texts]
        enough = [len(grams(text) & there) >= similarity.FEWEST_NGRAMS for text in texts]
        best = max(
            (
                fraction
                for fraction, many in zip(fractions, enough, strict=True)
                if many and fraction >= 0.6
            ),
            default=None,
        )
        found = protected.best(" ".join(of))
        assert (found and found.similarity) == best
        hits += best is not None
    assert 50 < hits < 200  # both sides of the threshold were tried


def grams(text: str) -> set[tuple[str, ...]]:
    of = words(text)
    return set(zip(of, of[1:], of[2:], strict=False))


def test_words_scattered_over_a_long_document_are_no_question() -> None:
    parts = sentences(QUESTION)
    assert Protected([QUESTION]).best((FILLER * 20).join(parts)) is None
    assert Protected([QUESTION]).best(" ".join(parts)) is not None


def test_short_texts_are_found_word_for_word_and_phrases_not_at_all() -> None:
    protected = Protected(["Is 1531 a composite number?", "The art of war"])
    assert protected.unprotected == [1]
    assert protected.best("Q: is 1531 a composite number? A: no")
    assert protected.best("Is 1532 a composite number?") is None
    assert protected.best("He read the art of war.") is None


def test_what_many_protected_rows_share_does_not_count() -> None:
    template = (
        "Answer the following multiple choice question about the history of the world with "
        "one letter. "
    )
    facts = [
        f"Who ruled {land} in {1100 + i}, when the {i} ships came home?"
        for i, land in enumerate("ABCDEFGHIJKLMNOP")
    ]
    protected = Protected([template + fact for fact in facts])
    assert protected.best(template + "Which sea lies between the two largest islands?") is None
    assert protected.best(facts[7])


def test_copies_of_a_question_protect_it_and_copies_of_a_category_are_none() -> None:
    protected = Protected([QUESTION, "Arithmetic with money and with time"] * 16)
    assert protected.best(CHANGED["name"])
    assert protected.best("Arithmetic with money and with time") is None
    assert (len(protected), len(protected.unprotected)) == (1, 1)


def test_numbers_and_scripts_without_spaces_are_words() -> None:
    assert words("Don’t pay $1,234.50 for 5kg of 日本") == [
        "dont",
        "pay",
        "1234.50",
        "for",
        "5",
        "kg",
        "of",
        "日",
        "本",
    ]


# --- files
# -------------------------------------------------------------------------------------------------


def test_kept_lines_are_the_bytes_that_came_in_and_removed_ones_are_in_the_report(
    tmp_path: Path, test_set: Path
) -> None:
    kept = [b'{"text":"caf\\u00e9",  "n":1e3}\r\n', b'{"n": 1}\n', '{"text": "日本"}'.encode()]
    leak = {
        "messages": [
            {"role": "user", "content": CHANGED["name"]},
            {"role": "assistant", "content": "18"},
        ]
    }
    stream = tmp_path / "stream.jsonl"
    stream.write_bytes(
        b"\xef\xbb\xbf" + kept[0] + b"\n" + json.dumps(leak).encode() + b"\n" + kept[1] + kept[2]
    )
    found = clean([str(stream)], [str(test_set)], tmp_path / "out.jsonl")
    assert (found.rows, found.removed) == (4, 1)
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(kept) + b"\n"
    (record,) = map(json.loads, Path(found.report).read_text(encoding="utf-8").splitlines())
    assert (record["file"], record["line"], record["matched"]) == (str(stream), 3, f"{test_set}:1")
    assert 0.5 <= record["similarity"] < 1
    assert record["protected"] == QUESTION and CHANGED["name"] in record["text"]


def test_parquet_text_and_compressed_files_and_globs_become_json_lines(
    tmp_path: Path, test_set: Path
) -> None:
    parquet.write_table(
        pyarrow.table({"q": ["one", QUESTION], "n": [1, 2]}), tmp_path / "a.parquet"
    )
    (tmp_path / "b.txt").write_text(f"two\n\n{QUESTION}\n", encoding="utf-8")
    for name in ("c1", "c2"):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(json.dumps({"t": name}) + "\n" + json.dumps({"t": QUESTION}) + "\n")
    stream = [str(tmp_path / name) for name in ("a.parquet", "b.txt", "c*.gz")]
    found = clean(stream, [str(test_set)], tmp_path / "out.jsonl")
    assert (found.rows, found.removed) == (8, 4)
    out = [
        json.loads(line)
        for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert out == [{"q": "one", "n": 1}, {"text": "two"}, {"t": "c1"}, {"t": "c2"}]
    lines = [
        json.loads(line)["line"]
        for line in Path(found.report).read_text(encoding="utf-8").splitlines()
    ]
    assert lines == [2, 3, 2, 2]


def threads(
    jobs: int, context: object, initializer: Callable[..., None], initargs: tuple[Protected]
) -> Executor:
    """What the process pool does, without the seconds that a new process takes to import."""
    return ThreadPoolExecutor(
        jobs, initializer=initializer, initargs=pickle.loads(pickle.dumps(initargs))
    )


@pytest.mark.parametrize(
    "pool", [threads, pytest.param(ProcessPoolExecutor, marks=pytest.mark.slow)]
)
def test_two_workers_write_what_one_writes(
    pool: object, tmp_path: Path, test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decontaminate, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(decontaminate, "_PIECE_ROWS", 7)
    changes = [*CHANGED.values(), *(f"row {i}" for i in range(50))]
    random.Random(1).shuffle(changes)
    stream = write(tmp_path / "stream.jsonl", *({"text": text} for text in changes))
    written = []
    for jobs in (1, 2):
        out = tmp_path / f"{jobs}.jsonl"
        found = clean([str(stream)], [str(test_set)], out, jobs=jobs, report=tmp_path / "report")
        written.append(
            (found.rows, found.removed, out.read_bytes(), (tmp_path / "report").read_bytes())
        )
    assert written[0] == written[1]
    assert written[0][1] == len(CHANGED)


def test_named_columns_alone_protect(tmp_path: Path, test_set: Path) -> None:
    long_answer = {"question": OTHER, "answer": QUESTION}
    protected = write(tmp_path / "both.jsonl", long_answer)
    stream = write(tmp_path / "stream.jsonl", {"text": QUESTION}, {"text": OTHER})
    assert clean([str(stream)], [str(protected)], tmp_path / "a").removed == 2
    assert clean([str(stream)], [str(protected)], tmp_path / "b", columns=["question"]).removed == 1
    assert json.loads((tmp_path / "b").read_text()) == {"text": QUESTION}


# --- the certificate
# ---------------------------------------------------------------------------------------


def test_training_can_tell_what_a_stream_was_checked_against(
    tmp_path: Path, test_set: Path
) -> None:
    stream = write(tmp_path / "stream.jsonl", {"text": "a row"}, {"text": QUESTION})
    out = tmp_path / "clean.jsonl"
    clean([str(stream)], [str(test_set)], out)
    known = [Row(QUESTION.upper(), "another solution", "f:1", "f"), Row("", OTHER, "f:2", "f")]
    unknown = Row("What else?", "Nothing.", "f:3", "f")
    assert certificate.checked_against(out, known) is True
    assert certificate.checked_against(out, [*known, unknown]) is False
    assert certificate.checked_against(stream, known) is None

    templated = Row(f"Q: {QUESTION}\nA:", "18", f"{test_set}:1", "f")
    assert certificate.checked_against(out, [templated]) is True
    test_set.write_bytes(test_set.read_bytes() + b'{"question": "What else?"}\n')
    assert certificate.checked_against(out, [templated]) is False

    assert certificate.unchecked([("a", out)], known) == []
    assert (
        certificate.unchecked([("a", stream)], [unknown]) == []
    )  # generated: there is no file to check against
    unknown = Row("What else?", "Nothing.", f"{stream}:3", "f")
    doubts = certificate.unchecked([("a", out), ("b", stream)], [unknown])
    assert [doubt.where for doubt in doubts] == ["a", "b"]

    with out.open("a") as file:
        file.write('{"text": "added later"}\n')
    assert certificate.checked_against(out, known) is None


# --- bad input
# ---------------------------------------------------------------------------------------------


def refused(stream: Path | str, against: Path, out: Path, columns: tuple[str, ...] = ()) -> str:
    before = {path: path.read_bytes() for path in out.parent.iterdir() if path.is_file()}
    with pytest.raises(UserError) as caught:
        clean([str(stream)], [str(against)], out, columns=columns)
    assert {
        path: path.read_bytes() for path in out.parent.iterdir() if path.is_file()
    } == before  # nothing half-written
    return str(caught.value)


def test_bad_input_is_refused_by_file_and_line_before_anything_is_written(
    tmp_path: Path, test_set: Path
) -> None:
    stream, out = write(tmp_path / "stream.jsonl", {"text": "a row"}), tmp_path / "out.jsonl"
    empty, short = write(tmp_path / "empty.jsonl"), write(tmp_path / "short.jsonl", {"q": "Why?"})
    certificate.path_of(out).write_text("{}")  # of an earlier run, which is kept
    assert "no such file" in refused("nowhere.jsonl", test_set, out)
    assert "no such file" in refused(stream, tmp_path / "*.none", out)
    assert "folder" in refused(tmp_path, test_set, out)
    assert "holds no rows" in refused(empty, test_set, out)
    assert "--against" in refused(stream, empty, out)
    assert "too short" in refused(stream, short, out)
    assert "'question', 'answer'" in refused(stream, test_set, out, columns=("problem",))
    assert "another role" in refused(stream, test_set, stream)
    assert "another role" in refused(stream, test_set, test_set)
    assert "all of it" in refused(test_set, test_set, out)
    with pytest.raises(UserError, match="there is no folder"):
        clean([str(stream)], [str(test_set)], tmp_path / "none" / "out.jsonl")
    for line, said in (
        (b"{nope", "not JSON"),
        (b'"text"', "not an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
    ):
        bad = tmp_path / "bad.jsonl"
        bad.write_bytes(b'{"text": "good"}\n' + line + b"\n")
        message = refused(bad, test_set, out)
        assert f"{bad}:2" in message and said in message
        assert f"{bad}:2" in refused(stream, bad, out)
    (tmp_path / "bad.parquet").write_bytes(b"PAR0")
    assert "cannot be read" in refused(tmp_path / "bad.parquet", test_set, out)
    (tmp_path / "bad.jsonl.gz").write_bytes(b"PAR0")
    assert "cannot be read" in refused(tmp_path / "bad.jsonl.gz", test_set, out)


# --- the command
# -------------------------------------------------------------------------------------------


def test_the_command_takes_several_files_after_one_flag(tmp_path: Path, test_set: Path) -> None:
    more = write(tmp_path / "more.jsonl", {"question": FILLER})
    stream = write(
        tmp_path / "stream.jsonl", {"text": FILLER}, {"text": QUESTION}, {"text": "a row"}
    )
    out = tmp_path / "out.jsonl"
    words = [
        "decontaminate",
        str(stream),
        "--against",
        str(test_set),
        str(more),
        "--columns",
        "question",
        "--out",
        str(out),
    ]
    ran = CliRunner().invoke(cli.app, [*words, "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert (found["rows"], found["removed"], Path(found["report"]).is_file()) == (3, 2, True)
    assert out.read_text() == '{"text": "a row"}\n'
    refusal = CliRunner().invoke(cli.app, [*words, "--threshold", "2"])
    assert isinstance(refusal.exception, UserError) and "--threshold" in str(refusal.exception)


def test_the_command_and_the_function_have_the_same_defaults() -> None:
    of_command, of_function = (
        {name: given.default for name, given in inspect.signature(function).parameters.items()}
        for function in (cli.decontaminate.decontaminate, clean)
    )
    assert [of_command[key] for key in ("ngram", "threshold", "jobs")] == [
        of_function[key] for key in ("ngram", "threshold", "jobs")
    ]


# --- real rows
# ---------------------------------------------------------------------------------------------


@pytest.mark.data
def test_gsm8k_train_rows_are_kept_but_for_those_that_repeat_test_questions(
    tmp_path: Path, shared_data: Path
) -> None:
    train, test = (str(shared_data / "gsm8k" / f"{split}.jsonl") for split in ("train", "test"))
    found = clean([train], [test], tmp_path / "out.jsonl")
    assert 0 < found.removed < found.rows / 1000
