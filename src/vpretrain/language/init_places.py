"""The places given to ``init``: their files, and the columns of their rows."""

from __future__ import annotations

import glob
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
from vpretrain.run.parts import FEW_ROWS
from vpretrain.system import locations
from vpretrain.system.errors import Problem, UserError, renamed, user_error
from vpretrain.system.locations import Remote, is_url
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
    """A source of rows, as given to the command.

    Args:
        flag: flag of the command, for messages.
        path: a file, a pattern, a URL, a folder, or the id of a data set on the hub.
        columns: the column of raw text, or the columns of prompt and solution; empty: found from
            the first row.
        part: recipe keys that select a part of the rows.
        kind: kind of the files to read in a folder (``json`` is distinct from ``jsonl``, since such
            files often hold settings rather than rows); None: the most frequent kind.
    """

    flag: str
    path: str
    columns: tuple[str, ...] = ()
    part: tuple[tuple[str, int], ...] = ()
    kind: str | None = None

    def files(self) -> list[locations.Place]:
        """The files at :attr:`path`; empty for a data set on the hub.

        Raises:
            UserError: there are no files, and the path cannot be an id either.
        """
        place = Remote(self.path) if is_url(self.path) else Path(self.path).expanduser()
        if isinstance(place, Path) and place.is_dir():
            if (place / "dataset_dict.json").is_file():
                with renamed({f"{self.flag}.path": self.flag}):
                    locations.check_file(place, self.flag)  # names its data sets
            taken, _ = self._of_folder(place)
            if not taken:
                accepted = "a folder with files that end in " + ", ".join(ENDINGS)
                message = "this folder holds no rows"
                raise user_error(self.flag, message, value=self.path, accepted=accepted)
            place = Path(self._pattern(taken)).expanduser()  # read as the recipe will be
        with renamed({f"{self.flag}.path": self.flag}):
            found = locations.files(place, self.flag)
        if isinstance(place, Remote) or place.is_file() or found != [place]:
            return found
        if kind_by_name(place) or place.is_absolute() or len(place.parts) != 2:
            raise user_error(
                self.flag,
                "there is no such file",
                value=self.path,
                accepted="a file, a pattern such as 'notes/*.txt', a folder, a URL (hf://, s3://, "
                "https://), or the id of a data set on the hub",
            )
        return []

    def by_kind(self) -> list[Place]:
        """One place for each kind of readable files in a folder, the most frequent first; only
        itself, if the path is not a folder with several kinds.

        Kinds after the first are left out if no column of text is recognised.
        """
        path = Path(self.path).expanduser()
        others = self._of_folder(path)[1] if path.is_dir() else []
        kinds = Counter(kind for file in others if (kind := _group(file)))
        if not kinds:
            return [self]
        places = [replace(self, kind=_group(self.files()[0]))]
        for kind, _ in kinds.most_common():
            place = replace(self, kind=kind)
            with suppress(UserError):
                place.section(solutions=False)
                places.append(place)
        return places

    def left_out(self, kinds: Collection[str | None] = ()) -> str:
        """The files of a folder that are not read, counted by their ending; empty if there are
        none.

        Args:
            kinds: other kinds of files that are read.
        """
        path = Path(self.path).expanduser()
        others = self._of_folder(path)[1] if path.is_dir() else []
        others = [file for file in others if (_group(file) or "") not in kinds]
        counts = Counter(file.suffix or "no ending" for file in others).most_common()
        return ", ".join(f"{count} x {ending}" for ending, count in counts)

    def _of_folder(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The files of :attr:`kind` in a folder and its subfolders, and all other files."""
        if (folder / "state.json").is_file():  # written by `save_to_disk`
            return sorted(folder.glob("*.arrow")), []
        files = [
            file
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not any(p[0] == "." for p in file.relative_to(folder).parts)
        ]
        kinds = Counter(kind for file in files if (kind := _group(file)))
        most = self.kind or (kinds.most_common(1)[0][0] if kinds else None)
        taken = [file for file in files if most and _group(file) == most]
        return taken, [file for file in files if file not in set(taken)]

    def section(self, *, solutions: bool) -> dict[str, Any]:
        """The recipe's section for these rows.

        Args:
            solutions: whether to read prompts with solutions rather than raw text.

        Raises:
            UserError: there is no file, it is of another kind, or its columns are not recognised.
        """
        files = self.files()
        kind = kind_by_name(files[0]) if files else "hub"
        if kind is None or (kind == "text" and solutions):
            accepted = "JSON Lines, CSV, parquet or Arrow" + (
                "" if solutions else ", or text (.txt)"
            )
            message = "rows are not read from files of this kind"
            raise user_error(self.flag, message, value=self.path, accepted=accepted)
        path = self._pattern(files)
        if kind == "text":
            return {"kind": kind, "path": path}
        by_name = self._named(files, solutions)
        return {"kind": kind, "path": path, **by_name, **dict(self.part)}

    def _pattern(self, files: Sequence[locations.Place]) -> str:
        """The recipe's path for these files: a pattern for those of a folder, or the path given."""
        folder = Path(self.path).expanduser()
        if not folder.is_dir() or (folder / "state.json").is_file():
            return self.path
        ends = sorted({_ending(file) for file in files})
        names = "*" + (ends[0] if len(ends) == 1 else f".{{{','.join(e[1:] for e in ends)}}}")
        below = any(isinstance(file, Path) and file.parent != folder for file in files)
        return str(Path(glob.escape(self.path)) / ("**" if below else "") / names)

    def _named(self, files: Sequence[locations.Place], solutions: bool) -> dict[str, str]:
        """The recipe keys of the columns: those given, or those recognised in the first row."""
        if self.columns:
            names = ("text",) if len(self.columns) == 1 else ("prompt", "solution")
            if len(self.columns) > len(names):
                raise user_error(
                    f"{self.flag}-columns",
                    "these are too many; a prompt of several columns is written in the recipe, "
                    "with `template`",
                    value=", ".join(self.columns),
                    accepted="TEXT or PROMPT,SOLUTION",
                )
            return dict(zip(names, self.columns, strict=True))
        row = next((row for file in files if (row := first_row(file))), {})
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
            message = f"no columns of {self.path} have names that are known here; name them"
            if not files:
                message = "the columns of a data set on the hub are not looked up; name them"
            raise user_error(
                f"{self.flag}-columns",
                message,
                value=", ".join(row),
                accepted=f"{wanted}, as in {self.flag}-columns question,answer",
            )
        # Preference data sets have lists of messages in these columns.
        turns = isinstance(row.get(options[0].get("solution", "")), list)
        return options[0] | ({"format": "chat"} if turns else {})


def _group(file: locations.Place) -> str | None:
    """The kind of a file, with ``json`` distinct from ``jsonl``."""
    ending = _ending(file).removesuffix(".gz").removesuffix(".zst").lower()
    return "json" if ending == ".json" else kind_by_name(file)


def _ending(file: locations.Place) -> str:
    return "".join(Path(file.name).suffixes[-2:]) if file.suffix in (".gz", ".zst") else file.suffix


def holds_pictures(place: str) -> bool:
    """Whether a folder and its subfolders hold more images than files of rows."""
    of_files = (names for _, _, names in os.walk(Path(place).expanduser()))
    names = list(islice(chain.from_iterable(of_files), _FILES_LOOKED_AT))
    images = sum((guess_type(name)[0] or "").startswith("image/") for name in names)
    return images > sum(kind_by_name(Path(name)) is not None for name in names)


def first_row(path: locations.Place) -> dict[str, Any]:
    """The first row of a table; empty if there is none.

    Raises:
        UserError: the row cannot be read.
    """
    number, line = next(lines(path), (0, b""))
    row = parsed(line, f"{path}:{number}") if number else {}
    if isinstance(row, Problem):
        raise UserError(row)
    return row


def count_rows(files: Sequence[locations.Place]) -> int:
    """Number of rows in tables; ``UserError`` if one cannot be read."""
    return sum(1 for path in files for _ in lines(path))


def halved(feedback: Place) -> tuple[Place, Place]:
    """Splits one place into feedback and held-out rows. The last quarter of the rows is held out,
    or more (up to half) if there are few, so that results on them are meaningful.

    Raises:
        UserError: the rows cannot be counted, or there are too few.
    """
    files = feedback.files()
    if not files:
        message = "rows that success is measured on are needed beside the feedback; name them"
        raise user_error(
            "--evaluation", message, accepted="a file of rows that are not in the feedback"
        )
    rows = count_rows(files)
    steering = rows - max(rows // 4, min(FEW_ROWS, rows // 2))
    if steering < 4:
        message = "these rows are too few to steer with some and measure on the others"
        raise user_error(
            feedback.flag, message, value=f"{rows} rows of {feedback.path}", accepted="8 or more"
        )
    return replace(feedback, part=(("rows", steering),)), replace(
        feedback, part=(("skip_rows", steering),)
    )
