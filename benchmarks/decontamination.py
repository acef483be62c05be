"""Does decontamination find planted near-duplicates, keep unrelated rows, and cost the same per row
in a longer stream?

    python benchmarks/decontamination.py ../shared/data [--rows 10000 100000 1000000] [--parts cost
    quality]

Protected are all rows of GSM8K test, question and answer. Planted are its questions changed: a
number, a name (everywhere), both, the order of sentences, case and punctuation; and the first,
second and fourth of these inside a longer prose document. A plant that its change leaves as it was
does not count. Unrelated are GSM8K train, the mathematics questions and prose. Beside it stand
5-grams, and MinHash LSH over whole rows (datasketch, 128 permutations) with exact Jaccard
similarity of 3-grams, both at the same threshold.

Cost is CPU seconds of one process, since others use this machine: `decontaminate` from file to file
against reading the same rows and tokenising them with a BPE of 8,192 words (`tokenizers`, one
thread). The rows are those of GSM8K train and four times as many mathematics questions, shuffled,
and again from the start when they run out. Writes `results/decontamination.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import re
import string
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from datasketch import MinHash, MinHashLSH
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vpretrain.language.data.decontaminate import decontaminate
from vpretrain.language.data.raw_rows import lines, text_of
from vpretrain.language.data.similarity import NGRAM, THRESHOLD, Protected, words
from vpretrain.run.folder import environment
from vpretrain.system.files import write_json
from vpretrain.system.tables import parsed

SEEDS = (0, 1, 2)
Change = Callable[[str, random.Random], str]
"""Of a text, by its own draws."""
CAPITALISED = re.compile(  # and no name
    r"A|After|All|An|And|As|At|Before|Because|But|By|Each|Every|Find|Five|Four|For|From|He|Her|His|How|If"
    r"|In|It|Its|Last|On|One|Of|She|Since|So|Some|The|Their|There|They|This|Three|To|Today|Two|What|When|While|With"
)


def number(text: str, draw: random.Random) -> str:
    """One number becomes another, wherever it stands."""
    result = sorted(set(re.findall(r"\d[\d,]*(?:\.\d+)?", text)))
    if not result:
        return text
    return re.sub(
        rf"(?<![\d.,]){re.escape(draw.choice(result))}(?!\d)", str(draw.randint(2, 999)), text
    )


def name(text: str, draw: random.Random) -> str:
    """One name becomes another, wherever it stands."""
    lower = set(re.findall(r"\b[a-z]+\b", text))
    capital = Counter(re.findall(r"\b[A-Z][a-z]+\b", text))
    result = sorted(
        word for word in capital if not CAPITALISED.fullmatch(word) and word.lower() not in lower
    )
    return re.sub(rf"\b{draw.choice(result)}\b", "Zebedee", text) if result else text


def order(text: str, draw: random.Random) -> str:
    """The sentences change places."""
    result = re.split(r"(?<=[.?!])\s+", text.strip())
    draw.shuffle(result)
    return " ".join(result)


def surface(text: str, draw: random.Random) -> str:
    """Upper or lower case, no punctuation, other white space."""
    text = text.translate(str.maketrans("", "", string.punctuation))
    return (text.upper() if draw.random() < 0.5 else text.lower()).replace(
        " ", draw.choice(["  ", "\n", "\t"])
    )


def both(text: str, draw: random.Random) -> str:
    """One number and one name."""
    return number(name(text, draw), draw)


def planted(questions: list[str], prose: list[str]) -> dict[str, list[tuple[int, str]]]:
    """By kind, the index of a question and the text that holds it."""

    def inside(change: Change) -> Change:
        def put(text: str, draw: random.Random) -> str:
            changed, document = change(text, draw), draw.choice(prose)
            at = draw.randrange(len(document))
            return f"{document[:at]}\n{changed}\n{document[at:]}" if changed != text else text

        return put

    kinds: dict[str, Change] = {
        "number": number,
        "name": name,
        "number and name": both,
        "order": order,
        "surface": surface,
    }
    kinds |= {f"{kind}, in a document": inside(kinds[kind]) for kind in ("number", "name", "order")}
    plants: dict[str, list[tuple[int, str]]] = {}
    for kind, change in kinds.items():
        made = (
            (at, text, change(text, random.Random(f"{seed} {kind} {at}")))
            for seed in SEEDS
            for at, text in enumerate(questions)
        )
        plants[kind] = [(at, new) for at, text, new in made if new != text]
    return plants


class WholeRows:
    """MinHash LSH over whole rows with exact Jaccard similarity: what containment is
    compared with.
    """

    def __init__(self, texts: list[str]) -> None:
        self.grams = [self._grams(text) for text in texts]
        self.index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
        for at, result in enumerate(self.grams):
            self.index.insert(at, self._hashed(result))

    def best(self, text: str) -> int | None:
        """The first protected text that is similar enough."""
        there = self._grams(text)
        for at in self.index.query(self._hashed(there)) if there else ():
            if len(there & self.grams[at]) >= THRESHOLD * len(there | self.grams[at]):
                return int(at)
        return None

    def _grams(self, text: str) -> set[str]:
        of = words(text)
        return {" ".join(of[at : at + NGRAM]) for at in range(len(of) - NGRAM + 1)}

    def _hashed(self, grams: set[str]) -> MinHash:
        result = MinHash(num_perm=128)
        result.update_batch([gram.encode() for gram in grams])
        return result


def recall(
    best: Callable[[str], Any], plants: dict[str, list[tuple[int, str]]]
) -> dict[str, dict[str, float]]:
    """By kind: how many plants there are, and the share found."""
    return {
        kind: {"planted": len(of), "found": sum(best(text) is not None for _, text in of) / len(of)}
        for kind, of in plants.items()
    }


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def trained(data: Path) -> Tokenizer:
    """A byte-level BPE of the stream's own text, which is the quickest it can have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sample = itertools.chain(
        rows_of(data / "gsm8k" / "train.jsonl"),
        itertools.islice(rows_of(data / "mathematics" / "train.jsonl"), 20_000),
    )
    tokenizer.train_from_iterator(
        map(text_of, sample), trainers.BpeTrainer(vocab_size=8192, show_progress=False)
    )
    return tokenizer


