"""The command that publishes a finished run's model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vpretrain.cli import shell
from vpretrain.cli.shell import Json, say

app = typer.Typer()


@app.command(short_help="A finished run's model to the Hugging Face hub.")
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `train` finished.")],
    to: Annotated[str, typer.Option(metavar="OWNER/NAME", help="The repository on the hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody to see; without it, private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A finished run's model and its card to the Hugging Face hub, private unless you say so."""
    from vpretrain.run import hub

    console = shell.console_for_people(as_json)
    upload = hub.upload_of(run, to, private=not public)
    seen = "private" if upload.private else "public"
    say(console, f"{upload.repo} ({seen}): {len(upload.files)} files, {upload.bytes / 1e6:,.1f} MB")
    for name, size in upload.files.items():
        say(console, f"  {size:>14,}  {name}")
    if upload.paths:
        say(console, f"the card names paths of this machine: {', '.join(upload.paths)}")
    url = None
    if dry_run:
        say(console, f"nothing was sent; read {upload.folder / hub.CARD} before it is")
    else:
        url = hub.push(upload)
        say(console, url)
    files = [{"path": name, "bytes": size} for name, size in upload.files.items()]
    result = {"repo": upload.repo, "private": upload.private, "files": files, "url": url}
    shell.emit(result, as_json)
