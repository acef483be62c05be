"""The embedded default: disjoint splits, the promised share and kind of errors, a closed
vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, PretrainedConfig

from vpretrain.language.data.word_problems import (
    SPLITS,
    answer,
    chatter,
    mistaken,
    problems,
    tokenizer,
    vocabulary,
)

CLEAN = ("feedback", "dev", "test")
Solution = tuple[int, str, int, int]


def read_solution(text: str) -> Solution | None:
    """``(a, op, b, stated result)`` of ``4 7 + 2 5 = 7 2 .``; None for any other shape."""
    match = re.fullmatch(r"(\d \d) ([+-]) (\d \d) = (\d \d) \.", text.strip())
    if match is None:
        return None
    a, op, b, result = (part.replace(" ", "") for part in match.groups())
    return int(a), op, int(b), int(result)


def solutions(rows: list[dict[str, str]]) -> list[Solution]:
    read = [read_solution(row["solution"]) for row in rows]
    assert None not in read
    return [solution for solution in read if solution is not None]


def long_addition(a: int, b: int) -> int:
    """Column addition in which the carry is forgotten, written out."""
    units = (a % 10 + b % 10) % 10
    return 10 * (a // 10 + b // 10) + units


def smaller_from_larger(a: int, b: int) -> int:
    columns = zip(f"{a:02d}", f"{b:02d}", strict=True)
    return int("".join(str(max(int(x), int(y)) - min(int(x), int(y))) for x, y in columns))


def test_same_call_same_rows_and_another_seed_other_rows() -> None:
    for split in SPLITS:
        assert problems(split, 50, seed=3) == problems(split, 50, seed=3)
        assert problems(split, 50, seed=3) != problems(split, 50, seed=4)
        assert problems(split, 20, seed=3) == problems(split, 50, seed=3)[:20]
    assert chatter(50, seed=3) == chatter(50, seed=3) != chatter(50, seed=4)
    assert chatter(20, seed=3) == chatter(50, seed=3)[:20]


def test_rows_are_the_same_on_every_machine() -> None:
    rows = problems("stream", 200, seed=0, noise_share=0.5, random_share=0.1) + problems(
        "test", 200, seed=0
    )
    digest = hashlib.sha256(json.dumps([rows, chatter(200, seed=0)]).encode()).hexdigest()
    assert digest[:16] == "58dbed1d5af8873d"


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_triple(seed: int) -> None:
    counts = {"stream": 5_000, "feedback": 2_000, "dev": 2_000, "test": 2_000}
    # different seeds per split: the split of a triple must not hang on the seed
    seen = {
        split: {s[:3] for s in solutions(problems(split, count, seed=seed + i))}
        for i, (split, count) in enumerate(counts.items())
    }
    for one in seen:
        for other in seen:
            assert one == other or not seen[one] & seen[other]
    # nor a sum and its mirror image
    mirrored = {(b, op, a) for a, op, b in seen["stream"] if op == "+"}
    assert not any(mirrored & seen[split] for split in CLEAN)


@pytest.mark.parametrize("split", CLEAN)
def test_clean_splits_are_right_distinct_and_large_enough(split: str) -> None:
    rows = problems(split, 2_000, seed=7)
    assert len({row["problem"] for row in rows}) == len(rows)
    for a, op, b, result in solutions(rows):
        assert result == answer(a, op, b)
        assert 0 <= result <= 99
    assert len({s[:3] for s in solutions(rows)}) >= 700


def test_the_problem_states_the_operands_in_order() -> None:
    for row in problems("stream", 500, seed=0):
        a, _, b, _ = solutions([row])[0]
        digits = [token for token in row["problem"].split() if token.isdigit()]
        assert "".join(digits) == f"{a:02d}{b:02d}"


@pytest.mark.parametrize("noise_share", [0.25, 0.55])
def test_noise_is_of_the_asked_share_and_kind(noise_share: float) -> None:
    count, random_share = 20_000, 0.03
    rows = solutions(
        problems("stream", count, seed=1, noise_share=noise_share, random_share=random_share)
    )
    concerned = [s for s in rows if mistaken(*s[:3]) != answer(*s[:3])]
    assert len(concerned) / count == pytest.approx(0.46, abs=0.015)
    systematic = [s for s in concerned if s[3] == mistaken(*s[:3])]
    assert len(systematic) / len(concerned) == pytest.approx(noise_share, abs=0.015)

    slips = [s for s in rows if s[3] not in (answer(*s[:3]), mistaken(*s[:3]))]
    assert len(slips) / (count - len(systematic)) == pytest.approx(random_share, abs=0.005)
    for a, op, b, result in slips:
        wrong_digits = [
            x != y for x, y in zip(f"{answer(a, op, b):02d}", f"{result:02d}", strict=True)
        ]
        assert sum(wrong_digits) == 1


def test_streams_of_different_noise_differ_in_results_only() -> None:
    clean, low, high = (
        problems("stream", 500, seed=2, noise_share=fraction) for fraction in (0.0, 0.25, 0.55)
    )
    assert (
        [row["problem"] for row in clean]
        == [row["problem"] for row in low]
        == [row["problem"] for row in high]
    )
    wrong_low = {i for i in range(500) if low[i] != clean[i]}
    wrong_high = {i for i in range(500) if high[i] != clean[i]}
    assert wrong_low < wrong_high
    assert all(s[3] == answer(*s[:3]) for s in solutions(clean))


def test_mistaken_is_the_dropped_carry_and_smaller_from_larger() -> None:
    assert mistaken(47, "+", 25) == 62
    assert mistaken(52, "-", 17) == 45
    assert mistaken(41, "+", 25) == answer(41, "+", 25) == 66
    assert mistaken(57, "-", 12) == answer(57, "-", 12) == 45
    for a in range(100):
        for b in range(100):
            if a // 10 + b // 10 <= 9:
                assert mistaken(a, "+", b) == long_addition(a, b)
                assert (mistaken(a, "+", b) != a + b) == (a % 10 + b % 10 > 9)
            if a >= b:
                assert mistaken(a, "-", b) == smaller_from_larger(a, b)
                assert (mistaken(a, "-", b) != a - b) == (a % 10 < b % 10)


def test_read_solution_refuses_other_shapes() -> None:
    assert read_solution(" 4 7 + 2 5 = 7 2 . ") == (47, "+", 25, 72)
    for text in (
        "",
        "4 7 + 2 5 = 7 2",
        "4 7 + 2 5 = 7 .",
        "47 + 25 = 72 .",
        "4 7 * 2 5 = 7 2 .",
        "7 2 .",
    ):
        assert read_solution(text) is None


def test_chatter_holds_no_numbers() -> None:
    rows = chatter(500, seed=0)
    assert len({row["text"] for row in rows}) > 400
    for row in rows:
        assert row.keys() == {"text"}
        assert row["text"].endswith(" .")
        assert not any(character.isdigit() for character in row["text"])


def test_every_text_is_made_of_the_vocabulary() -> None:
    words = vocabulary()
    assert len(words) == len(set(words)) <= 96
    used = set()
    for split in SPLITS:
        for row in problems(split, 1_000, seed=5):
            used |= set(row["problem"].split()) | set(row["solution"].split())
    used |= {word for row in chatter(1_000, seed=5) for word in row["text"].split()}
    assert used == set(words) - {"<pad>", "<eos>", "<unk>"}


@pytest.mark.parametrize("model", [None, LlamaConfig, GPT2Config])
def test_tokenizer_round_trips_through_a_folder(
    tmp_path: Path, model: type[PretrainedConfig] | None
) -> None:
    made = tokenizer()
    made.save_pretrained(tmp_path)
    if (
        model is not None
    ):  # AutoTokenizer may choose its class by the model that lies beside the tokenizer
        model().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [f"{row['problem']} {row['solution']}" for row in problems("test", 50, seed=0)]
    texts += [row["text"] for row in chatter(50, seed=0)]
    for tok in (made, loaded):
        assert len(tok) == len(vocabulary())
        assert (tok.pad_token, tok.eos_token, tok.unk_token) == ("<pad>", "<eos>", "<unk>")
        for text in texts:
            encoded = tok(text)
            assert encoded.keys() == {"input_ids", "attention_mask"}
            assert encoded["input_ids"] == [vocabulary().index(word) for word in text.split()]
            assert tok.decode(encoded["input_ids"]) == text
    assert made("zebra")["input_ids"] == [made.unk_token_id]


@pytest.mark.parametrize("split", CLEAN)
def test_asking_for_more_distinct_rows_than_there_are(split: str) -> None:
    with pytest.raises(ValueError, match=r"at most 2\d\d\d, the distinct rows"):
        problems(split, 3_000, seed=0)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(
        ValueError, match="split: got 'train', accepted: stream, feedback, dev, test"
    ):
        problems("train", 1, seed=0)
    with pytest.raises(ValueError, match="count: got -1"):
        problems("stream", -1, seed=0)
    with pytest.raises(ValueError, match="count: got -1"):
        chatter(-1, seed=0)
    with pytest.raises(ValueError, match=r"noise_share: got 1\.5"):
        problems("stream", 1, seed=0, noise_share=1.5)
    with pytest.raises(
        ValueError, match=r"random_share: got 0\.1, accepted: 0, because the rows of 'test'"
    ):
        problems("test", 1, seed=0, random_share=0.1)


@pytest.mark.parametrize("split", ["stream", "test"])
def test_forms_and_operations_are_the_only_ones_drawn(split):
    rows = problems(split, 200, seed=0, forms=["drill"], operations=["-"])
    assert {read_solution(row["solution"])[1] for row in rows} == {"-"}
    assert all(row["problem"].startswith(("drill :", "compute")) for row in rows)
    with pytest.raises(ValueError, match="forms and operations"):
        problems(split, 1, seed=0, forms=[])
