"""The command that takes near-duplicates of verified and held-out rows out of a stream."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer.core import TyperCommand

from vpretrain.cli.shell import Json, console_for_people, emit, progress_bar
from vpretrain.system.errors import user_error

app = typer.Typer()

_SUSPICIOUS = 0.01
"""Share of removed rows from which on the report deserves a look: a column of the protected rows
may be no question."""


class _Lists(TyperCommand):
    """Gives ``--against a b`` the meaning of ``--against a --against b``: a shell's glob makes the
    former."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        spread: list[str] = []
        flag = ""
        for word in args:
            if word.startswith("-"):
                name, _, value = word.partition("=")
                flag = name if name in ("--against", "--columns") else ""
                spread += [] if flag and not value else [word]
            else:
                spread += [flag, word] if flag else [word]
        return super().parse_args(ctx, spread)


@app.command(cls=_Lists)
def decontaminate(
    stream: Annotated[
        list[str], typer.Argument(metavar="STREAM", help="JSON Lines, parquet, text; or globs.")
    ],
    against: Annotated[
        list[str],
        typer.Option("--against", metavar="FILE...", help="Feedback and evaluation rows."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The JSON Lines file to write.")
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns", metavar="NAME...", help="Of the protected rows; default all text."
        ),
    ] = None,
    ngram: Annotated[int, typer.Option(min=1, help="Words in an n-gram.")] = 3,
    threshold: Annotated[
        float, typer.Option(help="Share of a protected text's n-grams, above 0, at most 1.")
    ] = 0.5,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE", help="The removed rows; default OUT.removed.ndjson."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Writes a stream without near-duplicates of protected rows, the removed pairs, and a
    certificate for training."""
    from vpretrain.language.data.decontaminate import decontaminate as clean

    if not 0 < threshold <= 1:
        raise user_error(
            "--threshold",
            "this is a share",
            value=threshold,
            accepted="above 0, at most 1; usually 0.5",
        )
    console = console_for_people(as_json)
    with progress_bar(console) as bar:
        task = bar.add_task("rows", total=None)
        found = clean(
            stream,
            against,
            out,
            columns=columns or [],
            ngram=ngram,
            threshold=threshold,
            jobs=min(jobs, os.cpu_count() or 1),
            report=report,
            progress=lambda rows: bar.update(task, completed=rows),
        )
    fraction = found.removed / found.rows
    console.print(
        f"{found.rows:,} rows, {found.removed:,} removed ({fraction:.3%}), against "
        f"{found.protected:,} texts",
        highlight=False,
    )
    if found.unprotected:
        console.print(
            f"{found.unprotected:,} protected texts are too short or too common to look for "
            "near-duplicates of",
            highlight=False,
        )
    if fraction > _SUSPICIOUS:
        console.print(
            "more than one row in a hundred: read the report; --columns says which columns "
            "are protected"
        )
    for name in ("out", "report", "certificate"):
        console.print(escape(f"{name}: {getattr(found, name)}"), highlight=False, soft_wrap=True)
    emit(asdict(found), as_json)
