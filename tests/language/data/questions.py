"""Two questions of a test set, and text around them."""

from __future__ import annotations

import json
import re
from pathlib import Path

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
