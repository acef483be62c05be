"""The places that ``init`` is given: which files they name, and what their rows are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from vpretrain.language.data.raw_rows import lines
from vpretrain.system.errors import UserError, user_error
from vpretrain.system.tables import ENDINGS, kind_by_name, parsed

_TEXT = ("text", "content", "body")
_FILES_LOOKED_AT = 10_000
_PAIRS = (
    ("question", "answer"),
    ("problem", "solution"),
    ("prompt", "completion"),
    ("prompt", "solution"),
    ("instruction", "output"),
    ("query", "response"),
    ("prompt", "chosen"),
    ("input", "output"),
)


@dataclass(frozen=True)
class Place:
    """Where rows come from.

    Args:
        flag: of the command, for messages.
        path: a file, a pattern, a folder, or the id of a data set on the hub.
        columns: one of raw text, or those of prompt and solution; none: they follow from the
            first row.
        part: keys that say which of the rows are taken.
        kind: of the files that are read where the path is a folder; none: what most of them are.
    """

    flag: str
    path: str
    columns: tuple[str, ...] = ()
    part: tuple[tuple[str, int], ...] = ()
    kind: str | None = None

    def files(self) -> list[Path]:
        """The local files that it names; none of a data set on the hub.

        Raises:
            UserError: there are none, and it can be no id either.
        """
        path = Path(self.path).expanduser()
        if path.is_dir():
            taken, _ = self._of_folder(path)
            if not taken:
                accepted = "a folder with files that end in " + ", ".join(ENDINGS)
                message = "this folder holds no rows"
                raise user_error(self.flag, message, value=self.path, accepted=accepted)
            return taken
        if path.is_file():
            return [path]
        folder, pattern = (path.parent, path.name) if path.is_absolute() else (Path(), self.path)
        files = sorted(folder.glob(pattern))
        if not files and (kind_by_name(path) or path.is_absolute() or len(path.parts) != 2):
            raise user_error(
                self.flag,
                "there is no such file",
                value=self.path,
                accepted="a file, a pattern such as 'notes/*.txt', a folder, or the id of a data "
                "set on the hub",
            )
        return files

    def by_kind(self) -> list[Place]:
        """A place for each kind of files in a folder that text can be read from, the commonest
        first; itself where it names no folder of several kinds.

        Kinds after the first are left out where no column of text is known.
        """
        path = Path(self.path).expanduser()
        others = self._of_folder(path)[1] if path.is_dir() else []
        kinds = Counter(kind for file in others if (kind := kind_by_name(file)))
        if not kinds:
            return [self]
        places = [replace(self, kind=kind_by_name(self.files()[0]))]
        for kind, _ in kinds.most_common():
            place = replace(self, kind=kind)
            with suppress(UserError):
                place.section(solutions=False)
                places.append(place)
        return places

    def left_out(self, kinds: Collection[str | None] = ()) -> str:
        """The files of a folder that are not read, counted by how they end; empty for none.

        Args:
            kinds: of files that are read besides.
        """
        path = Path(self.path).expanduser()
        others = self._of_folder(path)[1] if path.is_dir() else []
        others = [file for file in others if (kind_by_name(file) or "") not in kinds]
        counts = Counter(file.suffix or "no ending" for file in others).most_common()
        return ", ".join(f"{count} x {ending}" for ending, count in counts)

    def _of_folder(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The files in and below it of :attr:`kind`, and the others."""
        if (folder / "state.json").is_file():  # of `save_to_disk`
            return sorted(folder.glob("*.arrow")), []
        files = [
            file
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not any(p[0] == "." for p in file.relative_to(folder).parts)
        ]
        kinds = Counter(kind for file in files if (kind := kind_by_name(file)))
        most = self.kind or (kinds.most_common(1)[0][0] if kinds else None)
        taken = [file for file in files if most and kind_by_name(file) == most]
        return taken, [file for file in files if file not in set(taken)]

    def section(self, *, solutions: bool) -> dict[str, Any]:
        """The recipe's section of rows.

        Args:
            solutions: whether prompts with solutions are wanted, and not raw text.

        Raises:
            UserError: no file, one of another kind, or columns of unknown names.
        """
        files = self.files()
        kind = kind_by_name(files[0]) if files else "hub"
        if kind is None or (kind == "text" and solutions):
            accepted = "JSON Lines, CSV, parquet or Arrow" + (
                "" if solutions else ", or text (.txt)"
            )
            message = "rows are not read from files of this kind"
            raise user_error(self.flag, message, value=self.path, accepted=accepted)
        path = self.path
        if (folder := Path(path).expanduser()).is_dir() and not (folder / "state.json").is_file():
            ends = sorted({_ending(file) for file in files})
            names = "*" + (ends[0] if len(ends) == 1 else f".{{{','.join(e[1:] for e in ends)}}}")
            path = str(Path(path) / ("**" if {f.parent for f in files} != {folder} else "") / names)
        if kind == "text":
            return {"kind": kind, "path": path}
        by_name = self._named(files, solutions)
        return {"kind": kind, "path": path, **by_name, **dict(self.part)}

    def _named(self, files: Sequence[Path], solutions: bool) -> dict[str, str]:
        """The keys that name the columns: those of the flag, or of the first row."""
        if self.columns:
            names = ("text",) if len(self.columns) == 1 else ("prompt", "solution")
            return dict(zip(names, self.columns, strict=True))
        row = first_row(files[0]) if files else {}
        known = [pair for pair in _PAIRS if set(pair) <= set(row)]
        pairs = [dict(zip(("prompt", "solution"), pair, strict=True)) for pair in known]
        texts = [{"text": name} for name in _TEXT if isinstance(row.get(name), str)]
        options = pairs if solutions else texts + pairs
        if "messages" in row:
            options.append({"format": "chat"})
        if "input_ids" in row and (not solutions or "labels" in row):
            labels = {"labels": "labels"} if "labels" in row else {}
            options.append({"tokens": "input_ids", **labels})
        if not options:
            wanted = "PROMPT,SOLUTION" if solutions else "TEXT or PROMPT,SOLUTION"
            raise user_error(
                f"{self.flag}-columns",
                f"no columns of {self.path} have names that are known here; name them",
                value=", ".join(row),
                accepted=f"{wanted}, as in {self.flag}-columns question,answer",
            )
        # Data sets of preferences have lists of messages in these columns.
        turns = isinstance(row.get(options[0].get("solution", "")), list)
        return options[0] | ({"format": "chat"} if turns else {})


