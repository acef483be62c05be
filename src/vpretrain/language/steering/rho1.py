"""Tokens chosen by their excess loss over a reference model (Rho-1)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from transformers import AutoTokenizer

from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler
from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.learner.targets import SoftTargets, one_hot
from vpretrain.language.steering.arms import ARMS, LanguageArm, Site
from vpretrain.language.steering.rules import Candidates
from vpretrain.method.roles import Designer, Prepared, State, ValueFunction
from vpretrain.models.explained import explained
from vpretrain.models.loading import CAUSAL_LM, load_model, named, source
from vpretrain.models.trained import load_trained_state, trained_state
from vpretrain.run.pretrain import Pretraining, pretrain
from vpretrain.system import distributed
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import user_error

WHERE = "designer.reference"


class Reference:
    """The model that losses are held against.

    Args:
        learner: the model behind the learner role.
        documents: what it is trained on before the first step; none: it stays as it is.
        epochs: over the documents.
        batch_size: documents a step; fewer where there are not so many.
        learning_rate: of AdamW, constant.
        seed: of the batches.
    """

    def __init__(
        self,
        learner: CausalLearner,
        documents: Sequence[Document] = (),
        *,
        epochs: int = 1,
        batch_size: int = 32,
        learning_rate: float = 1e-5,
        seed: int = 0,
    ) -> None:
        self.learner, self.documents, self.epochs = learner, documents, epochs
        self.batch_size = min(batch_size, len(documents))
        self.learning_rate, self.seed = learning_rate, seed

    def train(self) -> Prepared:
        """Fine-tunes the model, the same on every process."""
        if not self.documents:
            return Prepared()
        model, losses = self.learner.model.train(), []
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.0)
        how = Pretraining(
            self.learner,
            lambda context: one_hot(context.labels),
            optimizer,
            1.0,
            "designer.reference_learning_rate",
        )
        batches = Sampler(
            self.documents, batch_size=self.batch_size, seed=self.seed, pad_id=0, where=WHERE
        )
        steps = math.ceil(self.epochs * len(self.documents) / self.batch_size)
        with distributed.alone():
            losses = list(pretrain(how, batches, [(self.learning_rate, 0.0)] * steps))
        distributed.broadcast([p.data for p in trained])
        model.eval()
        tokens = round(self.epochs * sum(len(document.ids) for document in self.documents))
        size = sum(p.numel() for p in model.parameters())
        figures = {"reference_loss_first": losses[0], "reference_loss_last": losses[-1]}
        return Prepared(tokens, 6.0 * size * tokens, figures)

    @torch.no_grad()
    def losses(self, context: Context) -> Tensor:
        """NLL of the batch's predicted tokens, ``[N]`` float32 or wider."""
        with evaluating(self.learner.model):
            return self.learner.token_losses(context.batch)[0]


class ExcessLoss(Designer[Context, SoftTargets]):
    """One-hot targets on the tokens whose loss exceeds the reference model's most; the others do
    not count.

    Args:
        reference: what losses are held against.
        keep: in (0, 1], the fraction of a batch's tokens that counts.
    """

    def __init__(self, reference: Reference, keep: float) -> None:
        self.reference, self.keep = reference, keep

    def prepare(self) -> Prepared:
        return self.reference.train()

    def baseline_task(self, context: Context) -> SoftTargets:
        return one_hot(context.labels)

    def make_task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        """Weights of mean 1: the loss is the mean over the tokens that are kept."""
        probe = Candidates.among(context, 1, weighted=True)
        excess = -probe.log_p[:, 0] - self.reference.losses(context)
        everywhere = distributed.all_gather_object(excess.tolist())
        ranked = sorted((each for part in everywhere for each in part), reverse=True)
        least = ranked[max(1, round(self.keep * len(ranked))) - 1]
        kept = (excess >= least).to(probe.mass.dtype)
        return SoftTargets(probe.ids, (kept / distributed.mean(kept))[:, None])

    def state_dict(self) -> State:
        """The reference as it was trained; one that was given is read from its folder again."""
        if not self.reference.documents:
            return {}
        return {"reference": trained_state(self.reference.learner.model)}

    def load_state_dict(self, state: State) -> None:
        if self.reference.documents:
            load_trained_state(self.reference.learner.model, state["reference"])


