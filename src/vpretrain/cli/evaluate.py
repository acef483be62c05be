"""The command that scores models on benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from vpretrain.cli.shell import Json, Out, console_for_people, emit, results_folder
from vpretrain.system.errors import user_error

app = typer.Typer()


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|RUN", help="A model folder or hub id, or a run's folder."),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="Of gsm8k, math500, math, mmlu, mbpp, omega, and JSONL or parquet files, with "
            "commas between."
        ),
    ],
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the benchmarks' files; without it, the hub.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="The first so many problems of each task.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Completions of each problem, for Pass@k.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    new_tokens: Annotated[
        int | None, typer.Option(help="Longest completion; default by task.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Completions at once.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    prompt_column: Annotated[str, typer.Option(help="In files of your own.")] = "prompt",
    solution_column: Annotated[str, typer.Option(help="In files of your own.")] = "solution",
    answer: Annotated[
        str | None,
        typer.Option(
            help="Expression with one group that finds the answer in solutions of your own."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another model or run, held against item by item.")
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run programs that the model writes (mbpp).")
    ] = False,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option()] = "float32",
    device: Annotated[
        str | None, typer.Option(help="Default: cuda if there is one, else cpu.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Benchmarks with pinned prompts: Pass@k (strict and flexible answers), accuracy, NLL, with
    standard errors."""
    from vpretrain.language.evaluation.benchmark_run import allow, require

    console = console_for_people(as_json)
    bounds = {
        "--limit": limit,
        "--samples": samples,
        "--new-tokens": new_tokens,
        "--batch-size": batch_size,
    }
    for flag, number in bounds.items():
        if number is not None and number < 1:
            raise user_error(flag, "at least one is needed", value=number, accepted="1 or more")
    if not 0 <= temperature < float("inf"):
        raise user_error(
            "--temperature",
            "this is no temperature",
            value=temperature,
            accepted="0 (greedy) or above",
        )
    _check_expression(answer)
    require()
    import torch

    from vpretrain.language.evaluation.benchmark_run import evaluate as score
    from vpretrain.language.evaluation.benchmark_run import separator_of
    from vpretrain.language.evaluation.problems import chosen
    from vpretrain.language.evaluation.scoring import Sampling

    folder = results_folder(out or Path("runs") / f"evaluate-{Path(model).name}")
    found = chosen(
        tasks,
        root=data_root,
        limit=limit,
        prompt=prompt_column,
        solution=solution_column,
        answer=answer,
        separator=separator_of(model),
    )
    sampling = Sampling(samples, temperature, new_tokens, batch_size, seed)
    allow(found, sampling, code=allow_code)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    table = score(model, found, sampling, against=against, dtype=dtype, device=device, out=folder)
    console.print(_shown(table, against))
    for task, metrics in table.items():
        if cut := next(iter(metrics.values()))["cut_prompts"]:
            console.print(
                escape(
                    f"{task}: {cut} prompts are longer than the model's positions and lost "
                    "their beginning"
                )
            )
    console.print(escape(f"generations: {folder}"), highlight=False, soft_wrap=True)
    emit(table, as_json)


def _check_expression(answer: str | None) -> None:
    from vpretrain.language.recipe.common import one_group

    if answer is None:
        return
    try:
        one_group(answer)
    except ValueError as error:
        raise user_error("--answer", str(error), value=answer) from None


def _shown(table: dict[str, dict[str, dict[str, Any]]], against: str | None) -> Table:
    shown = Table(
        title=None
        if against is None
        else escape(f"differences are to {against}, on the same items")
    )
    for name in (
        "task",
        "metric",
        *([] if against is None else ["against"]),
        "value",
        "stderr",
        "n",
    ):
        shown.add_column(name, justify="left" if name in ("task", "metric") else "right")
    if against is not None:
        shown.add_column("difference [95%]", justify="right")
    for task, metrics in table.items():
        for metric, row in metrics.items():
            stderr = "–" if row["stderr"] is None else f"{row['stderr']:.4f}"
            cells = [escape(task), metric, f"{row['value']:.4f}", stderr, str(row["n"])]
            if against is not None:
                cells.insert(2, f"{row['against']:.4f}")
                cells.append(
                    f"{row['difference']:+.4f} [{row['ci95'][0]:+.4f}, {row['ci95'][1]:+.4f}]"
                )
            shown.add_row(*cells)
    return shown
