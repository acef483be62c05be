"""Near-duplicates are found in whatever they are embedded, unrelated texts are not."""

from __future__ import annotations

import random

import pytest

from tests.language.data.questions import CHANGED, FILLER, OTHER, QUESTION, sentences
from vpretrain.language.data import similarity
from vpretrain.language.data.similarity import Protected, words


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_question_is_found(change: str) -> None:
    result = Protected([OTHER, QUESTION]).best(CHANGED[change])
    assert result is not None and result.text == 1


def test_the_similarity_is_the_share_of_ngrams_in_common() -> None:
    text = "a b c d e f g h i j k l"  # ten 3-grams, of which the changed last word breaks one
    result = Protected([text], ngram=3, threshold=0.5).best("x y " + text.replace("l", "z"))
    assert result is not None and result.similarity == pytest.approx(9 / 10)
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
        result = protected.best(" ".join(of))
        assert (result and result.similarity) == best
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
