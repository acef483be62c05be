"""Steering options for other libraries' trainers, and the parts built from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import ModelWrapValidatorHandler, PositiveInt, ValidationError, model_validator

from vpretrain import __version__
from vpretrain.config.arms import Arm
from vpretrain.config.problems import explain, nearest
from vpretrain.config.recipe import Value
from vpretrain.config.section import Section
from vpretrain.language.designer_transfer import designer_for
from vpretrain.language.feedback.likelihood import LikelihoodSignal, parted
from vpretrain.language.feedback.signals import SIGNALS, FeedbackSite, Signal, TaskDocuments
from vpretrain.language.feedback.tasks import mislabelled
from vpretrain.language.learner.causal import CausalLearner
from vpretrain.language.recipe.learner import LearnerSection
from vpretrain.language.steering.arms import ARMS, LanguageArm, Site
from vpretrain.language.steering.rules import DocumentWeightsArm
from vpretrain.method.reliability import Reliability
from vpretrain.method.roles import Designer, Feedback
from vpretrain.run.controls import controlled, shuffles_labels
from vpretrain.system.errors import Problem, UserError


def steering_arms() -> dict[str, Arm]:
    """Returns the language arms that work with another trainer's rows, by name.

    Such rows have no sources to weigh, and all of them are trained on.
    """
    return {
        name: arm
        for name, arm in ARMS.all.items()
        if arm.trains_on == "stream"
        and not arm.after
        and not (
            arm.designer
            and (ARMS.kinds[arm.designer].needs_sources or ARMS.kinds[arm.designer].needs_run)
        )
    }


STEERING_ARMS = steering_arms()
"""The arms that come with the package."""


def uses_feedback(arm: str) -> bool:
    """Whether the arm of that name, one of these, takes feedback gradients."""
    kind = ARMS.all[arm].designer if arm in ARMS.all else None
    return kind is None or ARMS.kinds[kind].uses_feedback


class Steering(Value):
    """Steering options for another trainer.

    They are the keys of a recipe's ``value`` section and of its designer, side by side, and those
    for arm, S and feedback.

    The designer's keys are those of the arm's kind (``tilt`` of ``document_weights``); for arms
    that replace the feedback, those of ``kind``. ``learning_rate`` is the designer's; the learner's
    optimizer, schedule and clipping are the trainer's own.

    Raises:
        UserError: an unknown key, a key of another kind of designer, an invalid value, or
            incompatible keys.
    """

    arm: str = "document_weights"
    """One of :data:`STEERING_ARMS`."""
    designer: Annotated[LanguageArm, ARMS.by_kind] = DocumentWeightsArm()
    """The designer's keys as one section; they can also be given side by side with the other
    keys.
    """
    aligned_blocks: PositiveInt | Literal["all"] = 2
    """S: this many last blocks, with final norm and (untied) head."""
    aligned_patterns: list[str] = []
    """S as shell patterns over parameter names, in place of ``aligned_blocks``; each must match a
    trainable parameter.
    """
    feedback: Annotated[Signal, SIGNALS.by_kind] = LikelihoodSignal()
    """The kind of feedback to make of the rows, with its keys as in ``data.feedback.tasks``:
    ``{"kind": "reward", "checker": "number"}``.
    """
    feedback_batch_size: PositiveInt = 32
    """Rows in one feedback batch."""
    feedback_batches: PositiveInt = 2
    """Feedback batches per meta step; g_down is their mean, and their agreement measures how far to
    trust it.
    """
    feedback_max_tokens: PositiveInt = 512
    """Longer feedback rows are truncated to this many tokens, and counted in the log."""
    search_train: bool = True
    """Whether ``train_dataset`` is searched for feedback rows when the trainer is made, which takes
    some minutes for each million rows. Without it nobody knows if their answers are trained on.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, keys: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        keys = _gathered(keys, set(cls.model_fields))
        try:
            checked = handler(keys)
        except ValidationError as error:
            with errors_of_steering():
                raise UserError(*explain(error, cls, keys, {(): "Steering"})) from None
        if problems := list(checked._problems()):
            raise UserError(*problems)
        return checked

    def _problems(self) -> Iterator[Problem]:
        if self.arm not in (arms := steering_arms()):
            message = f"there is no such arm beside a trainer{nearest(self.arm, arms)}"
            yield Problem("Steering arm", self.arm, ", ".join(arms), message)
        elif (own := ARMS.named(self.arm).designer) not in (None, self.designer.kind):
            message = f"the designer of the arm {self.arm} is {own}; give the keys of that one"
            yield Problem("Steering designer", f"kind: {self.designer.kind}", str(own), message)
        if self.settle_steps:
            message = (
                "a trainer's loop takes no steps before its first; let its warm-up settle "
                "the optimizer"
            )
            yield Problem(
                "Steering settle_steps",
                str(self.settle_steps),
                "0, with warmup_steps in args",
                message,
            )
        if self.shrink and self.feedback_batches < 2:
            message = "shrink compares feedback batches; use two or more, or set shrink to False"
            yield Problem(
                "Steering feedback_batches", str(self.feedback_batches), "2 or more", message
            )

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the figures that go into a trainer's log.

        They tell whether the step was steered, its gain, the reliability of the feedback, the
        cosine of the step's gradient with it, and how far this arm's tasks are from the baseline's.
        """
        cost = self.designer.cost
        weighted, mixed = (cost.weighted, cost.candidates) if cost else (False, True)
        shape = [*(["weight_spread"] if weighted else []), *(["gate"] if mixed else [])]
        return "steered", "gain", "reliability", "cosine", *shape

    def card(self, rows: int) -> str:
        """Returns a model card's section on steering; ``rows`` is the number of feedback rows."""
        return (
            "\n## Steering\n\n"
            f"What each batch taught was shaped by the gradient of {rows} verified examples, none "
            "of which was trained on (V-pretraining, "
            "[arXiv 2601.22108](https://arxiv.org/abs/2601.22108)).\n\n"
            f"- Arm: {self.arm}, {ARMS.all[self.arm].description}\n"
            f"- Value: {self.alignment}, {self.estimator}, every {self.meta_period} steps\n"
            f"- vpretrain {__version__}\n"
        )

    def new_designer(self, learner: CausalLearner, tokenizer: Any, seed: int) -> Designer:
        """Returns the arm's designer, fresh or transferred from a run.

        Args:
            learner: the learner to steer.
            tokenizer: the learner's; read only if a designer is transferred.
            seed: of the designer's initial weights.

        Raises:
            UserError: the designer does not fit the learner.
        """
        site = Site(learner, seed, Reliability(shrink=self.shrink, unit=self.unit))
        section = LearnerSection(model=str(learner.model.config.name_or_path))
        with errors_of_steering():
            return designer_for(self.designer, site, section, tokenizer)

    def new_feedback(
        self, task: TaskDocuments, tokenizer: Any, *, pad_id: int, seed: int
    ) -> Feedback:
        """Returns the feedback that the arm's designer gets from verified rows.

        Args:
            task: the tokenised rows, each with something to predict.
            tokenizer: the learner's; None if no kind of feedback reads text.
            pad_id: pads rows; never predicted.
            seed: of the batches.

        Raises:
            UserError: there are fewer rows than the batches take, or a control of labels has no
                prompts to shuffle them among.
        """
        control = ARMS.named(self.arm).control or "none"
        if shuffles_labels(control):
            task = mislabelled(task, seed, "feedback_dataset")
        samplers = parted(
            task.documents,
            self.feedback_batches,
            batch_size=self.feedback_batch_size,
            seed=seed,
            pad_id=pad_id,
            where="feedback_dataset",
            key="feedback_batch_size",
        )
        site = FeedbackSite(task, samplers, tokenizer, seed, "Steering feedback")
        return controlled(self.feedback.build(site), control, memory=self.memory, seed=seed)


