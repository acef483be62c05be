"""Cost model of a step: FLOPs and bytes computed from shapes, to compare with measurements.

A step has ``a`` batches of M tokens in windows of T, N of them predicted. The learner has L blocks
of P parameters each, width D, A = heads times head width, vocabulary V, and S in its last s blocks.
There are K candidates, a meta step every r steps, and F feedback batches of n tokens each. A
product of ``[N, a]`` and ``[a, b]`` has ``2 N a b`` FLOPs; attention has two products of length T a
token and head, not halved for causality. ``torch.utils.flop_counter`` counts the same, except that
it does not count attention on a CPU. FLOPs of the parts:

* blocks, every batch: ``3 M L (2 P + 4 T A)``: forward, backward to states and to weights;
* head, every batch: ``3 * 2 N V D``. If token weights are known only after the pass and the head
  trains, one more product at the positions whose softmax is not kept (:func:`kept`). For sparse
  targets over K candidates, ``2 N K D`` more;
* values: exact arms at every batch except the first of a meta step (F' = 1), and all arms with
  feedback at that one (F' = F). A central difference takes d = 2 passes, a one-sided one d = 1:
  ``F' d M s (2 P + 4 T A)``, plus ``F' d 2 N K D`` if the head is not in S, or ``F' d 2 N V D`` if
  it is, since it is run then;
* designer, arms with a network: a forward pass every batch, and one with its gradient at the meta
  step (:class:`~vpretrain.language.steering.arms.NetworkCost`);
* feedback, at the meta step: ``F n (2 L P + 4 s P + 4 L T A + 2 * 2 V D)``: forward, backward to
  the states of the blocks in S and to their weights.

Bytes: weights, gradients and AdamW's two moments (4 numbers a parameter, float32); activations kept
for the backward pass, ``M L (4 D + 2 A + 2 G + 4 I)`` numbers, with G the width of keys and I that
of the MLP; the head's chunk of logits, or 3 times all logits if they are whole, or the kept
softmax; the gradients to the hidden states; F + 1 directions over S; the designer's weights,
gradients and moments.

Shapes are decoder blocks with a gated MLP (Qwen, Llama, Mistral).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vpretrain.language.learner.head_chunks import CHUNK_LOGITS, chunk_rows
from vpretrain.language.learner.predictions import WHOLE_LOGITS
from vpretrain.language.recipe import LanguageRecipe
from vpretrain.language.steering.arms import ARMS, Cost, NetworkCost
from vpretrain.language.steering.topk_augmentor import AscentArm
from vpretrain.system.devices import for_kind
from vpretrain.system.errors import user_error


@dataclass(frozen=True)
class Shape:
    """Shape of a decoder; symbols as in the module docstring.

    Args:
        blocks: L.
        width, inner: D and I.
        heads, groups: number of query heads, and of key and value heads.
        head_width: width of a head.
        vocabulary: V.
        tied: whether the head is the input embedding, and therefore not in S.
    """

    blocks: int
    width: int
    inner: int
    heads: int
    groups: int
    head_width: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """The shape of a ``transformers`` configuration; ``KeyError`` for other architectures."""
        heads, width = config["num_attention_heads"], config["hidden_size"]
        return cls(
            config["num_hidden_layers"],
            width,
            config["intermediate_size"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or width // heads,
            config["vocab_size"],
            bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def attention(self) -> int:
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        return self.groups * self.head_width

    @property
    def block(self) -> int:
        """P: number of weights in a block's matrices."""
        return self.width * (2 * self.attention + 2 * self.keys + 3 * self.inner)

    @property
    def parameters(self) -> int:
        return self.blocks * self.block + self.vocabulary * self.width * (1 if self.tied else 2)


SIZES = {
    "0.5B": Shape(24, 896, 4864, 14, 2, 64, 151936, True),
    "4B": Shape(40, 2560, 6912, 20, 20, 128, 151936, False),
    "7B": Shape(28, 3584, 18944, 28, 4, 128, 152064, False),
    "72B": Shape(80, 8192, 29568, 64, 8, 128, 152064, False),
}
"""Qwen2.5-0.5B, Qwen1.5-4B, Qwen2.5-7B, Qwen2.5-72B."""


KINDS = {kind: section.cost for kind, section in ARMS.kinds.items() if section.cost is not None}
"""Cost by arm. The other language arms are one of these with a different feedback."""


@dataclass(frozen=True)
class Setting:
    """Settings of a run, in the order of the fields: M, N, T, s, K, the designer's width and
    blocks, r, F, n, a, d, and the kind of device (which the size of chunks depends on)."""

    tokens: int
    predicted: int
    window: int
    aligned: int = 2
    candidates: int = 64
    hidden: int = 256
    layers: int = 6
    period: int = 8
    batches: int = 2
    feedback_tokens: int = 32 * 64
    accumulate: int = 1
    passes: int = 2
    device: str = "cpu"

    @classmethod
    def of(cls, recipe: LanguageRecipe, shape: Shape, device: str) -> Setting:
        """The setting of a recipe; assumes that all tokens are predicted, and that a feedback row
        has 64 tokens."""
        data, section = recipe.data, ARMS.keys_of(recipe, AscentArm)
        blocks = recipe.learner.aligned_blocks
        aligned = shape.blocks if blocks == "all" else blocks
        tokens = data.batch_size * data.window_tokens
        return cls(
            tokens=tokens,
            predicted=tokens,
            window=data.window_tokens,
            aligned=aligned,
            device=device,
            candidates=section.candidates,
            hidden=section.hidden,
            layers=section.layers,
            period=recipe.value.meta_period,
            batches=data.feedback.batches,
            feedback_tokens=data.feedback.batch_size * 64,
            accumulate=recipe.learner.accumulate,
            passes=_passes(recipe),
        )


