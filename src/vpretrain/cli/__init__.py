"""The command line: parses, calls, prints.

With ``--json`` standard output holds one JSON document and nothing else.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from vpretrain import __version__
from vpretrain.cli import (
    decontaminate,
    evaluate,
    init,
    profile,
    push,
    recipes,
    runs,
    studies,
    sweep,
)
from vpretrain.system.errors import Fault, Stopped, UserError
from vpretrain.system.signals import interrupting

app = typer.Typer(
    add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
for _group in (init, runs, studies, recipes, evaluate, decontaminate, profile, sweep, push):
    app.add_typer(_group.app)


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"vpretrain {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Say the version and end."
        ),
    ] = False,
) -> None:
    """Continued pretraining that a small set of verified examples steers."""


def main() -> None:
    """Entry point: turns errors into exit codes.

    They are 0 done, 1 a bug, 2 bad input, 3 stopped and resumable, 4 fault.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for bars in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(bars, "1")  # read by worker processes too
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    try:
        with interrupting():
            app(standalone_mode=True)
    except SystemExit as ended:
        if ended.code != _INTERRUPTED:
            raise
        _exit("stopped; what was finished is kept, and the same command goes on", 3)
    except Stopped as stop:
        _exit(f"stopped by {escape(str(stop))}", stop.exit_code)
    except (UserError, Fault) as error:
        _exit(f"[red bold]error[/] {escape(str(error))}", error.exit_code)
    except Exception as error:
        advice = _advice_on_machine(error)
        if advice is None:
            raise
        _exit(f"[red bold]error[/] {escape(advice[0])}", advice[1])


_INTERRUPTED = 130  # typer's exit code for Ctrl-C


def _exit(message: str, exit_code: int) -> None:
    if exit_code == UserError.exit_code and os.environ.get("LOCAL_RANK", "0") != "0":
        sys.exit(exit_code)  # all processes of a machine fail alike; only the first prints
    Console(stderr=True).print(message, highlight=False, soft_wrap=True)
    sys.exit(exit_code)


_OF_THE_PLACE = (
    *(errno.ENAMETOOLONG, errno.EROFS, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.EIO, errno.ENXIO),
)
_DISK_FULL = "the disk is full; make room and run the same command again", Fault.exit_code


def _elsewhere(error: OSError) -> str:
    from vpretrain.models.checkpoint_cache import cache_folder

    if Path(str(error.filename)).is_relative_to(cache_folder()):
        return "set VPRETRAIN_CACHE to a folder that can be written"
    return "name another place"


def _advice_on_machine(error: Exception) -> tuple[str, int] | None:
    """Returns advice on a limit of this machine, and the exit code.

    None for errors that can only be bugs.
    """
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _DISK_FULL
        if isinstance(error, PermissionError):
            message = f"{error.filename}: no permission to read or write this; {_elsewhere(error)}"
            return message, UserError.exit_code
        if error.errno in _OF_THE_PLACE:
            message = f"{error.filename}: {error.strerror}; {_elsewhere(error)}"
            return message, UserError.exit_code
        return None
    if isinstance(error, BrokenExecutor):
        message = "a worker process was killed, most likely because memory ran out"
        return (
            f"{message}; what was finished is kept: run the same command again with --jobs 1",
            Fault.exit_code,
        )
    from safetensors import SafetensorError

    from vpretrain.method.directional import EstimatorUnsupported
    from vpretrain.system.memory import out_of_memory

    if isinstance(error, SafetensorError) and "No space left" in str(error):
        return _DISK_FULL
    if isinstance(error, EstimatorUnsupported):
        return f"value.estimator: {error}", UserError.exit_code
    if out_of_memory(error):
        message = (
            "memory ran out: lower data.batch_size or what a row of it holds, or take a "
            "smaller learner"
        )
        return f"{message} (`vpretrain check` estimates what one takes)", Fault.exit_code
    return None
