"""Near-duplicates of protected texts, in whatever they are embedded.

A stream document that holds a test question among other text is a leak, and the Jaccard similarity
of the two is small all the same. So the measure is one-sided (containment, ``|P ∩ W| / |P|``):
``P`` are the word n-grams of the protected text, ``W`` those of a window of the document. It is
computed exactly, for few pairs: of every protected text only its rarest n-grams are indexed, and so
many of them that a document which has none of those cannot reach the threshold (the prefix filter
of set-similarity joins: Chaudhuri, Ganti and Kaushik, ICDE 2006; Bayardo, Ma and Srikant, WWW
2007). Unlike MinHash it misses nothing above the threshold, and what a document costs depends
neither on the length of the stream nor, much, on the number of protected texts.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NGRAM = 3
"""Words in an n-gram. Of GSM8K test questions in which a name and a number were changed throughout,
3-grams find 99.5%, 5-grams at the same threshold 96.9% (``benchmarks/decontamination.py``)."""

THRESHOLD = 0.5
"""Share of a protected text's n-grams from which on a document is its near-duplicate."""

FEWEST_NGRAMS = 8
"""Fewer common n-grams are no similarity; a text that has fewer is looked for word for word."""

# a text needs so many more distinct words than n-grams have: shorter ones stand anywhere by chance
_EXTRA_WORDS = 2
# N-grams of more protected texts than both are a template or a category, not a question.
_COMMON_TEXTS, _COMMON_SHARE = 10, 0.001
# Lengths of the protected text: its sentences may be moved, with other sentences between.
_WINDOW = 2.0

# Scripts that write no spaces count by character.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\d+(?:\.\d+)*|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DROPPED = str.maketrans("", "", "'’\u00ad\u200b\u200c\u200d\ufeff")  # these have no width

Ngram = tuple[str, ...]


def words(text: str) -> list[str]:
    """What is compared of a text: words and numbers, without case, punctuation and layout."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if "," in text:
        text = _THOUSANDS.sub("", text)
    return _WORD.findall(text.casefold().translate(_DROPPED))


@dataclass(frozen=True)
class Match:
    """The protected text that a document resembles most.

    Args:
        text: its index.
        similarity: share of its n-grams that stand in one window of the document; threshold to 1.
    """

    text: int
    similarity: float


@dataclass(frozen=True)
class _Protected:
    ngrams: frozenset[Ngram]
    required: int
    window: int


class Protected:
    """Texts whose near-duplicates are looked for.

    N-grams that more than a thousandth of the texts (and more than ten of them) share are those of
    a template or a category, and do not count, unless the text has fewer than ``FEWEST_NGRAMS``
    others: then all of its n-grams have to be there.

    Args:
        texts: the protected texts.
        ngram: words in an n-gram, at least 1.
        threshold: least similarity, in (0, 1].

    Attributes:
        unprotected: indices of texts too short to tell from chance, or made of template alone.
    """

    def __init__(
        self, texts: Sequence[str], *, ngram: int = NGRAM, threshold: float = THRESHOLD
    ) -> None:
        self.ngram = ngram
        self.unprotected: list[int] = []
        self._texts: dict[int, _Protected] = {}
        split = [tuple(words(text)) for text in texts]
        grams = [self._ngrams(of) for of in split]
        first = {of: at for at, of in reversed(list(enumerate(split)))}
        frequency: Counter[Ngram] = Counter()
        for at, text in enumerate(grams):
            # Copies of a question (several verified solutions each) are no template; those of a
            # short text, a category, are.
            if first[split[at]] == at or len(text) < FEWEST_NGRAMS:
                frequency.update(set(text))
        common = max(_COMMON_TEXTS, math.floor(_COMMON_SHARE * len(texts)))
        index: defaultdict[Ngram, list[int]] = defaultdict(list)
        for at in sorted(first.values()):
            text = grams[at]
            own = {gram for gram in text if frequency[gram] <= common}
            if len(set(split[at])) < ngram + _EXTRA_WORDS or not own:
                self.unprotected.append(at)
                continue
            short = len(own) < FEWEST_NGRAMS
            kept = frozenset(text) if short else frozenset(own)
            required = len(kept) if short else max(math.ceil(threshold * len(kept)), FEWEST_NGRAMS)
            self._texts[at] = _Protected(kept, required, round(_WINDOW * (len(text) + ngram - 1)))
            # Whoever has `required` of them has one of any `len - required + 1`: index the rarest
            # that many.
            rarest = sorted(kept, key=lambda gram: (frequency[gram], gram))
            for gram in rarest[: len(kept) - required + 1]:
                index[gram].append(at)
        self._index = dict(index)
        self._indexed = frozenset(index)

    def __len__(self) -> int:
        return len(self._texts)

    def best(self, document: str) -> Match | None:
        """The most similar protected text (of equals, the first) from the threshold on, or None."""
        order = self._ngrams(words(document))
        there = set(order)
        candidates = {at for gram in there & self._indexed for at in self._index[gram]}
        best: Match | None = None
        for at in sorted(candidates):
            text = self._texts[at]
            if len(text.ngrams & there) < text.required:
                continue
            hits = _most_in_window(order, text)
            similarity = hits / len(text.ngrams)
            if hits >= text.required and (best is None or similarity > best.similarity):
                best = Match(at, similarity)
        return best

    def _ngrams(self, of: Sequence[str]) -> list[Ngram]:
        return list(zip(*(of[start:] for start in range(self.ngram)), strict=False))


def _most_in_window(order: Iterable[Ngram], text: _Protected) -> int:
    """The most distinct n-grams of a text within ``text.window`` consecutive ones of a document."""
    hits = [(at, gram) for at, gram in enumerate(order) if gram in text.ngrams]
    inside: Counter[Ngram] = Counter()
    most = first = 0
    for at, gram in hits:
        inside[gram] += 1
        while hits[first][0] <= at - text.window:
            left = hits[first][1]
            inside[left] -= 1
            if not inside[left]:
                del inside[left]
            first += 1
        most = max(most, len(inside))
    return most