def _passes(recipe: LanguageRecipe) -> int:
    """Forward passes of the suffix that a value costs. In bfloat16 the default is one pass with
    tangents, which has three products where a pass has one."""
    if recipe.value.estimator != "one_sided_difference":
        return 2
    return 3 if recipe.learner.dtype == "bfloat16" else 1


def kept(shape: Shape, at: Setting) -> int:
    """Number of predicted tokens of a batch whose softmax is kept until their weights are known:
    whole chunks in at most the memory of the head's gradient, or one chunk (float32; see head.py).
    """
    n, rows = at.predicted, max(1, for_kind(CHUNK_LOGITS, at.device) // shape.vocabulary)
    if n * shape.vocabulary <= WHOLE_LOGITS:
        return n
    size, room = chunk_rows(n, rows), max(shape.width, rows)
    return n if n <= room else room // size * size


def flops(shape: Shape, at: Setting, kind: Cost) -> dict[str, float]:
    """FLOPs of a step by part, with the meta step averaged over ``period`` steps."""
    n, k = at.predicted, at.candidates
    head = 2 * n * shape.vocabulary * shape.width
    again = head * (n - kept(shape, at)) / n
    block = at.tokens * (2 * shape.block + 4 * at.window * shape.attention)
    fraction = 1 / at.period if kind.uses_feedback else 0.0
    sparse = 2 * n * k * shape.width * kind.candidates
    value = at.passes * (at.aligned * block + (sparse if shape.tied else head))
    network = kind.network(shape, at) if kind.network else NetworkCost(0, 0, 0)
    per_row = (2 * shape.blocks + 4 * at.aligned) * shape.block + 4 * shape.vocabulary * shape.width
    parts = {  # the designer is trained on the first batch of a step
        "blocks": 3 * at.accumulate * shape.blocks * block,
        "head": at.accumulate * (3 * head + kind.weighted * again + sparse),
        "values": (at.accumulate - fraction) * value * kind.exact,
        "designer": at.accumulate * network.forward + fraction * network.update,
        "meta": fraction * at.batches * (value + at.feedback_tokens * per_row),
    }
    return {part: float(figure) for part, figure in parts.items()}


def resident(shape: Shape, at: Setting, kind: Cost) -> dict[str, float]:
    """Peak memory of a step in bytes, by part, in float32."""
    n, width = at.predicted, shape.width
    logits = n * shape.vocabulary
    chunk = min(logits, for_kind(CHUNK_LOGITS, at.device))
    softmax = kept(shape, at) * shape.vocabulary if kind.weighted else 0
    whole = 3 * logits if logits <= WHOLE_LOGITS else max(chunk, softmax)
    aligned = at.aligned * shape.block + (0 if shape.tied else shape.vocabulary * width)
    activations = 4 * width + 2 * shape.attention + 2 * shape.keys + 4 * shape.inner
    network = kind.network(shape, at) if kind.network else NetworkCost(0, 0, 0)
    numbers = {
        "weights, gradients, moments": 4 * shape.parameters,
        "blocks": at.tokens * shape.blocks * activations,
        "head": whole + 2 * n * width,
        "directions": (at.batches + 1) * aligned * kind.uses_feedback,
        "designer": 4 * network.parameters,
    }
    return {part: 4.0 * figure for part, figure in numbers.items()}


def predicted(shape: Shape, at: Setting, arms: Sequence[str]) -> dict[str, Any]:
    """FLOPs and bytes of a step of each arm, and their ratios to the first arm's.

    Raises:
        UserError: an arm is not in :data:`KINDS`.
    """
    for arm in arms:
        if arm not in KINDS:
            message, accepted = "there is no model of what it costs", ", ".join(KINDS)
            raise user_error("--arms", message, value=arm, accepted=accepted)
    rows: dict[str, Any] = {}
    totals: dict[str, dict[str, float]] = {}
    ratios: dict[str, dict[str, float]] = {}
    for arm in arms:
        kind = KINDS[arm]
        rows[arm] = {"flops": flops(shape, at, kind), "bytes": resident(shape, at, kind)}
        totals[arm] = {what: sum(parts.values()) for what, parts in rows[arm].items()}
        first = totals[arms[0]]
        ratios[arm] = {what: total / first[what] for what, total in totals[arm].items()}
    setting = {"shape": asdict(shape), "setting": asdict(at)}
    return {**setting, "arms": rows, "totals": totals, "ratios": ratios}
