"""The command that removes near-duplicates of verified and held-out rows from a stream."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperCommand

from vpretrain.cli import shell
from vpretrain.cli.shell import Json, say
from vpretrain.system.errors import user_error

app = typer.Typer()

Document = Literal["line", "paragraph", "file"]

_SUSPICIOUS = 0.01
"""Fraction of removed rows above which the report should be read: a column of the protected rows
may not be a question.
"""


class _Lists(TyperCommand):
    """Accepts ``--against a b``, as a shell's glob produces, for ``--against a --against b``."""

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


@app.command(cls=_Lists, short_help="Leaves near-duplicates of protected rows out.")
def decontaminate(
    stream: Annotated[
        list[str], typer.Argument(metavar="STREAM", help="Files that recipes read; or globs.")
    ],
    against: Annotated[
        list[str],
        typer.Option("--against", metavar="FILE...", help="Feedback and evaluation rows."),
    ],
    out: Annotated[Path, shell.out_option("The JSON Lines file to write.", "FILE")],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            metavar="NAME...",
            help="Columns of the protected rows to compare; default: all with text.",
        ),
    ] = None,
    document: Annotated[
        Document, typer.Option(help="What a row of plain text is; as in the recipe.")
    ] = "line",
    ngram: Annotated[int, typer.Option(min=1, help="Words in an n-gram.")] = 3,
    threshold: Annotated[
        float, typer.Option(help="Share of a protected text's n-grams, above 0, at most 1.")
    ] = 0.5,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The removed rows; default OUT.removed.ndjson."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Writes a stream without near-duplicates of protected rows, the removed pairs, and a
    certificate for training."""
    from vpretrain.language.data.decontaminate import decontaminate as clean

    if not 0 < threshold <= 1:
        accepted = "above 0, at most 1; usually 0.5"
        raise user_error("--threshold", "this is a share", value=threshold, accepted=accepted)
    console = shell.console_for_people(as_json)
    with shell.progress_bar(console) as bar:
        task = bar.add_task("rows", total=None)
        summary = clean(
            stream,
            against,
            out,
            columns=columns or [],
            document=document,
            ngram=ngram,
            threshold=threshold,
            jobs=min(jobs, os.cpu_count() or 1),
            report=report,
            progress=lambda rows: bar.update(task, completed=rows),
        )
    _say_summary(console, summary, document)
    shell.emit(asdict(summary), as_json)


def _say_summary(console: Console, summary: Any, document: str) -> None:
    fraction = summary.removed / summary.rows
    removed = f"{summary.removed:,} removed ({fraction:.3%})"
    say(console, f"{summary.rows:,} rows, {removed}, against {summary.protected:,} protected texts")
    if summary.unprotected:
        say(
            console,
            f"{summary.unprotected:,} protected texts are too short or too common to look for "
            "near-duplicates of",
        )
    if fraction > _SUSPICIOUS:
        advice = "--columns says which columns are protected"
        if document == "file":
            advice += ", --document paragraph or line takes out less than whole files"
        say(console, f"more than one row in a hundred: read the report; {advice}")
    for name in ("out", "report", "certificate"):
        say(console, f"{name}: {getattr(summary, name)}")
