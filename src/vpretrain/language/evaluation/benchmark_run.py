"""``vpretrain evaluate``: scores a model (and one to compare it with) on tasks, and keeps all
completions."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vpretrain.language.evaluation import sandbox
from vpretrain.run.paired_tests import paired_items
from vpretrain.system.errors import UserError, user_error
from vpretrain.system.files import remove

if TYPE_CHECKING:
    from vpretrain.language.evaluation.scoring import Outcome, Sampling, Tasks
    from vpretrain.language.evaluation.wording import Wording


def require() -> None:
    """Raises ``UserError`` unless the ``eval`` extra is installed."""
    missing = [
        name for name in ("lm_eval", "math_verify") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise user_error(
            "evaluate",
            "this needs an extra: pip install 'vpretrain[eval]'",
            value=f"no {' and no '.join(missing)}",
        )


def allow(tasks: Tasks, sampling: Sampling, *, code: bool) -> None:
    """Checks that tasks and sampling are allowed.

    Raises:
        UserError: several samples are greedy, or a task runs generated code without ``code`` or on
            a system that cannot confine it.
    """
    if sampling.samples > 1 and sampling.temperature == 0:
        raise user_error(
            "--samples",
            "greedy completions are all the same: raise --temperature, or take one sample",
            value=sampling.samples,
            accepted="1 with --temperature 0; several with, say, --temperature 0.8",
        )
    if running := [name for name, (task, _) in tasks.items() if task.runs_code and not code]:
        raise user_error(
            "--tasks",
            f"{', '.join(running)} runs programs that the model writes (in a process of its own, "
            "with limits): say --allow-code if that is fine here, best with bubblewrap installed",
            value=", ".join(running),
            accepted="--allow-code, or other tasks",
        )
    if any(task.runs_code for task, _ in tasks.values()):
        sandbox.require()


def wording_for(name: str) -> Wording:
    """How prompts are worded and joined with solutions: as in the run's recipe, if ``name`` is a
    run's folder, else the default."""
    from vpretrain.language.evaluation.wording import wording_of

    path = Path(name).expanduser() / "recipe.yaml"
    return wording_of(yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {})


def open_model(name: str, where: str, *, dtype: str, device: str) -> tuple[Any, Any]:
    """Opens a model and its tokenizer.

    Args:
        name: a folder, a run's folder (its final model), a packaged name or a hub id.
        where: name of the argument, for messages.
        dtype: float32, bfloat16 or float16.
        device: name of a torch device.

    Raises:
        UserError: there is no complete causal language model with a tokenizer, or no such device.
    """
    import torch

    from vpretrain.language.learner.loading import load_model, load_tokenizer
    from vpretrain.language.recipe.learner import LearnerSection
    from vpretrain.models.loading import named
    from vpretrain.run.finished_run import holds_model

    folder = Path(name).expanduser()
    if (folder / "recipe.yaml").is_file():
        if not holds_model(folder):
            message = (
                "this run folder holds no model; the run did not finish (or it was one of "
                "another modality)"
            )
            raise user_error(
                where,
                message,
                value=str(folder / "model"),
                accepted="a model, or a run that finished",
            )
        folder /= "model"
        name = str(folder)
    try:
        section = LearnerSection(model=name)
        model, tokenizer = load_model(section, named(name), 0), load_tokenizer(section, named(name))
    except UserError as error:
        raise UserError(*(replace(problem, where=where) for problem in error.problems)) from error
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        message = (
            "the tokenizer has more tokens than the model; use the one that it was trained with"
        )
        raise user_error(where, message, value=f"{len(tokenizer)} tokens")
    try:
        return model.to(torch.device(device), getattr(torch, dtype)), tokenizer
    except (RuntimeError, AssertionError) as error:
        if "memory" in str(error):
            raise
        raise user_error(
            "--device", f"this cannot be used: {error}", value=device, accepted="cpu, cuda"
        ) from error


