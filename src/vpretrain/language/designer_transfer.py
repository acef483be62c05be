"""The designer of an earlier run, reused with another seed, or for another learner with the same
tokenizer; frozen, or trained further."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.learner.frozen import check_same_tokenizer, frozen_learner
from vpretrain.language.learner.loading import load_model
from vpretrain.language.learner.targets import SoftTargets
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.recipe.learner import LearnerSection
from vpretrain.language.steering.arms import ARMS, LanguageArm, Site, designer_of
from vpretrain.language.steering.networks import HiddenArm, HiddenDesigner, Scored, TransferableArm
from vpretrain.method.roles import Bounds, Designer, Learned, ValueFunction
from vpretrain.run.finished_run import designer_state, read_run
from vpretrain.system.errors import UserError, user_error

WHERE = "designer.init_from"


class TransferredDesigner(Designer[Context, SoftTargets]):
    """A designer from an earlier run.

    Args:
        designer: the designer, with its state at the end of its run.
        frozen: whether it is not trained any more, and uses no feedback.
        companion: the model whose hidden states it reads in place of the learner's; None for the
            learner's own.
    """

    def __init__(self, designer: Scored, *, frozen: bool, companion: CausalLearner | None) -> None:
        self.designer, self.companion = designer, companion
        self.uses_feedback = not frozen

    @property
    def bounds(self) -> Bounds:
        return self.designer.bounds

    def make_task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        """The transferred designer's task."""
        return self.designer.make_task(self._seen(context), value_of)

    def baseline_task(self, context: Context) -> SoftTargets:
        return self.designer.baseline_task(context)

    def learn(self, context: Context, value_of: ValueFunction[Context]) -> Learned[SoftTargets]:
        """Trains the transferred designer; never called if it is frozen."""
        return self.designer.learn(self._seen(context), value_of)

    def predicted_values(self, context: Context) -> Tensor | None:
        return self.designer.predicted_values(self._seen(context))

    def state_dict(self) -> dict[str, Any]:
        return self.designer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.designer.load_state_dict(state)

    @torch.no_grad()
    def _seen(self, context: Context) -> Context:
        """The context that the designer reads: with a companion, its hidden states, which the
        designer was trained on; candidates and probabilities stay the learner's."""
        if self.companion is None:
            return context
        with self.companion.computing():
            return replace(context, hidden=self.companion.hidden(context.batch))


def designer_for(
    section: LanguageArm, site: Site, learner_section: LearnerSection, tokenizer: Any
) -> Designer[Context, SoftTargets]:
    """The designer of an arm, new or transferred from the run in ``designer.init_from``.

    Designers without a network have nothing to transfer.

    Args:
        section: the arm's keys.
        site: what the designer is built from.
        learner_section: settings for loading a companion.
        tokenizer: the learner's tokenizer, which is compared with that of the earlier run.

    Raises:
        UserError: the folder holds no finished language run, its designer is of another kind or
            shape or was trained with another tokenizer, or the learner has another width and there
            is no companion.
    """
    if not isinstance(section, TransferableArm) or section.init_from is None:
        return designer_of(section, site)
    folder = section.init_from.expanduser()
    _check_likeness(section, _saved(folder), folder)
    _check_tokenizer(folder, tokenizer)
    vocabulary, companion = site.learner.model.config.vocab_size, None
    if isinstance(section, HiddenArm) and section.companion:
        companion = _companion(learner_section, folder, site)
        site = replace(site, learner=companion)
    designer = section.build(site)
    if isinstance(designer, HiddenDesigner) and vocabulary > len(designer.embedding):
        missing = vocabulary - len(designer.embedding)
        # Models with the same tokenizer pad their vocabularies to different sizes; rows beyond the
        # tokenizer are unused.
        designer.embedding = nn.functional.pad(designer.embedding.detach(), (0, 0, 0, missing))
    _restore(designer, section, folder)
    return TransferredDesigner(designer, frozen=section.frozen, companion=companion)


def _saved(folder: Path) -> LanguageArm:
    """The designer's keys in the recipe of a finished run."""
    try:
        saved = read_run(folder)
    except UserError as error:
        raise UserError(
            *(replace(p, where=WHERE) if p.where == "RUN" else p for p in error.problems)
        ) from None
    if not isinstance(saved, LanguageRecipe):
        raise user_error(
            WHERE, "this is a run of another modality", value=str(folder), accepted="a language run"
        )
    return ARMS.section_of(saved)


def _check_likeness(section: TransferableArm, saved: LanguageArm, folder: Path) -> None:
    if section.kind != saved.kind or not isinstance(saved, TransferableArm):
        message = f"the designer of {folder} is of another kind: choose its arm"
        raise user_error("arm", message, value=section.kind, accepted=saved.kind)
    for key in ("hidden", "layers", "heads"):
        own, other = getattr(section, key), getattr(saved, key)
        if own != other:
            raise user_error(
                f"designer.{key}",
                f"the designer of {folder} has another shape",
                value=own,
                accepted=str(other),
            )


def _check_tokenizer(folder: Path, tokenizer: Any) -> None:
    if not hasattr(tokenizer, "get_vocab"):  # of a trainer whose rows are tokens
        message = "a designer of another run knows tokens by its tokenizer: give the trainer's "
        message += "own, which is compared with that one"
        raise user_error(WHERE, message, value=tokenizer, accepted="processing_class=tokenizer")
    message = "this designer was trained on another tokenizer, whose token ids mean other text"
    check_same_tokenizer(str(folder / "model"), tokenizer, WHERE, message, "runs")


def _companion(learner_section: LearnerSection, folder: Path, site: Site) -> CausalLearner:
    section = learner_section.model_copy(update={"lora": None, "config": None})
    model = load_model(section, str(folder.resolve() / "model"), site.seed)
    return frozen_learner(model, site.learner)


def _restore(designer: Scored, section: TransferableArm, folder: Path) -> None:
    """Loads the saved designer's state; ``UserError`` if the network's shape differs."""
    parameter, axis, size = section.learner_size
    own = designer.network.state_dict()[parameter].shape[axis]
    state = designer_state(folder)
    try:
        if (other := state["network"][parameter].shape[axis]) == own:
            designer.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, ValueError):
        message = "this is the state of another designer; name a run of this arm and its sizes"
        raise user_error(WHERE, message, value=str(folder), accepted=section.kind) from None
    if other != own:
        message = f"this designer was made for a learner of another {size}; train one of this size"
        if isinstance(section, HiddenArm):
            message = (
                f"this designer reads hidden states of another {size} than this learner's: set "
                "designer.companion to true, and the model it was trained with runs beside the "
                "learner"
            )
        raise user_error(WHERE, message, value=f"{size} {other}", accepted=f"{size} {own}")