@ARMS.declare(
    "rho1",
    "trains only on the tokens that a model fine-tuned on the feedback rows finds likelier, no "
    "feedback gradient (Rho-1)",
)
class Rho1Arm(LanguageArm):
    """Rho-1 (Lin et al., arXiv:2404.07965): selective language modeling, the loss of the tokens
    with the largest excess loss over a reference model that was trained on good text.

    What differs from the published form: the good text is the feedback set, and the reference a
    copy of the learner that is fine-tuned on it before the first step, which is charged to the
    budget (``prepared_seconds``, ``prepared_tokens``, ``prepared_flops`` of the first record; FLOPs
    are 6 N a token). Tokens are ranked within a batch of the stream, over all processes.
    """

    uses_feedback = False
    needs_run = True

    keep: Annotated[float, Field(gt=0, le=1)] = 0.6
    """The fraction of tokens that counts."""
    reference: Path | None = None
    """A model of the learner's tokenizer in the place of the fine-tuned copy; null: the copy."""
    reference_epochs: PositiveInt = 3
    """Passes over the feedback rows."""
    reference_batch: PositiveInt = 32
    """Feedback rows a step."""
    reference_learning_rate: PositiveFloat | None = None
    """The rate of the reference's AdamW, constant; null: the learner's."""

    @property
    def followers(self) -> int:
        """The fine-tuned copy; how large a model in its place is, is not known here."""
        return int(self.reference is None)

    def build(self, site: Site) -> ExcessLoss:
        """Raises UserError where the reference has another tokenizer, or cannot be read."""
        if self.reference is not None:
            return ExcessLoss(Reference(_given(self.reference, site)), self.keep)
        learner = site.learner
        model = copy.deepcopy(learner.model)
        names = {id(p): name for name, p in learner.model.named_parameters()}
        copied = dict(model.named_parameters())
        aligned = {name: copied[names[id(p)]] for name, p in learner.aligned.items()}
        return ExcessLoss(
            Reference(
                CausalLearner(model, aligned, autocast=learner.autocast, packed=learner.packed),
                site.feedback,
                epochs=self.reference_epochs,
                batch_size=self.reference_batch,
                learning_rate=self.reference_learning_rate or site.learning_rate,
                seed=site.seed,
            ),
            self.keep,
        )


def _given(folder: Path, site: Site) -> CausalLearner:
    """A reference model from a folder, a packaged checkpoint or a hub id."""
    location, learner = named(str(folder)), site.learner
    _check_tokenizer(location, site.tokenizer)
    with explained(location, WHERE):
        model = load_model(
            CAUSAL_LM,
            location,
            dtype=next(learner.model.parameters()).dtype,
            attention=learner.model.config._attn_implementation,
        )
    model = model.to(learner.device).eval().requires_grad_(False)
    aligned = dict(model.named_parameters())
    return CausalLearner(model, aligned, autocast=learner.autocast, packed=learner.packed)


def _check_tokenizer(location: str, tokenizer: Any) -> None:
    with explained(location, WHERE, what="tokenizer"):
        name, options = source(location)
        other = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options).get_vocab()
    own = tokenizer.get_vocab()
    if other != own:
        unlike = sum(other.get(token) != own.get(token) for token in {*other, *own})
        raise user_error(
            WHERE,
            "the reference has another tokenizer, so that the losses of its tokens are not those "
            "of the learner's",
            value=location,
            accepted=f"a model of the learner's tokenizer ({len(own)} tokens; that one has "
            f"{len(other)}, and {unlike} differ)",
        )