def evaluate(
    model: str,
    tasks: Tasks,
    sampling: Sampling,
    *,
    against: str | None,
    dtype: str,
    device: str,
    out: Path,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores a model on tasks and, optionally, another model on the same items.

    Writes ``evaluation.json`` and ``generations-TASK.jsonl`` (all completions) into ``out``, and
    the other model's completions into ``out/against``.

    Args:
        model: see :func:`open_model`.
        tasks: see :func:`vpretrain.language.evaluation.scoring.score`.
        sampling: how completions are sampled.
        against: the other model, such as that of step 0; differences are ``model`` minus this one,
            paired by item.
        dtype: see :func:`open_model`.
        device: see :func:`open_model`.
        out: folder of the results.

    Returns:
        ``{task: {metric: {value, stderr, n, higher_is_better, version, prompt, cut_prompts}}}``.
        With ``against``, also ``against`` (its value), and ``difference``, ``ci95`` and ``p`` of
        :func:`vpretrain.run.paired_tests.paired_items`.

    Raises:
        UserError: see :func:`open_model` and
            :func:`vpretrain.language.evaluation.scoring.score_model`.
    """
    from vpretrain.language.evaluation.scoring import score_model

    parse = wording_for(model).parse_special_tokens

    def scored(name: str, where: str, folder: Path) -> dict[str, Outcome]:
        opened = open_model(name, where, dtype=dtype, device=device)
        outcomes = score_model(*opened, tasks, sampling, parse_special_tokens=parse)
        _keep(outcomes, folder)
        return outcomes

    remove(out / "against")  # of an earlier evaluation
    base = None if against is None else scored(against, "--against", out / "against")
    table = tabulate(tasks, scored(model, "MODEL", out), base)
    record = {"model": model, "against": against, "dtype": dtype, **vars(sampling), "tasks": table}
    (out / "evaluation.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return table


def label(model: str) -> str:
    """A model as part of a folder's name: of a run its folder, of a hub id all of it."""
    path = Path(model)
    if not path.exists():
        return model.replace("/", "-")
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


def check_folder(folder: Path, model: str) -> None:
    """Raises UserError if the folder holds an evaluation of another model."""
    path = folder / "evaluation.json"
    if not path.is_file():
        return
    with suppress(OSError, ValueError, LookupError, TypeError):  # not whole: written again
        if (other := json.loads(path.read_text(encoding="utf-8"))["model"]) != model:
            message = f"this folder holds the evaluation of {other}; name another"
            raise user_error("--out", message, value=str(folder), accepted="a new folder")


def tabulate(
    tasks: Tasks, outcomes: Mapping[str, Outcome], base: Mapping[str, Outcome] | None
) -> dict[str, dict[str, dict[str, Any]]]:
    """The table of scores that :func:`evaluate` returns."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name, outcome in outcomes.items():
        task = tasks[name][0]
        for metric, score in outcome.scores.items():
            row: dict[str, Any] = {
                "value": score.value,
                "stderr": score.stderr if score.stderr == score.stderr else None,
                "n": score.n,
                "higher_is_better": score.higher_is_better,
                "version": task.version,
                "prompt": task.prompt,
                "cut_prompts": outcome.cut_prompts,
            }
            if base is not None:
                other = base[name].scores[metric]
                paired = paired_items([score.items], [other.items])
                row |= {
                    "against": other.value,
                    "difference": paired.difference,
                    "ci95": list(paired.ci95),
                    "p": paired.p,
                }
            table.setdefault(name, {})[metric] = row
    return table


def _keep(outcomes: Mapping[str, Outcome], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("generations-*.jsonl"):
        earlier.unlink()
    taken: set[str] = set()
    for name, outcome in outcomes.items():
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", name.removesuffix(".jsonl"))
        while stem in taken:  # of tasks a/b and a_b, the one named later
            stem += "-2"
        taken.add(stem)
        with (folder / f"generations-{stem}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(
                json.dumps(row, ensure_ascii=False) + "\n" for row in outcome.generations
            )
