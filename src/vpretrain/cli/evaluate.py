"""The command that scores models on benchmarks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vpretrain.cli import shell
from vpretrain.cli.shell import Json, Out, say
from vpretrain.system.errors import user_error

app = typer.Typer()
Scores = dict[str, dict[str, dict[str, Any]]]
"""By task and metric: value, standard error, number of problems."""


Model = Annotated[
    str, typer.Argument(metavar="MODEL|RUN", help="A model folder or hub id, or a run's folder.")
]
Tasks = Annotated[
    str,
    typer.Option(
        help="Of gsm8k, math500, math, mmlu, mbpp, omega, and JSONL or parquet files, with "
        "commas between."
    ),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the benchmarks' files; without it, the hub.")
]
Answer = Annotated[
    str | None,
    typer.Option(help="Expression with one group that finds the answer in solutions of your own."),
]
Against = Annotated[
    str | None, typer.Option(help="Another model or run, compared with item by item.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run programs that the model writes (mbpp).")
]
Dtype = Literal["float32", "bfloat16", "float16"]


def _option(meaning: str, least: int | None = None) -> Any:
    return typer.Option(help=meaning, min=least)


@app.command(short_help="Benchmarks of a model or a run: Pass@k and others.")
def evaluate(
    model: Model,
    tasks: Tasks,
    data_root: DataRoot = None,
    limit: Annotated[int | None, _option("Only the first N problems of each task.", 1)] = None,
    samples: Annotated[int, _option("Completions of each problem, for Pass@k.", 1)] = 1,
    temperature: Annotated[float, _option("0 is greedy.", 0)] = 0.0,
    new_tokens: Annotated[int | None, _option("Longest completion; default by task.", 1)] = None,
    batch_size: Annotated[int, _option("Completions at once.", 1)] = 16,
    seed: Annotated[int, _option("Of the samples.")] = 0,
    prompt_column: Annotated[str, _option("In files of your own.")] = "prompt",
    solution_column: Annotated[str, _option("In files of your own.")] = "solution",
    answer: Answer = None,
    against: Against = None,
    allow_code: AllowCode = False,
    dtype: Annotated[Dtype, typer.Option()] = "float32",
    device: Annotated[str | None, _option("Default: cuda if there is one, else cpu.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Benchmarks with pinned prompts: Pass@k (strict and flexible answers), accuracy, NLL, with
    standard errors."""
    if not math.isfinite(temperature):
        message, accepted = "this is no temperature", "0 (greedy) or above"
        raise user_error("--temperature", message, value=temperature, accepted=accepted)
    _check_expression(answer)
    from vpretrain.language.evaluation import benchmark_run as benchmarks

    benchmarks.require()
    import torch

    from vpretrain.language.evaluation.problems import chosen
    from vpretrain.language.evaluation.scoring import Sampling

    folder = shell.results_folder(out or Path("runs") / f"evaluate-{benchmarks.label(model)}")
    benchmarks.check_folder(folder, model)
    problems = chosen(
        tasks,
        root=data_root,
        limit=limit,
        prompt=prompt_column,
        solution=solution_column,
        answer=answer,
        wording=benchmarks.wording_for(model),
    )
    sampling = Sampling(samples, temperature, new_tokens, batch_size, seed)
    benchmarks.allow(problems, sampling, code=allow_code)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    table = benchmarks.evaluate(
        model, problems, sampling, against=against, dtype=dtype, device=device, out=folder
    )
    _say_table(shell.console_for_people(as_json), table, against, folder)
    shell.emit(table, as_json)


def _check_expression(answer: str | None) -> None:
    from vpretrain.language.recipe.common import one_group

    if answer is None:
        return
    try:
        one_group(answer)
    except ValueError as error:
        raise user_error("--answer", str(error), value=answer) from None


def _say_table(console: Console, table: Scores, against: str | None, folder: Path) -> None:
    console.print(_shown(table, against))
    for task, metrics in table.items():
        if cut := next(iter(metrics.values()))["cut_prompts"]:
            lost = "prompts are longer than the model's positions and lost their beginning"
            say(console, f"{task}: {cut} {lost}")
    say(console, f"generations: {folder}")


def _shown(table: Scores, against: str | None) -> Table:
    names = ["task", "metric", "value", "stderr", "n"]
    shown = Table()
    shown.caption = (
        "strict: the answer stands where it is asked for; flexible: anywhere; stderr over n items"
    )
    if against is not None:
        shown.title = escape(f"differences are to {against}, on the same items")
        names = [*names[:2], "against", *names[2:], "difference [95%]"]
    for name in names:
        shown.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for task, metrics in table.items():
        for metric, row in metrics.items():
            stderr = "–" if row["stderr"] is None else f"{row['stderr']:.4f}"
            cells = [escape(task), metric, f"{row['value']:.4f}", stderr, str(row["n"])]
            if against is not None:
                cells.insert(2, f"{row['against']:.4f}")
                low, high = row["ci95"]
                cells.append(f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]")
            shown.add_row(*cells)
    return shown
