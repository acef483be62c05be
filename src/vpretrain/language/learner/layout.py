"""What training relies on in an architecture, tried on eight tokens before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vpretrain.language.learner.router import RouterLoss
from vpretrain.language.learner.suffix import Anatomy
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import Problem, UserError, user_error
from vpretrain.system.memory import out_of_memory

if TYPE_CHECKING:
    from vpretrain.language.learner.causal import CausalLearner

DECODERS = "decoder-only models laid out like Qwen, Llama, Gemma or GPT-2"
_BY_POSITION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that tell documents of a row apart by their positions."""


def carries_state(model: Any) -> bool:
    """Whether some layer carries a state along the row (linear attention, convolutions, Mamba).

    Such a layer knows nothing of position ids, so that documents of a packed row run into each
    other.
    """
    kinds = {*(getattr(model.config, "layer_types", None) or ())}
    return bool(model._is_stateful or kinds - _BY_POSITION)


def refusals(model: Any, *, packing: bool) -> list[Problem]:
    """What is wrong with an architecture and can be told without its weights.

    Args:
        model: may be on the meta device.
        packing: whether rows of the stream hold several documents.
    """
    problems: list[Problem] = []
    for ask in (Anatomy.of, lambda model: RouterLoss.of(model.config)):
        try:
            ask(model)
        except UserError as error:
            problems += error.problems
    if packing and carries_state(model):
        message = (
            "layers of this model carry a state along the row, so that a document would see those "
            "before it; give each document a row of its own"
        )
        accepted = f"false, for {type(model).__name__}"
        problems.append(Problem("data.packing", "true", accepted, message))
    return problems


@torch.no_grad()
def check_layout(learner: CausalLearner) -> None:
    """Tries what training relies on, so that an architecture that breaks it is refused and never
    mistrained.

    No token sees a later one, none sees another document of its row, and the parts give the logits
    of the whole. What is compared went through the same operations in the same shapes and dtype:
    rounding, which in bfloat16 moves a logit by several per cent on the way through thirty blocks,
    is then the same on both sides and never taken for a difference of architecture.

    Raises:
        UserError: one of these does not hold.
    """
    model, suffix, device = learner.model, learner.suffix, learner.device
    vocabulary = model.config.vocab_size
    ids = torch.arange(8, device=device)[None] % vocabulary
    # two documents of four tokens, or one of eight
    apart = torch.arange(8, device=device)[None] % (4 if learner.packed else 8)
    positions = {"position_ids": apart} if learner.packed else {}

    def logits(ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False, **positions).logits

    def changed(where: slice) -> Tensor:
        other = ids.clone()
        other[:, where] = (other[:, where] + 1) % vocabulary
        return logits(other)

    def refused(what: str, accepted: str) -> UserError:
        return user_error("learner.model", f"{type(model).__name__} {what}", accepted=accepted)

    with evaluating(model):
        try:
            whole = logits(ids)
        except TypeError:
            raise refused(
                "takes no position ids, by which packed documents are told apart; give each "
                "document a row of its own (data.packing: false)",
                DECODERS,
            ) from None
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            # sizes that can be built and do not go together: more key heads than heads, say
            message = str(error).splitlines()[0][:200]
            raise refused(
                f"cannot run: {message}", "a configuration whose sizes go together"
            ) from error
        with suffix.trace() as trace:
            learner.anatomy.backbone(input_ids=ids, use_cache=False, **positions)
        # Adapters are wider than the frozen weights around them; here they take the model's dtype.
        point = {name: p.detach().to(model.dtype) for name, p in learner.aligned.items()}
        parts = suffix.project(suffix.hidden(trace, point), point)
        later = changed(slice(7, 8))[:, :7]
        before = changed(slice(0, 4))[:, 4:]
    if not _close(whole[:, :7], later):
        raise refused(
            "lets tokens see later ones, so next-token prediction would teach it to copy", DECODERS
        )
    if learner.packed and not _close(whole[:, 4:], before):
        raise refused(
            "lets a token see other documents of its packed row; give each document a row of its "
            "own (data.packing: false)",
            "models that read position_ids apart, or data.packing: false",
        )
    if not _close(whole, parts):
        raise refused(
            "does more than blocks, final norm, head, scale and soft cap, so its parts do not give "
            "the logits of the whole",
            DECODERS,
        )


def _close(whole: Tensor, other: Tensor) -> bool:
    """Equal but for what kernels differ in."""
    tolerance = 2e-2 if whole.dtype.itemsize < 4 else 1e-3
    whole, other = whole.float(), other.float()
    return torch.allclose(whole, other, rtol=tolerance, atol=tolerance * float(whole.std()))
