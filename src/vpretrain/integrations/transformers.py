"""A drop-in for ``transformers.Trainer`` that steers batches by the gradient of a feedback set."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from vpretrain.integrations import apart
from vpretrain.integrations.arguments import problems_of
from vpretrain.integrations.batches import token_batch
from vpretrain.integrations.datasets import FORMATS, feedback_of, log
from vpretrain.integrations.host_loop import HostedLearner, HostedStep
from vpretrain.integrations.resuming import STATE, files_in, is_plain, resumable
from vpretrain.integrations.steering import (
    STEERING_ARMS,
    Steering,
    errors_of_steering,
    uses_feedback,
)
from vpretrain.language.data.rows import Document, documents_hash
from vpretrain.language.learner.suffix import Anatomy, aligned_parameters
from vpretrain.method.roles import Designer, Feedback
from vpretrain.run import checkpoint
from vpretrain.run.build import new_meta_step
from vpretrain.system import distributed
from vpretrain.system.errors import UserError, user_error

__all__ = ["STEERING_ARMS", "SteeredTrainer", "Steering"]


class SteeredTrainer(Trainer):
    """A drop-in ``Trainer`` that takes ``feedback_dataset`` and steers its batches.

    Every argument, callback and hook of the Trainer keeps its meaning. The loss is the core's
    soft-target cross-entropy, normalised by ``num_items_in_batch`` as in the Trainer. Checkpoints
    hold designer and feedback in ``steering/``; ``resume_from_checkpoint`` restores them, and True
    resumes the newest complete checkpoint. In a checkpoint of a plain Trainer, or of an arm without
    feedback, steering begins. Logs gain ``steering/gain`` and a few more figures of
    the latest meta step (:attr:`Steering.logged`). Evaluation is the Trainer's own.

    With several processes (``accelerate launch``, ``torchrun``: DDP) each uses the same feedback;
    values, weights and designer updates are computed over all of them. FSDP, DeepSpeed and tensor,
    context or sequence parallelism are rejected.

    Args:
        given: positional arguments of the Trainer.
        feedback_dataset: verified rows that are not trained on: a ``datasets.Dataset`` or a
            sequence of dicts, in one of the formats of
            :data:`vpretrain.integrations.datasets.FORMATS`; read with ``processing_class``.
        steering: arm, designer, alignment and use of the feedback.
        arguments: keyword arguments of the Trainer.

    Raises:
        UserError: an argument that cannot be combined with steering, a model that cannot be valued,
            or feedback rows that are too few, unreadable, or trained on; raised before any step.
    """

    def __init__(
        self,
        *given: Any,
        feedback_dataset: Iterable[Mapping[str, Any]] | None,
        steering: Steering | None = None,
        **arguments: Any,
    ) -> None:
        # Passed through, because the arguments differ between Trainer versions and TRL's trainers.
        super().__init__(*given, **arguments)
        if feedback_dataset is None:
            message = "these rows are what steers; give some, or take the Trainer"
            raise user_error("feedback_dataset", message, value=None, accepted=FORMATS)
        self.steering = Steering() if steering is None else steering
        if problems := list(problems_of(self, self.steering, SteeredTrainer.compute_loss)):
            raise UserError(*problems)
        self._feedback = feedback_of(
            feedback_dataset,
            self.processing_class,
            self.steering.feedback,
            max_tokens=self.steering.feedback_max_tokens,
            where="feedback_dataset",
        )
        if self.steering.search_train:
            distributed.from_first_rank(self._search_train)
        self._steered_made: tuple[HostedLearner, Designer, Feedback] | None = None
        self._steered_step: HostedStep | None = None
        self._steered_parts()  # raises errors here rather than at the first step

    def _search_train(self) -> None:
        apart.search(
            self._feedback.documents,
            self.train_dataset,
            self.eval_dataset,
            self.processing_class,
        )

    @property
    def designer(self) -> Designer:
        """The task designer (:class:`vpretrain.method.roles.Designer`) of the current model."""
        return self._steered_parts()[1]

    @property
    def learner(self) -> HostedLearner:
        """The current model as a learner (:class:`vpretrain.method.roles.Learner`)."""
        return self._steered_parts()[0]

    @property
    def feedback(self) -> Sequence[Document]:
        """The tokenised feedback rows."""
        return self._feedback.documents

    @property
    def steered_metrics(self) -> dict[str, float]:
        """Metrics of the latest meta step (gain, gate, agreement, ...); empty before the first."""
        return {} if self._steered_step is None else self._steered_step.metrics

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *given: Any, **named: Any
    ) -> Any:
        """Trains as the Trainer does; ``True`` resumes the newest complete checkpoint.

        Incomplete checkpoints are logged.

        Raises:
            UserError: it is True, and no checkpoint can be resumed.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = resumable(Path(str(self.args.output_dir)))
        return super().train(resume_from_checkpoint, *given, **named)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Returns the steered loss of a micro-batch, after the meta step if one is due.

        In evaluation, or with ``return_outputs``, it is the Trainer's own loss.
        """
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = token_batch(inputs)
        fraction = 1.0  # without a count the Trainer itself divides by the number of micro-batches
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            fraction = ranks * batch.predicted_tokens / max(1.0, float(num_items_in_batch))
        step = self._hosted_step()
        step.learner.wrapped = model
        return step.part_loss(batch, fraction, step=self.state.global_step)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Runs the Trainer's step, then compares the accumulated gradient with the feedback's."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._hosted_step().after_backward()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs as the Trainer does, and adds metrics of the latest meta step to the training
        loss.
        """
        if "loss" in logs and self._steered_step is not None:
            steered = self._steered_step.steers and self.designer.uses_feedback
            figures = {"steered": float(steered), **self.steered_metrics}
            shown = (name for name in self.steering.logged if name in figures)
            logs |= {f"{STATE}/{name}": figures[name] for name in shown}
        super().log(logs, start_time)

    def create_model_card(self, *given: Any, **named: Any) -> None:
        """Writes the Trainer's model card, with a section on steering."""
        super().create_model_card(*given, **named)
        if self.is_world_process_zero() and self.designer.uses_feedback:
            with (Path(str(self.args.output_dir)) / "README.md").open(
                "a", encoding="utf-8"
            ) as card:
                card.write(self.steering.card(len(self.feedback)))

    def _steered_parts(self) -> tuple[HostedLearner, Designer, Feedback]:
        """Returns learner, designer and feedback of the current model.

        They are rebuilt if ``model_init`` made a new model.
        """
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        made = self._steered_made
        if made is not None and made[0].model is model:
            return made
        steering, args = self.steering, self.args
        with errors_of_steering():
            aligned = aligned_parameters(
                model,
                Anatomy.of(model),
                blocks=steering.aligned_blocks,
                patterns=steering.aligned_patterns,
            )
            # Also set by accelerate launch --mixed_precision, which args do not tell.
            in_bf16 = self.accelerator.mixed_precision == "bf16"
            learner = HostedLearner(model, aligned, autocast=torch.bfloat16 if in_bf16 else None)
        pad = getattr(self.processing_class, "pad_token_id", None)
        self._steered_made = (
            learner,
            steering.new_designer(learner, self.processing_class, args.seed),
            steering.new_feedback(
                self._feedback,
                self.processing_class,
                pad_id=0 if pad is None else pad,
                seed=args.seed,
            ),
        )
        return self._steered_made

    def _hosted_step(self) -> HostedStep:
        """Returns Algorithm 1 around the optimizer of the current ``train()``."""
        optimizer: Any = self.optimizer
        if self._steered_step is None or self._steered_step.meta.optimizer is not optimizer:
            learner, designer, feedback = self._steered_parts()
            meta = new_meta_step(self.steering, learner, designer, feedback, optimizer)
            self._steered_step = HostedStep(learner, meta)
        return self._steered_step

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        step, folder = self._hosted_step(), Path(output_dir) / STATE
        # On all processes: state_dict may be a collective call.
        designer, feedback = step.meta.designer.state_dict(), step.meta.feedback.state_dict()
        state = {"designer": designer, "feedback": feedback}
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            choices = {"arm": self.steering.arm, "kind": self.steering.feedback.kind}
            choices["rows"] = documents_hash(self._feedback.documents)
            files = {"files": files_in(folder.parent)}
            checkpoint.save({**state, "step": step.state_dict(), **choices, **files}, folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and is_plain(Path(checkpoint)):
            log.warning("%s was made without steering: it begins here", Path(checkpoint).name)
        elif checkpoint is not None:
            self._load_steering(Path(checkpoint) / STATE)

    def _load_steering(self, folder: Path) -> None:
        step, where = self._hosted_step(), "resume_from_checkpoint"
        try:
            state: dict[str, Any] = checkpoint.load(folder)
        except checkpoint.Damaged as error:
            message = (
                f"this checkpoint has no whole steering state ({error}); start anew from its "
                "model, or take another"
            )
            accepted = "a checkpoint that a SteeredTrainer wrote with save_only_model=False"
            raise user_error(where, message, value=str(folder), accepted=accepted) from None
        if not uses_feedback(state["arm"]) and self.designer.uses_feedback:
            name = folder.parent.name
            log.warning(
                "%s is of %s, which uses no feedback: steering begins here", name, state["arm"]
            )
            return
        rows = documents_hash(self._feedback.documents)
        for what, saved, now in (
            ("arm", state["arm"], self.steering.arm),
            ("kind of feedback", state["kind"], self.steering.feedback.kind),
            ("feedback_dataset (SHA-256 of its rows)", state["rows"], rows),
        ):
            if saved != now:
                message = f"the checkpoint was steered by another {what}; resume with that one"
                raise user_error(where, message, value=now, accepted=saved)
        step.meta.designer.load_state_dict(state["designer"])
        step.meta.feedback.load_state_dict(state["feedback"])
        step.load_state_dict(state["step"])
