"""Data of the embedded default ``demo-language``: word problems, unrelated text, a tokenizer.

A problem is a triple ``(a, op, b)`` shown in one of three forms (story, question and answer,
drill). Its solution repeats the operation and states the result: ``4 7 + 2 5 = 7 2 .``. Numbers are
always two digit tokens, and every text is words of a closed vocabulary separated by single spaces.

The ``stream`` is noisy; ``feedback``, ``dev`` and ``test`` are clean and share no triple with it or
with one another. Everything is a pure function of its arguments: the splits come from a fixed hash,
the draws from ``random.Random`` seeded with a string, the same on every machine.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

Triple = tuple[int, str, int]

# Percent of the triples that each split holds.
SPLITS = {"stream": 76, "feedback": 8, "dev": 8, "test": 8}

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")

# form -> operation -> templates; {a} and {b} are the operands in the order of the operation.
_FORMS = {
    "story": {
        "+": (
            "{name} has {a} {item} . {name} finds {b} more . how many {item} does {name} have "
            "now ?",
            "there are {a} {item} on the table . {name} gets {b} more . how many are there in "
            "all ?",
        ),
        "-": (
            "{name} has {a} {item} . {name} loses {b} of them . how many {item} does {name} "
            "have now ?",
            "there are {a} {item} on the table . {name} takes {b} away . how many are left ?",
        ),
    },
    "question": {
        "+": (
            "question : what is {a} plus {b} ? answer :",
            "question : what is the sum of {a} and {b} ? answer :",
        ),
        "-": (
            "question : what is {a} minus {b} ? answer :",
            "question : how much more is {a} than {b} ? answer :",
        ),
    },
    "drill": {
        "+": ("drill : {a} + {b} = ?", "compute {a} + {b} ."),
        "-": ("drill : {a} - {b} = ?", "compute {a} - {b} ."),
    },
}

_CHATTER = (
    "the {adjective} {animal} {verb} {where} the {place} .",
    "{name} {verb} {where} the {adjective} {place} {when} .",
    "there is a {adjective} {animal} {where} the {place} .",
    "{when} the {animal} {verb} and {name} {verb} .",
    "the {place} is {adjective} {when} .",
)

_SLOTS = {
    "name": ("ann", "ben", "cleo", "dan", "eve", "finn"),
    "item": ("apples", "books", "coins", "pens", "shells", "stamps"),
    "animal": ("bird", "cat", "dog", "fox", "horse"),
    "place": ("garden", "house", "river", "road", "tree", "wall"),
    "adjective": ("green", "old", "quiet", "red", "small", "tall"),
    "verb": ("rests", "runs", "sings", "sleeps", "waits", "walks"),
    "where": ("behind", "near", "under"),
    "when": ("again", "later", "today"),
}


def answer(a: int, op: str, b: int) -> int:
    """The right result of ``a op b``; ``op`` is ``+`` or ``-``."""
    return a + b if op == "+" else a - b


def mistaken(a: int, op: str, b: int) -> int:
    """The result of computing digit by digit without carry or borrow (the smaller digit is
    subtracted from the larger). It equals :func:`answer` exactly when neither is needed. ``a`` and
    ``b`` are in 0..99."""
    (a_tens, a_units), (b_tens, b_units) = divmod(a, 10), divmod(b, 10)
    if op == "+":
        return (a_tens + b_tens) % 10 * 10 + (a_units + b_units) % 10
    return abs(a_tens - b_tens) * 10 + abs(a_units - b_units)


def problems(
    split: str,
    count: int,
    *,
    seed: int,
    noise_share: float = 0.0,
    random_share: float = 0.0,
    forms: Sequence[str] = ("story", "question", "drill"),
    operations: Sequence[str] = ("+", "-"),
) -> list[dict[str, str]]:
    """``count`` rows ``{"problem", "solution"}`` of one split; a prefix of any longer call.

    Operands are 1..99 with restricted tens digits (``a + b <= 98``; in ``a - b`` the tens digit of
    ``a`` is the larger), uniform over the split's triples: 46 percent of them need a carry or a
    borrow. The stream draws with replacement. In the other splits no two rows share both triple and
    form, so there are at most three rows per triple.

    Args:
        split: ``stream``, ``feedback``, ``dev`` or ``test``. All but the stream are always clean.
        count: number of rows, at least 0; in a clean split at most its number of (triple, form)
            pairs, about 2,000.
        seed: seed of this split's draws; the split's triples do not depend on it.
        noise_share: in [0, 1]: probability that a stream row *that needs a carry or a borrow* shows
            the :func:`mistaken` result, so that the fraction of all stream rows is 0.46 times this.
            The errors at a low share are also errors at a higher one.
        random_share: in [0, 1]: probability that a stream row not made wrong by ``noise_share`` has
            one digit of its result replaced by another.
        forms: at least one of ``story``, ``question``, ``drill``.
        operations: at least one of ``+`` and ``-``.

    Raises:
        ValueError: an argument is out of range, or the split has fewer distinct rows.
    """
    _check_request(split, count, {"noise_share": noise_share, "random_share": random_share})
    if not forms or not operations:
        raise ValueError("forms and operations: got an empty list, accepted: at least one of each")
    rng = random.Random(f"word problems/{split}/{seed}")
    triples = [triple for triple in _triples()[split] if triple[1] in operations]
    if split == "stream":
        return [
            _row(rng.choice(triples), rng.choice(forms), rng, noise_share, random_share)
            for _ in range(count)
        ]
    pairs = [(triple, form) for triple in triples for form in forms]
    if count > len(pairs):
        accepted = f"at most {len(pairs)}, the distinct rows of {split!r}"
        raise ValueError(f"count: got {count}, accepted: {accepted}")
    rng.shuffle(pairs)
    return [_row(triple, form, rng, 0.0, 0.0) for triple, form in pairs[:count]]


def chatter(count: int, *, seed: int) -> list[dict[str, str]]:
    """``count`` >= 0 rows ``{"text"}`` of one to three sentences without a number; a prefix of any
    longer call."""
    if count < 0:
        raise ValueError(f"count: got {count}, accepted: 0 or more")
    rng = random.Random(f"chatter/{seed}")
    return [
        {"text": " ".join(_fill(rng.choice(_CHATTER), rng) for _ in range(rng.randint(1, 3)))}
        for _ in range(count)
    ]


def vocabulary() -> list[str]:
    """All tokens in the order of their ids: special tokens, digits, then words alphabetically."""
    templates = [text for form in _FORMS.values() for texts in form.values() for text in texts]
    words = {word for text in (*templates, *_CHATTER) for word in text.split()}
    words = {word for word in words if not word.startswith("{")} | set("+-=.")
    words |= {word for slot in _SLOTS.values() for word in slot}
    return [*SPECIAL_TOKENS, *"0123456789", *sorted(words)]


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of :func:`vocabulary` that adds no special tokens.

    Saved next to a model, it loads through ``AutoTokenizer`` for most architectures (Llama, GPT-2,
    Qwen3 among them) but not for Qwen2: transformers 5 replaces any tokenizer in the folder by
    Qwen2's own, whose byte-level splitting silently drops most words.
    """
    pad, eos, unk = SPECIAL_TOKENS
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token=unk))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
        # no token_type_ids, which decoder-only models do not accept
        model_input_names=["input_ids", "attention_mask"],
    )


