"""Direct training on verified rows with TRL, as a comparison for steering (Figure 2 and Table 10 of
the paper).

An arm is a chain of stages, such as ``vpretrain+grpo``. ``vpretrain`` trains on the stream, steered
by the recipe's designer. ``sft`` and ``grpo`` train on ``posttraining.rows``: the feedback rows, a
source of the stream (so that all arms have the same data), or separate rows. Each stage is charged
what it uses: measured seconds, and 6 N FLOPs a trained token plus 2 N a generated one, where N is
the number of parameters without embeddings.

The trainers are TRL's, with its defaults except for the keys of the recipe's ``posttraining``.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from vpretrain.config.arms import Arm
from vpretrain.language.data.layout import Layout
from vpretrain.language.data.reading import Reader
from vpretrain.language.data.rows import Row, encode
from vpretrain.language.data.token_columns import IGNORED
from vpretrain.language.evaluation.generation import check_positions
from vpretrain.language.feedback.checkers import CHECKERS, checker_named, reward_of
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.recipe.posttraining import Grpo, OfFeedback, OfStream, Sft
from vpretrain.language.steering import arms as steering
from vpretrain.run.budget import Spending
from vpretrain.system import distributed
from vpretrain.system.errors import Problem, user_error
from vpretrain.system.phases import warn_once

Train = Callable[[Spending], None]
"""Trains the model in place, and adds what it used."""


def _alone(description: str, *after: str) -> Arm:
    return Arm(
        f"reference, not V-pretraining: {description}",
        designer="onehot",
        trains_on="feedback",
        after=after,
    )


ARMS: Mapping[str, Arm] = {
    "sft": _alone("supervised fine-tuning on verified rows, no stream (TRL)", "sft"),
    "grpo": _alone("policy optimisation on their prompts, no stream (TRL)", "grpo"),
    "sft+grpo": _alone("the one, then the other", "sft", "grpo"),
    "vpretrain+sft": Arm(
        "the recipe's designer on the stream, then supervised fine-tuning on verified rows",
        after=("sft",),
    ),
    "vpretrain+grpo": Arm(
        "the recipe's designer on the stream, then policy optimisation on their prompts",
        after=("grpo",),
    ),
}
steering.ARMS.others |= ARMS


def on_stream(arm: str) -> bool:
    """Whether an arm trains on the stream before its other stages."""
    stages = steering.ARMS.named(arm)
    return not stages.after or stages.trains_on == "stream"


def rows_of(
    recipe: LanguageRecipe,
    reader: Reader,
    stream: Mapping[str, Sequence[Row]],
    feedback: Sequence[Row],
) -> Sequence[Row]:
    """The rows of ``posttraining.rows``; problems are added to the reader's.

    Args:
        recipe: the recipe.
        reader: the reader of stream and feedback.
        stream: the stream's rows by source.
        feedback: the verified rows of all tasks.
    """
    spec, where = recipe.posttraining.rows, "posttraining.rows"
    if isinstance(spec, OfFeedback):
        return feedback
    if not isinstance(spec, OfStream):
        return reader.rows(spec, "posttraining", where)
    if spec.source not in stream:
        message = "the stream has no source of this name; correct it"
        reader.problems.append(
            Problem(f"{where}.source", spec.source, "of " + ", ".join(stream), message)
        )
    return stream.get(spec.source, ())


def after(recipe: LanguageRecipe, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Train | None:
    """The function that runs an arm's stages after the stream; None if there are none. The rows are
    tokenised here, so that unusable ones are refused before the stream and not after it.

    Args:
        recipe: the recipe, with its section ``posttraining``.
        model: the learner's model, which is trained in place and keeps its dtype.
        tokenizer: the learner's tokenizer.
        rows: the rows of ``posttraining.rows``. Only as many are read as a stage's steps can use.

    Raises:
        UserError: TRL is not installed, there is no such checker, ``grpo`` has too few rows, rows
            without a prompt or prompts that leave no room for an answer, no row of ``sft`` is
            usable, or the run has several processes.
    """
    stages = steering.ARMS.named(recipe.arm).after
    if not stages:
        return None
    _check_available(recipe)
    drawn = {
        stage: _drawn(rows, getattr(recipe.posttraining, stage).most_rows, recipe.seed)
        for stage in stages
    }
    if "grpo" in drawn and len(rows) < (prompts := recipe.posttraining.grpo.prompts):
        message = "a step asks for more prompts than there are rows, and TRL would take none"
        raise user_error(
            "posttraining.grpo.prompts", message, value=prompts, accepted=f"1 to {len(rows)}"
        )
    if bare := [row.origin for row in drawn.get("grpo", ()) if row.tokens or not row.prompt]:
        message = (
            f"{bare[0]} has no prompt that grpo could answer; name rows with prompt and solution"
        )
        raise user_error("posttraining.rows", message, accepted="rows with prompt and solution")

    trainings = [STAGES[stage](recipe, model, tokenizer, drawn[stage]) for stage in stages]

    def run(spent: Spending) -> None:
        for train in trainings:
            train(spent)

    return run


def _check_available(recipe: LanguageRecipe) -> None:
    """Raises UserError where TRL, the checker or this number of processes rules the stages out."""
    if distributed.launched():
        message = (
            "this arm trains with TRL after the stream, which several processes cannot share here"
        )
        raise user_error("arm", message, value=recipe.arm, accepted="one process, or another arm")
    try:
        from trl import GRPOTrainer, SFTTrainer  # imported here, before seconds are charged
    except ImportError:
        message = "this arm needs TRL; install the extra"
        raise user_error(
            "arm", message, value=recipe.arm, accepted="pip install 'vpretrain[posttrain]'"
        ) from None
    del GRPOTrainer, SFTTrainer
    if (name := recipe.posttraining.grpo.checker) not in CHECKERS:
        message = (
            "there is no such checker; name one of these, or put your own into CHECKERS in Python"
        )
        raise user_error(
            "posttraining.grpo.checker", message, value=name, accepted=", ".join(CHECKERS)
        )


def _drawn(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """At most ``most`` rows, in a random order; the others are not read into memory."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[at] for at in order[:most].tolist()]


