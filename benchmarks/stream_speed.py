"""Short documents through the stream (read, tokenised, mixed, packed) against the tokenizer alone
on the same text.

    OMP_NUM_THREADS=1 python benchmarks/stream_speed.py [--documents 1000000] [--out
    results/stream.json]

A JSON Lines file of generated sentences goes the way of a source of a recipe: read and laid down,
tokenised and laid down, then one pass through the stream. Before each thousand documents the
tokenizer alone is given the same texts in one call, outside the time of the stream, so that both
meet the same machine. One thread throughout; seconds are of the process, so that others on the
machine do not count, and what the imports left behind is frozen, so that its garbage collection
falls on neither. The share is the tokenizer's seconds over the stream's: 1 would be a stream that
costs nothing beside its tokenizer.

Memory is the most that the process ever held (`ru_maxrss`), after a first round with a tenth of the
documents and after the round with all of them. The comparison of all rows with a thousand feedback
rows is timed apart.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from transformers import Qwen2Tokenizer

from vpretrain.language.data.reading import Reader
from vpretrain.language.data.rows import Row, overlap
from vpretrain.language.data.stream import Source as Ingredient
from vpretrain.language.data.stream import Stream
from vpretrain.language.data.texts import documents_of
from vpretrain.language.recipe.data import Data, Source
from vpretrain.language.recipe.feedback import FeedbackSet
from vpretrain.language.recipe.rows import TableFiles, WordProblems
from vpretrain.run.folder import environment
from vpretrain.system.files import write_json

WINDOW, BATCH, VOCABULARY = 512, 16, 4096
SYLLABLES = [
    a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")
]


def texts(count: int) -> Iterator[str]:
    """Sentences of twenty to fifty words of a made-up language, with numbers among them."""
    rng = random.Random("stream speed")
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(4000)] + [
        str(n) for n in range(500)
    ]
    for _ in range(count):
        yield " ".join(rng.choices(words, k=rng.randint(20, 50))) + "."


class Beside(Sequence[Row]):
    """Rows that are tokenised once more, alone and on a clock of their own, whenever a slice of
    them is asked for.
    """

    def __init__(self, rows: Sequence[Row], tokenizer: Qwen2Tokenizer) -> None:
        self.rows, self.tokenizer = rows, tokenizer
        self.alone_seconds = self.away_seconds = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        """The same rows."""
        result = self.rows[index]
        if isinstance(result, Row):
            return result
        away = time.process_time()
        some = [row.text for row in result]
        start = time.process_time()
        self.tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)
        end = time.process_time()
        self.alone_seconds += end - start
        self.away_seconds += time.process_time() - away
        return result


def peak_mib() -> float:
    """The most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def through(path: Path, documents: int, tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """One source of so many documents, from its file to the last window of a pass."""
    source = Source(name="s", rows=TableFiles(kind="jsonl", path=path, text="text", rows=documents))
    verified_rows = WordProblems(kind="word_problems", split="feedback", rows=1000)
    feedback = FeedbackSet(rows=verified_rows)
    data = Data(
        window_tokens=WINDOW, batch_size=BATCH, stream=[source], feedback=feedback, evaluation={}
    )
    start = time.process_time()
    reader = Reader(data)
    rows = reader.stream(source, "data.stream.0")
    read = time.process_time()
    beside = Beside(rows, tokenizer)
    made, counts = documents_of(source, beside, tokenizer, data)
    tokenised = time.process_time()
    stream = Stream(
        [Ingredient("s", made, 1.0)], batch_size=BATCH, window_tokens=WINDOW, seed=0, pad_id=0
    )
    seen = filled = batches = 0
    while seen < documents:
        batch = next(stream)
        seen, filled, batches = seen + len(batch.documents), filled + batch.tokens, batches + 1
    streamed = time.process_time()
    verified = reader.rows(verified_rows, "feedback", "data.feedback.rows")
    compared = time.process_time()
    assert not overlap(verified, rows)
    ended = time.process_time()
    seconds = {
        "read": read - start,
        "tokenise": tokenised - read - beside.away_seconds,
        "stream": streamed - tokenised,
    }
    return {
        "documents": counts.documents,
        "tokens": counts.tokens,
        "filled": filled / (batches * BATCH * WINDOW),
        "seconds": seconds,
        "seconds_of_the_tokenizer_alone": beside.alone_seconds,
        "share": beside.alone_seconds / sum(seconds.values()),
        "seconds_of_the_comparison_with_feedback": ended - compared,
        "share_with_the_comparison": beside.alone_seconds
        / (sum(seconds.values()) + ended - compared),
        "peak_mib": peak_mib(),
    }


def main() -> None:
    """Prints one line a round, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        list(texts(5_000)), vocab_size=VOCABULARY, show_progress=False
    )
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.jsonl"
        with path.open("w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts(asked.documents))
        before = peak_mib()
        gc.freeze()
        for documents in (asked.documents // 10, asked.documents):
            rounds.append(through(path, documents, tokenizer))
            print(json.dumps(rounds[-1], indent=1))
    result = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/stream_speed.py --documents "
        f"{asked.documents}",
        "description": "short documents through the stream against the tokenizer alone on the same "
        "text, "
        "one "
        "thread",
        "window_tokens": WINDOW,
        "batch_size": BATCH,
        "peak_mib_before": before,
        "rounds": rounds,
        "environment": environment(),
    }
    if asked.out:
        write_json(asked.out, result)


if __name__ == "__main__":
    main()