def _check_request(split: str, count: int, shares: Mapping[str, float]) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, accepted: {', '.join(SPLITS)}")
    if count < 0:
        raise ValueError(f"count: got {count}, accepted: 0 or more")
    for key, fraction in shares.items():
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"{key}: got {fraction}, accepted: 0 to 1")
        if fraction and split != "stream":
            why = f"because the rows of {split!r} are always clean"
            raise ValueError(f"{key}: got {fraction}, accepted: 0, {why}")


@cache
def _triples() -> dict[str, list[Triple]]:
    """The triples of every split, in a fixed order."""
    # With these tens digits, a carry or borrow depends on the units alone: nearly half of the
    # problems need one, and the mistaken result is always a plausible two-digit number. A sum also
    # represents its mirror image (a <= b here), which must be in the same split.
    operands = [(a, b) for a in range(1, 100) for b in range(1, 100)]
    sums = [(a, "+", b) for a, b in operands if a <= b and a // 10 + b // 10 <= 8]
    differences = [(a, "-", b) for a, b in operands if a // 10 > b // 10]

    triples: dict[str, list[Triple]] = {split: [] for split in SPLITS}
    for needs_carry in (True, False):  # separately, so that every split has the same share of them
        group = [t for t in sums + differences if (mistaken(*t) != answer(*t)) == needs_carry]
        group.sort(key=lambda triple: hashlib.sha256("{} {} {}".format(*triple).encode()).digest())
        cuts = [len(group) * percent // 100 for percent in accumulate(SPLITS.values(), initial=0)]
        for split, (start, stop) in zip(SPLITS, pairwise(cuts), strict=True):
            for a, op, b in group[start:stop]:
                triples[split].append((a, op, b))
                if op == "+" and a != b:
                    triples[split].append((b, op, a))
    return triples


def _row(
    triple: Triple, form: str, rng: random.Random, noise_share: float, random_share: float
) -> dict[str, str]:
    a, op, b = triple
    problem = _fill(rng.choice(_FORMS[form][op]), rng, a=_digits(a), b=_digits(b))
    # All draws are made at any share, so that streams of different noise stay aligned row by row.
    systematic, slip = rng.random() < noise_share, rng.random() < random_share
    place, shift = rng.choice((1, 10)), rng.randint(1, 9)
    result = answer(a, op, b)
    if systematic and mistaken(a, op, b) != result:
        result = mistaken(a, op, b)
    elif slip:
        digit = result // place % 10
        result += ((digit + shift) % 10 - digit) * place
    return {"problem": problem, "solution": f"{_digits(a)} {op} {_digits(b)} = {_digits(result)} ."}


def _fill(template: str, rng: random.Random, **numbers: str) -> str:
    return template.format(**{slot: rng.choice(words) for slot, words in _SLOTS.items()}, **numbers)


def _digits(number: int) -> str:
    return " ".join(f"{number:02d}")
