"""A reference model: a copy of the learner fine-tuned on the feedback rows, or a model given by the
user, and token weights made from its losses.

The *excess loss* of a token is the learner's loss less the reference's. It is large where a model
that has learned from the verified examples finds the token likelier than the learner does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from vpretrain.language.data.rows import Document
from vpretrain.language.data.stream import Sampler
from vpretrain.language.learner.causal import CausalLearner, Context
from vpretrain.language.learner.frozen import check_same_tokenizer, frozen_learner
from vpretrain.language.learner.targets import SoftTargets, one_hot
from vpretrain.language.steering.arms import LanguageArm, Site
from vpretrain.language.steering.rules import Candidates, TokenRule
from vpretrain.method.roles import Designer, Prepared, State, ValueFunction
from vpretrain.method.rules import standardised
from vpretrain.models.load_errors import explained
from vpretrain.models.loading import CAUSAL_LM, load_model, named
from vpretrain.models.trainable_state import load_trained_state, trained_state
from vpretrain.run.pretrain import Pretraining, pretrain
from vpretrain.system import distributed
from vpretrain.system.contexts import evaluating
from vpretrain.system.phases import phase
from vpretrain.system.random_streams import random_state, set_random_state

WHERE = "designer.reference"


class Reference:
    """The model whose losses the learner's are compared with.

    Args:
        learner: the model behind the learner role.
        documents: it is trained on these before the first step; if there are none it is used as it
            is.
        epochs: passes over the documents.
        batch_size: documents a step, at most all of them.
        learning_rate: constant, of AdamW.
        seed: sets the order of the documents.
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
        model = self.learner.model.train()
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
        generators = random_state()
        with distributed.alone():
            taken = pretrain(how, batches, [(self.learning_rate, 0.0)] * steps)
            losses = list(
                phase("fine-tuning the reference on the feedback rows, steps", taken, steps)
            )
        set_random_state(generators)  # so that the learner's dropout is the same in every arm
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

    def excess(self, probe: Candidates) -> Tensor:
        """The learner's loss less the reference's, in standard deviations over the batch on all
        processes, ``[N]``."""
        return standardised(-probe.log_p[:, 0] - self.losses(probe.context))

    def state_dict(self) -> State:
        """The trained weights; empty for a given model, which is read from its folder again."""
        return {"reference": trained_state(self.learner.model)} if self.documents else {}

    def load_state_dict(self, state: State) -> None:
        if self.documents:
            load_trained_state(self.learner.model, state["reference"])


class ExcessLoss(Designer[Context, SoftTargets]):
    """One-hot targets with tokens weighted by their excess loss over a reference model.

    Args:
        reference: provides the losses to compare with.
        rule: makes weights from excess losses, given in standard deviations over the batch.
    """

    def __init__(self, reference: Reference, rule: TokenRule) -> None:
        self.reference, self.rule = reference, rule

    def prepare(self) -> Prepared:
        return self.reference.train()

    def baseline_task(self, context: Context) -> SoftTargets:
        return one_hot(context.labels)

    def make_task(self, context: Context, value_of: ValueFunction[Context]) -> SoftTargets:
        probe = Candidates.among(context, 1, weighted=True)
        return self.rule.task(probe, self.reference.excess(probe)[:, None])

    def state_dict(self) -> State:
        return self.reference.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.reference.load_state_dict(state)


class ReferenceArm(LanguageArm):
    """The keys of arms that compare the learner with a reference model.

    Training the reference is charged to the budget (``prepared_seconds``, ``prepared_tokens`` and
    ``prepared_flops`` of the first record; FLOPs are 6 N a token). Its loss is the mean over the
    tokens of a batch, whatever ``data.feedback.loss_mean`` is.
    """

    needs_run = True
    reads_rows = True

    reference: Path | None = None
    """A model with the learner's tokenizer in place of the fine-tuned copy; the keys below do not
    apply to it. Null: the copy."""
    reference_epochs: PositiveInt = 3
    """Passes over the feedback rows."""
    reference_batch: PositiveInt = 32
    """Feedback rows a step."""
    reference_learning_rate: PositiveFloat | None = None
    """The constant learning rate of the reference's AdamW; null: the learner's."""

    @property
    def followers(self) -> int:
        """1 for the fine-tuned copy; 0 for a given model, whose size is not known here."""
        return int(self.reference is None)

    def reference_for(self, site: Site) -> Reference:
        """The reference, untrained. Raises UserError if a given one has another tokenizer, or
        cannot be read."""
        if self.reference is not None:
            return Reference(_given(self.reference, site))
        learner = site.learner
        model = copy.deepcopy(learner.model)
        names = {id(p): name for name, p in learner.model.named_parameters()}
        copied = dict(model.named_parameters())
        aligned = {name: copied[names[id(p)]] for name, p in learner.aligned.items()}
        return Reference(
            CausalLearner(model, aligned, autocast=learner.autocast, packed=learner.packed),
            site.feedback,
            epochs=self.reference_epochs,
            batch_size=self.reference_batch,
            learning_rate=self.reference_learning_rate or site.learning_rate,
            seed=site.seed,
        )


def _given(folder: Path, site: Site) -> CausalLearner:
    """A reference model from a folder, a packaged checkpoint or a hub id."""
    location, learner = named(str(folder)), site.learner
    message = "the reference has another tokenizer, so that the losses of its tokens are not those "
    message += "of the learner's"
    check_same_tokenizer(location, site.tokenizer, WHERE, message, "models")
    with explained(location, WHERE):
        model = load_model(
            CAUSAL_LM,
            location,
            dtype=next(learner.model.parameters()).dtype,
            attention=learner.model.config._attn_implementation,
        )
    return frozen_learner(model, learner)