def tokenise(path: Path, tokenizer: Tokenizer) -> int:
    """Reads a file and tokenises it, a thousand rows a call; the number of tokens."""
    tokens, result = 0, lines(path)
    while some := list(itertools.islice(result, 1_000)):
        encoded = tokenizer.encode_batch_fast([text_of(parsed(line, "")) for _, line in some])
        tokens += sum(len(one) for one in encoded)
    return tokens


def cost(data: Path, rows: int, tokenizer: str, folder: Path) -> dict[str, Any]:
    """CPU microseconds a row of both, on a stream of so many rows; in a process of its own, for its
    memory's peak.
    """
    train = (data / "gsm8k" / "train.jsonl").read_bytes().splitlines(keepends=True)
    other = (
        (data / "mathematics" / "train.jsonl")
        .read_bytes()
        .splitlines(keepends=True)[: 4 * len(train)]
    )
    mixed = train + other
    random.Random(0).shuffle(mixed)
    stream = folder / "stream.jsonl"
    with stream.open("wb") as file:
        file.writelines(itertools.islice(itertools.cycle(mixed), rows))
    del train, other, mixed
    start, wall = time.process_time(), time.perf_counter()
    result = decontaminate(
        [str(stream)], [str(data / "gsm8k" / "test.jsonl")], folder / "out.jsonl"
    )
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    bpe = Tokenizer.from_str(tokenizer)
    start = time.process_time()
    tokens = tokenise(stream, bpe)
    tokenising = time.process_time() - start
    return {
        "rows": rows,
        "removed": result.removed,
        "tokens": tokens,
        "bytes": stream.stat().st_size,
        "decontaminate_us_per_row": 1e6 * seconds / rows,
        "tokenise_us_per_row": 1e6 * tokenising / rows,
        "ratio": seconds / tokenising,
        "wall_seconds": wall,
        "peak_resident_mib": peak,
    }


def quality(data: Path, folder: Path) -> dict[str, Any]:
    """What is found of what was planted, and what is removed of unrelated rows."""
    test = list(rows_of(data / "gsm8k" / "test.jsonl"))
    questions = [row["question"] for row in test]
    texts = questions + [row["answer"] for row in test]
    prose = [
        row["text"] for row in rows_of(data / "prose" / "docs.jsonl") if len(row["text"]) > 2_000
    ]
    plants = planted(questions, prose)
    once = {
        kind: of[: len(of) // len(SEEDS)] for kind, of in plants.items()
    }  # MinHash of whole documents takes long
    result: dict[str, Any] = {
        "found": recall(Protected(texts).best, plants),
        "found_with_5grams": recall(Protected(texts, ngram=5).best, plants),
        "found_by_minhash_of_whole_rows": recall(WholeRows(questions).best, once),
        "unrelated": {},
    }
    for kind, figures in result["found"].items():
        fractions = [result[key][kind]["found"] for key in result if key.startswith("found")]
        print(
            f"{kind:24} {figures['planted']:6} planted  found",
            *(f"{fraction:.4f}" for fraction in fractions),
        )
    for kind, file in (
        ("gsm8k train", "gsm8k/train"),
        ("mathematics", "mathematics/train"),
        ("prose", "prose/docs"),
    ):
        done = decontaminate(
            [str(data / f"{file}.jsonl")], [str(data / "gsm8k/test.jsonl")], folder / "out.jsonl"
        )
        pairs = [
            {
                "line": one["line"],
                "test_line": int(one["matched"].rpartition(":")[2]),
                "similarity": one["similarity"],
            }
            for one in rows_of(Path(done.report))
        ]
        fraction = done.removed / done.rows
        result["unrelated"][kind] = {
            "rows": done.rows,
            "removed": done.removed,
            "share": fraction,
            "pairs": pairs,
        }
        print(f"{kind:24} {done.rows:6} rows  {done.removed} removed")
    return result


def main() -> None:
    """Measures, prints and writes."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("data", type=Path)
    options.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument(
        "--parts", nargs="+", choices=("cost", "quality"), default=["cost", "quality"]
    )
    options.add_argument("--out", type=Path, default=Path("results/decontamination.json"))
    given = options.parse_args()
    result: dict[str, Any] = (
        json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    )
    machine = {
        key: value for key, value in environment().items() if key != "command"
    }  # ours is this one
    result |= {
        "command": "python benchmarks/decontamination.py ../shared/data",
        "environment": machine,
        "ngram": NGRAM,
        "threshold": THRESHOLD,
        "seeds": SEEDS,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "quality" in given.parts:
            result |= quality(given.data, folder)
            write_json(given.out, result)
        if "cost" in given.parts:
            result["cost"] = []
            tokenizer = trained(given.data).to_str()
            for rows in given.rows:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                    result["cost"].append(
                        alone.submit(cost, given.data, rows, tokenizer, folder).result()
                    )
                print(
                    {key: round(figure, 2) for key, figure in result["cost"][-1].items()},
                    flush=True,
                )
                write_json(given.out, result)


if __name__ == "__main__":
    main()