def _ending(file: Path) -> str:
    packed = file.suffix in (".gz", ".zst")
    return Path(file.stem).suffix + file.suffix if packed else file.suffix


def holds_pictures(place: str) -> bool:
    """Whether it is a folder that holds, in it or below, more images than files of rows."""
    of_files = (names for _, _, names in os.walk(Path(place).expanduser()))
    names = list(islice(chain.from_iterable(of_files), _FILES_LOOKED_AT))
    images = sum((guess_type(name)[0] or "").startswith("image/") for name in names)
    return images > sum(kind_by_name(Path(name)) is not None for name in names)


def first_row(path: Path) -> dict[str, Any]:
    """The first row of a table; empty where it is not read as one (``check`` says what is wrong
    with it)."""
    try:
        _, line = next(lines(path), (0, b""))
    except UserError:
        return {}
    row = parsed(line, str(path))
    return row if isinstance(row, dict) else {}


def count_rows(files: Sequence[Path]) -> int:
    """Rows of local tables; ``UserError`` if one cannot be read."""
    return sum(1 for path in files for _ in lines(path))


def halved(feedback: Place) -> tuple[Place, Place]:
    """Feedback and held-out rows from one place: of every four rows the last is held out.

    Raises:
        UserError: the rows cannot be counted, or are too few.
    """
    files = feedback.files()
    if not files:
        message = "rows that success is measured on are needed beside the feedback; name them"
        raise user_error(
            "--evaluation", message, accepted="a file of rows that are not in the feedback"
        )
    rows = count_rows(files)
    steering = rows * 3 // 4
    if rows - steering < 2 or steering < 4:
        message = "these rows are too few to steer with some and measure on the others"
        raise user_error(
            feedback.flag, message, value=f"{rows} rows of {feedback.path}", accepted="8 or more"
        )
    return replace(feedback, part=(("rows", steering),)), replace(
        feedback, part=(("skip_rows", steering),)
    )
