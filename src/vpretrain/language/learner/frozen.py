"""Other models beside the learner, which read its batches and are not trained."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from vpretrain.language.learner.causal import CausalLearner
from vpretrain.models.load_errors import explained
from vpretrain.models.loading import source
from vpretrain.system.errors import user_error


def frozen_learner(model: Any, beside: CausalLearner) -> CausalLearner:
    """A loaded model in evaluation mode, on the device and at the precision of the learner that it
    runs beside."""
    model = model.to(beside.device).eval().requires_grad_(False)
    aligned = dict(model.named_parameters())
    return CausalLearner(model, aligned, autocast=beside.autocast, packed=beside.packed)


def check_same_tokenizer(
    location: str, tokenizer: Any, where: str, message: str, accepted: str
) -> None:
    """Compares the tokenizer of another model with the learner's.

    Args:
        location: folder or hub id of the other model.
        tokenizer: the learner's.
        where: dotted recipe key that names the other model.
        message: what is wrong if they differ.
        accepted: what is accepted at ``where``: ``models``.

    Raises:
        UserError: they differ, or the other one cannot be read.
    """
    with explained(location, where, what="tokenizer"):
        name, options = source(location)
        other = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options).get_vocab()
    own = tokenizer.get_vocab()
    if unlike := [token for token in {*other, *own} if other.get(token) != own.get(token)]:
        raise user_error(
            where,
            message,
            value=location,
            accepted=f"{accepted} of the learner's tokenizer ({len(own)} tokens; that one has "
            f"{len(other)}, and {len(unlike)} differ, for example {min(unlike, key=str)!r})",
        )
