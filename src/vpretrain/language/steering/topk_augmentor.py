"""The paper's designer ("TopKAugmentor", v1 A.1): a separate small causal transformer that is given
the true next token.

Shapes: B rows, T tokens, N predicted tokens, K candidates, V vocabulary, H hidden width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vpretrain.language.data.batch import TokenBatch
from vpretrain.language.steering.arms import ARMS, Cost, NetworkCost, Site
from vpretrain.language.steering.ascent import Climbing, ClimbingArm
from vpretrain.language.steering.networks import TransferableArm
from vpretrain.language.steering.rules import Candidates
from vpretrain.language.steering.scorer import rows_at_a_time
from vpretrain.system.contexts import own_random_state

if TYPE_CHECKING:
    from vpretrain.language.learner.cost_model import Setting, Shape


def inner_width(hidden: int) -> int:
    """Inner width of the MLP: LLaMA's 8/3 of ``hidden``, rounded up to a multiple of 8."""
    return 8 * -(-8 * hidden // 24)


class TopKAugmentor(nn.Module):
    """A decoder-only transformer (LLaMA's blocks) over the batch's tokens that scores the K
    candidates of every predicted token, given the token itself.

    Its weights are float32 whatever the learner's dtype. The paper does not say how context and
    true token are combined: here a small network of both is added to the context's state.
    Candidates are scored through their rows of the input embedding, without a product over the
    vocabulary.

    Args:
        vocabulary: V, the learner's vocabulary size; ids are the same.
        hidden: H.
        layers, heads: numbers of layers and heads of the transformer.
    """

    def __init__(self, vocabulary: int, *, hidden: int, layers: int, heads: int) -> None:
        from transformers import LlamaConfig, LlamaModel  # a second, for one arm

        super().__init__()
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner_width(hidden),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            use_cache=False,
            pad_token_id=None,
            dtype=torch.float32,
        )
        self.context = LlamaModel(config)
        self.joint = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU())
        self.joined = nn.Linear(hidden, hidden, bias=False)
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.gate = nn.Linear(hidden, 1)
        # Starts at 0.12 of its bound (ours; the paper gives none): near one-hot, but with a
        # gradient to learn from.
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(
        self, batch: TokenBatch, where: tuple[Tensor, Tensor], ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scores ``[N, K]`` and the gate in [0, 1], ``[N]``.

        Args:
            batch: the tokens; each document is a separate context.
            where: ``(row, position)``, each ``[N]`` int64: the last token before each predicted
                one.
            ids: ``[N, K]``, candidates, the true next token first.
        """
        states = self.context(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state[where]
        table = self.context.embed_tokens.weight
        truth = nn.functional.embedding(ids[:, 0], table)
        states = states + self.joined(self.joint(torch.cat([states, truth], dim=1)))
        states = self.norm(states)
        gate = torch.sigmoid(self.gate(states).squeeze(1))
        query = self.query(states)
        rows = rows_at_a_time(query.device, ids.shape[1] * query.shape[1])
        scored = [
            # Recomputed in the backward pass, so that [N, K, H] is never held.
            checkpoint(_scores, *part, table, use_reentrant=False, preserve_rng_state=False)
            for part in zip(query.split(rows), ids.split(rows), strict=True)
        ]
        return torch.cat(scored), gate


def _scores(query: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    """``query[m] . table[ids[m, k]]``, ``[M, K]``."""
    return torch.einsum("mh,mkh->mk", query, nn.functional.embedding(ids, table))


def augmentor_cost(shape: Shape, at: Setting) -> NetworkCost:
    """The cost of a :class:`TopKAugmentor`; most of its weights are its token embedding."""
    h = at.hidden
    block = 4 * h * h + 3 * h * inner_width(h)
    batch = at.tokens * at.layers * (2 * block + 4 * at.window * h)
    batch += at.predicted * 8 * h * h  # joining the true token, and the query
    scores = 2 * at.predicted * at.candidates * h
    return NetworkCost(batch, scores, shape.vocabulary * h + at.layers * block + 4 * h * h)


class TopKDesigner(Climbing):
    """The paper's designer: a :class:`TopKAugmentor` trained by ascent on its targets' value."""

    def score(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        return self.network(candidates.context.batch, candidates.context.where, candidates.ids)


@ARMS.declare(
    "ascent",
    "the paper's designer: a small transformer that knows the next token learns what part of each "
    "target goes to which likely tokens, so that its value rises",
)
class AscentArm(TransferableArm, ClimbingArm):
    cost = Cost(candidates=True, network=augmentor_cost)
    learner_size: ClassVar[tuple[str, int, str]] = ("context.embed_tokens.weight", 0, "vocabulary")

    def build(self, site: Site) -> TopKDesigner:
        with own_random_state(site.seed):  # keeps the learner's random numbers the same in all arms
            sizes = {"hidden": self.hidden, "layers": self.layers, "heads": self.heads}
            network = TopKAugmentor(len(site.embedding), **sizes).to(site.learner.device)
        return TopKDesigner(network, self.targets, self.learning(site), self.prices, self.start)
