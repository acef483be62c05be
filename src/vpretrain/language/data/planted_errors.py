"""Synthetic noise: wrong digits in a fraction of the solutions, to measure its effect on a run."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Iterator

from vpretrain.language.data.rows import Row


def corrupt_digits(rows: Iterable[Row], fraction: float, seed: int) -> Iterator[Row]:
    """The rows; in the text of each (a conversation's last message), with probability ``fraction``,
    one digit of every number is replaced by another."""
    rng = random.Random(f"corrupt_digits {seed}")

    def wrong(match: re.Match[str]) -> str:
        number = match.group()
        at = rng.randrange(len(number))
        digit = rng.choice([d for d in "0123456789" if d != number[at]])
        return number[:at] + digit + number[at + 1 :]

    for row in rows:
        if rng.random() < fraction:
            text, chat = re.sub(r"\d+", wrong, row.text), row.conversation
            if chat is not None:
                *before, answer = chat["messages"]
                chat = {**chat, "messages": [*before, {**answer, "content": text}]}
            row = dataclasses.replace(row, text=text, conversation=chat)
        yield row
