"""A designer of an earlier run: on another seed, or on another learner of the same tokenizer, with
or without more feedback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.learner.loading import load_model
from vpretrain.language.learner.targets import SoftTargets
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import designer_of
from vpretrain.language.steering.networks import CandidateDesigner, FieldDesigner
from vpretrain.method.roles import Designer, ValueFunction
from vpretrain.studies.explain import read_run
from vpretrain.system.errors import UserError, user_error

WHERE = "designer.init_from"


class TransferredDesigner:
    """A designer with a past behind the designer role.

    Args:
        designer: as its run left it.
        frozen: whether it hears no feedback any more.
        companion: the model whose hidden states it reads in the place of the learner's; None for
            the learner's own.
    """

    def __init__(
        self,
        designer: CandidateDesigner | FieldDesigner,
        *,
        frozen: bool,
        companion: CausalLearner | None,
    ) -> None:
        self.designer, self.companion = designer, companion
        self.uses_feedback = not frozen

    def make_task(self, context: Context, value_of: ValueFunction) -> SoftTargets:
        """The task as the carried designer makes it."""
        return self.designer.make_task(self._seen(context), value_of)

    def baseline_task(self, context: Context) -> SoftTargets:
        return self.designer.baseline_task(context)

    def learn(self, context: Context, value_of: ValueFunction) -> dict[str, float]:
        """As the carried designer learns; never called while it is frozen."""
        return self.designer.learn(self._seen(context), value_of)

    def state_dict(self) -> dict[str, Any]:
        return self.designer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.designer.load_state_dict(state)

    @torch.no_grad()
    def _seen(self, context: Context) -> Context:
        """Candidates and their probabilities are the learner's; what stands around them is read
        with the old eyes.
        """
        return (
            context
            if self.companion is None
            else replace(context, hidden=self.companion.hidden(context.batch))
        )


def designer_for(recipe: LanguageRecipe, learner: CausalLearner, tokenizer: Any) -> Designer:
    """The designer of the recipe's arm, fresh or carried from the run that
    ``designer.init_from`` names.

    Arms that hear no feedback (the baseline of a comparison, say) have nothing to carry and stay as
    they are.

    Args:
        recipe: every value of the run.
        learner: what is to be steered.
        tokenizer: the learner's.

    Raises:
        UserError: the folder holds no finished language run; its designer is of another kind or
            shape, or was trained on another tokenizer; the learner is of another width and there is
            no companion.
    """
    section, fresh = recipe.designer, designer_of(recipe, learner)
    if section.init_from is None or not fresh.uses_feedback:
        return fresh
    folder = section.init_from.expanduser()
    saved = _run(folder)
    if not isinstance(fresh, (CandidateDesigner, FieldDesigner)):
        raise user_error(
            WHERE,
            f"the arm {recipe.arm} asks for the value of every batch anew and has no network "
            "to carry",
            value=str(folder),
            accepted="the arms ascent, field and weight_field",
        )
    _check_likeness(recipe, saved, folder)
    _check_tokenizer(folder, tokenizer)
    companion = _companion(recipe, folder, learner) if section.companion else None
    designer = fresh if companion is None else designer_of(recipe, companion)
    assert isinstance(designer, (CandidateDesigner, FieldDesigner))
    if (missing := learner.model.config.vocab_size - len(designer.embedding)) > 0:
        # Models of one tokenizer pad their vocabularies to unlike sizes; rows beyond the tokenizer
        # mean nothing.
        designer.embedding = nn.functional.pad(designer.embedding.detach(), (0, 0, 0, missing))
    _restore(designer, folder)
    return TransferredDesigner(designer, frozen=section.frozen, companion=companion)


def _run(folder: Path) -> LanguageRecipe:
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
    return saved


def _kind(recipe: LanguageRecipe) -> str:
    """Which designer the recipe's arm steers with: controls of the feedback borrow
    ``designer.kind``.
    """
    return recipe.arm if recipe.arm in ("ascent", "field", "weight_field") else recipe.designer.kind


def _check_likeness(recipe: LanguageRecipe, saved: LanguageRecipe, folder: Path) -> None:
    if (here := _kind(recipe)) != (there := _kind(saved)):
        message = f"the designer of {folder} is of another kind: choose its arm"
        raise user_error("arm", message, value=here, accepted=there)
    for key in ("hidden", "layers", "heads"):
        mine, its = getattr(recipe.designer, key), getattr(saved.designer, key)
        if mine != its:
            raise user_error(
                f"designer.{key}",
                f"the designer of {folder} has another shape",
                value=mine,
                accepted=str(its),
            )


def _check_tokenizer(folder: Path, tokenizer: Any) -> None:
    its = AutoTokenizer.from_pretrained(folder / "model").get_vocab()
    mine = tokenizer.get_vocab()
    if its == mine:
        return
    unlike = sorted(
        (token for token in {*its, *mine} if its.get(token) != mine.get(token)), key=str
    )
    raise user_error(
        WHERE,
        "this designer was trained on another tokenizer, whose token ids mean other text",
        value=str(folder),
        accepted=f"runs of this learner's tokenizer ({len(mine)} tokens; that one has {len(its)}, "
        "and "
        f"{len(unlike)} differ, for example {unlike[0]!r})",
    )


def _companion(recipe: LanguageRecipe, folder: Path, learner: CausalLearner) -> CausalLearner:
    section = recipe.learner.model_copy(update={"lora": None, "config": None})
    model = load_model(section, str(folder.resolve() / "model"), recipe.seed).to(learner.device)
    return CausalLearner(
        model.eval().requires_grad_(False),
        dict(model.named_parameters()),
        autocast=learner.autocast,
    )


def _restore(designer: CandidateDesigner | FieldDesigner, folder: Path) -> None:
    path = folder / "designer" / "state.pt"
    width = designer.embedding.shape[1]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if (its := state["network"]["candidate.weight"].shape[1]) == width:
            designer.load_state_dict(state)
    except Exception as error:  # pickle, zip and torch each raise their own
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        message = f"the designer's state is damaged ({said}); train that run again"
        raise user_error(str(path), message, accepted="the file that the run wrote") from None
    if its != width:
        raise user_error(
            WHERE,
            "this designer reads hidden states of another width than this learner's: set "
            "designer.companion to "
            "true, and the model it was trained with runs beside the learner",
            value=f"width {its}",
            accepted=f"width {width}",
        )
