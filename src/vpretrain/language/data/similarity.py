"""Near-duplicates of protected texts, also inside longer documents.

A stream document that contains a test question among other text is a leak, although the Jaccard
similarity of the two is small. The measure is therefore one-sided (containment,
``|P ∩ W| / |P|``): ``P`` are the word n-grams of the protected text, ``W`` those of a window of the
document. It is computed exactly, but for few pairs: only the rarest n-grams of each protected text
are indexed, just enough of them that a document with none of them cannot reach the threshold (the
prefix filter of set-similarity joins: Chaudhuri, Ganti and Kaushik, ICDE 2006; Bayardo, Ma and
Srikant, WWW 2007). Unlike MinHash this misses nothing above the threshold. The cost of a document
does not depend on the length of the stream, and hardly on the number of protected texts.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NGRAM = 3
"""Words in an n-gram. Of GSM8K test questions with a name and a number changed throughout, 3-grams
find 99.5% and 5-grams at the same threshold 96.9% (``benchmarks/decontamination.py``)."""

THRESHOLD = 0.5
"""Least fraction of a protected text's n-grams in a document that is its near-duplicate."""

FEWEST_NGRAMS = 8
"""Least number of common n-grams of near-duplicates; of a text with fewer, all have to match."""

# A text needs this many more distinct words than an n-gram: shorter ones occur anywhere by chance.
_EXTRA_WORDS = 2
# N-grams in more protected texts than both limits belong to a template or a category.
_COMMON_TEXTS, _COMMON_SHARE = 10, 0.001
# In lengths of the protected text: its sentences may be moved, with others in between.
_WINDOW = 2.0

# In scripts without spaces every character is a word.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\d+(?:\.\d+)*|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DROPPED = str.maketrans("", "", "'’\u00ad\u200b\u200c\u200d\ufeff")  # apostrophes, zero width

Ngram = tuple[str, ...]


def words(text: str) -> list[str]:
    """The words and numbers of a text, casefolded, without punctuation and layout."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if "," in text:
        text = _THOUSANDS.sub("", text)
    return _WORD.findall(text.casefold().translate(_DROPPED))


@dataclass(frozen=True)
class Match:
    """The protected text that a document resembles most.

    Args:
        text: index of the protected text.
        similarity: fraction of its n-grams in one window of the document, from the threshold to 1.
    """

    text: int
    similarity: float


@dataclass(frozen=True)
class _Protected:
    ngrams: frozenset[Ngram]
    required: int
    window: int


class Protected:
    """Protected texts, indexed to find their near-duplicates.

    N-grams that occur in more than a thousandth of the texts (and in more than ten) belong to a
    template or a category and do not count, unless a text has fewer than ``FEWEST_NGRAMS`` others:
    then all of its n-grams have to match.

    Args:
        texts: the protected texts.
        ngram: words in an n-gram, at least 1.
        threshold: least similarity, in (0, 1].

    Attributes:
        unprotected: indices of texts that are too short to be found other than by chance, or
            consist of template n-grams alone.
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
            # Copies of a question (with several verified solutions) do not make a template; copies
            # of a short text, such as a category, do.
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
            # A document with `required` of the n-grams has at least one of any
            # `len(kept) - required + 1` of them, so it is enough to index the rarest that many.
            rarest = sorted(kept, key=lambda gram: (frequency[gram], gram))
            for gram in rarest[: len(kept) - required + 1]:
                index[gram].append(at)
        self._index = dict(index)
        self._indexed = frozenset(index)

    def __len__(self) -> int:
        return len(self._texts)

    def best(self, document: str) -> Match | None:
        """The most similar protected text (the first of ties), or None below the threshold."""
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
    """The maximum number of distinct n-grams of a text among any ``text.window`` consecutive
    n-grams of a document."""
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