def _sft(recipe: LanguageRecipe, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Train:
    from trl import SFTConfig, SFTTrainer

    section, most = recipe.posttraining.sft, recipe.data.feedback.max_tokens
    # Tokenised here, so that the training targets are exactly those of the feedback's likelihood.
    documents, counts = encode(
        rows,
        tokenizer,
        max_tokens=most,
        parse_special_tokens=recipe.data.parse_special_tokens,
        skip=recipe.data.on_bad_row == "skip",
    )
    for loss in counts.losses(most):
        warn_once(f"posttraining.rows: {loss}")
    if not documents:
        message = f"none leaves a token to predict within data.feedback.max_tokens ({most}): raise "
        message += "that, or name other rows"
        raise user_error("posttraining.rows", message, value=f"{len(rows)} rows")
    in_tokens = [
        {
            "input_ids": list(each.ids),
            "labels": [
                token if predicted else IGNORED
                for token, predicted in zip(each.ids, each.predicted, strict=True)
            ],
        }
        for each in documents
    ]

    def train(spent: Spending) -> None:
        tokens = _trained(
            SFTTrainer,
            model,
            in_tokens,
            tokenizer,
            recipe,
            lambda common: SFTConfig(
                **common,
                per_device_train_batch_size=section.batch_size,
                max_length=most,
                include_num_input_tokens_seen="non_padding",
            ),
            section,
        )
        spent.add(tokens=tokens, flops=6.0 * _size(model) * tokens)

    return train


def _grpo(recipe: LanguageRecipe, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Train:
    from trl import GRPOConfig, GRPOTrainer

    section = recipe.posttraining.grpo
    layout = Layout(tokenizer, parse_special_tokens=recipe.data.parse_special_tokens)
    prompts = [layout.written(row)[0] for row in rows]
    tokens_of = dict(zip(prompts, layout.prompts(rows), strict=True))
    longest = max(map(len, tokens_of.values()))
    check_positions(model, longest, section.new_tokens, "posttraining.grpo.new_tokens")

    class Trainer(GRPOTrainer):
        """A GRPO trainer whose prompts start and end as in training."""

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
            return [tokens_of[prompt] for prompt in prompts], None, {}

    checker = checker_named(section.checker, section.answer)
    generated = 0

    def reward(
        completions: Sequence[str], completion_ids: Sequence[Any], row: Sequence[int], **_: Any
    ) -> list[float | None]:
        nonlocal generated
        generated += sum(len(ids) for ids in completion_ids)
        return [
            reward_of(checker, rows[at], completion, where="posttraining.grpo.checker")
            for at, completion in zip(row, completions, strict=True)
        ]

    def train(spent: Spending) -> None:
        tokens = _trained(
            partial(Trainer, reward_funcs=[reward]),
            model,
            [{"prompt": prompt, "row": at} for at, prompt in enumerate(prompts)],
            tokenizer,
            recipe,
            lambda common: GRPOConfig(
                **common,
                per_device_train_batch_size=section.prompts * section.samples,
                num_generations=section.samples,
                max_completion_length=section.new_tokens,
                temperature=section.temperature,
            ),
            section,
        )
        spent.add(tokens=tokens, flops=_size(model) * (6.0 * tokens + 2.0 * generated))

    return train


STAGES: Mapping[str, Callable[[LanguageRecipe, Any, Any, Sequence[Row]], Train]] = {
    "sft": _sft,
    "grpo": _grpo,
}
"""By the name of a stage, the function that reads its rows and returns its training."""


def _trained(
    trainer_of: Callable[..., Any],
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    recipe: LanguageRecipe,
    arguments_of: Callable[[dict[str, Any]], Any],
    section: Sft | Grpo,
) -> int:
    """Trains the model in place, in the run's precision, without output; returns the number of
    tokens trained on."""
    import datasets
    from transformers import PrinterCallback

    showing = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # TRL still uses an option that transformers has deprecated.
            warnings.filterwarnings(
                "ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning
            )
            arguments = arguments_of(
                {
                    "output_dir": folder,
                    "max_steps": section.steps,
                    "learning_rate": section.learning_rate,
                    "seed": recipe.seed,
                    "max_grad_norm": recipe.learner.clip_norm,
                    "gradient_checkpointing": False,
                    "bf16": recipe.learner.dtype == "bfloat16",
                    "dataloader_pin_memory": torch.cuda.is_available(),
                    "report_to": "none",
                    "save_strategy": "no",
                    "logging_strategy": "no",
                    "disable_tqdm": True,
                }
            )
            data = datasets.Dataset.from_list([dict(row) for row in rows])
            trainer = trainer_of(
                model=model,
                args=arguments,
                train_dataset=data,
                processing_class=copy.deepcopy(tokenizer),  # TRL changes its settings
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    finally:
        if showing:
            datasets.enable_progress_bars()
    return int(trainer.state.num_input_tokens_seen)


def _size(model: Any) -> int:
    """Number of parameters without the input embedding, which counts if it is also the head."""
    embedding = model.get_input_embeddings().weight
    tied = (
        model.get_output_embeddings() is not None
        and model.get_output_embeddings().weight is embedding
    )
    return sum(p.numel() for p in model.parameters()) - (0 if tied else embedding.numel())