def _gathered(keys: Mapping[str, Any], own: Set[str]) -> dict[str, Any]:
    """Moves the designer's keys to a section of their own.

    For arms that read no feedback, keys of other designers are dropped, so that one script serves
    both.
    """
    rest = dict(keys)
    arm = ARMS.all.get(str(rest.get("arm", ARMS.default)))
    kind = (arm and arm.designer) or ARMS.default
    if "designer" in rest:
        if not isinstance(given := rest.pop("designer"), Mapping | Section):
            return {**rest, "designer": given}  # refused as what it is
        section = {"kind": kind, **dict(given)}
        rest = {"arm": section["kind"], **rest}
    else:
        of_designers = {key for each in ARMS.kinds.values() for key in each.model_fields} - own
        section = {"kind": kind, **{key: rest.pop(key) for key in [*rest] if key in of_designers}}
        if arm is not None and arm.designer:
            section["kind"] = kind
    if arm is not None and arm.designer and not ARMS.kinds[arm.designer].uses_feedback:
        fields = ARMS.kinds[arm.designer].model_fields
        section = {key: value for key, value in section.items() if key in fields} | {"kind": kind}
    return {**rest, "designer": section}


_SECTIONS = ("learner.", "designer.", "value.")


@contextmanager
def errors_of_steering() -> Iterator[None]:
    """Context manager that renames recipe keys in errors to arguments of ``Steering``."""
    try:
        yield
    except UserError as error:
        raise UserError(
            *(replace(problem, where=_renamed(problem.where)) for problem in error.problems)
        ) from None


def _renamed(where: str) -> str:
    key = where.removeprefix("Steering ")
    if key == "learner.model":
        return "model"
    own = key
    for section in _SECTIONS:
        own = own.removeprefix(section)
    return f"Steering {own}" if own != where or key == "arm" else where
