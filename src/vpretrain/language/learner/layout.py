"""Checks of an architecture before training: what training relies on, tested on eight tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vpretrain.language.learner.router import RouterLoss
from vpretrain.language.learner.suffix import DECODERS, Anatomy
from vpretrain.system.contexts import evaluating
from vpretrain.system.errors import Problem, UserError, user_error
from vpretrain.system.memory import out_of_memory

if TYPE_CHECKING:
    from vpretrain.language.learner.causal import CausalLearner

_BY_POSITION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that separate the documents of a row by position ids."""

# A trainer has no such key: it is told to take a recipe.
_UNPACKED = "a recipe with data.packing: false gives each document a row of its own"


def carries_state(model: Any) -> bool:
    """Whether a layer carries a state along the row (linear attention, convolutions, Mamba), so
    that documents of a packed row influence each other."""
    kinds = {*(getattr(model.config, "layer_types", None) or ())}
    return bool(model._is_stateful or kinds - _BY_POSITION)


def refusals(model: Any, *, packing: bool) -> list[Problem]:
    """Problems of a model's architecture; the model may be on the meta device. ``packing`` says
    whether rows of the stream hold several documents."""
    problems: list[Problem] = []
    for ask in (Anatomy.of, lambda model: RouterLoss.of(model.config)):
        try:
            ask(model)
        except UserError as error:
            problems += error.problems
    if packing and carries_state(model):
        message = "layers of this model carry a state along the row, so that a document would see "
        message += "those before it; give each document a row of its own"
        accepted = f"false, for {type(model).__name__}"
        problems.append(Problem("data.packing", "true", accepted, message))
    return problems


class _Trial:
    """A row of eight tokens: two packed documents of four, or one document of eight."""

    def __init__(self, learner: CausalLearner) -> None:
        self.learner, self.model = learner, learner.model
        tokens = torch.arange(8, device=learner.device)[None]
        self.ids = tokens % self.model.config.vocab_size
        self.positions = {"position_ids": tokens % 4} if learner.packed else {}

    def logits(self, changed: slice = slice(0)) -> Tensor:
        """Logits ``[1, 8, V]`` of the whole model, with the tokens in ``changed`` replaced."""
        ids = self.ids.clone()
        ids[:, changed] = (ids[:, changed] + 1) % self.model.config.vocab_size
        return self._output(self.model, ids).logits

    def _output(self, module: nn.Module, ids: Tensor) -> Any:
        """Output of the model or its backbone, with all weights in the model's dtype: that of
        adapters is wider than that of their frozen base."""
        dtype, given = self.model.dtype, {"input_ids": ids, "use_cache": False, **self.positions}
        weights = {
            name: p.to(dtype)
            for name, p in module.named_parameters()
            if p.is_floating_point() and p.dtype != dtype
        }
        return functional_call(module, weights, (), given, tie_weights=False)

    def whole(self) -> Tensor:
        try:
            return self.logits()
        except TypeError:
            what = "takes no position ids, by which packed documents are told apart"
            raise self.refused(f"{what}; {_UNPACKED}") from None
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            # Sizes that can be built but are inconsistent, such as more key heads than heads.
            what = f"cannot run: {str(error).splitlines()[0][:200]}"
            raise self.refused(what, "a configuration whose sizes go together") from error

    def parts(self) -> Tensor:
        """Logits ``[1, 8, V]`` from the backbone's parts, run one after the other."""
        suffix = self.learner.suffix
        with suffix.trace() as trace:
            self._output(self.learner.anatomy.backbone, self.ids)
        dtype, aligned = self.model.dtype, self.learner.aligned
        point = {name: p.detach().to(dtype) for name, p in aligned.items()}
        return suffix.project(suffix.hidden(trace, point), point)

    def refused(self, what: str, accepted: str = DECODERS) -> UserError:
        message = f"{type(self.model).__name__} {what}"
        return user_error("learner.model", message, accepted=accepted)


@torch.no_grad()
def check_layout(learner: CausalLearner) -> None:
    """Checks what training relies on, so that an unsuitable architecture is refused rather than
    trained wrongly.

    No token may see a later one or another document of its row, and the parts have to give the
    logits of the whole model. Both sides of each comparison run the same operations in the same
    shapes and dtype: rounding, which in bfloat16 changes a logit by several per cent over thirty
    blocks, is then the same on both and not mistaken for a difference of architecture.

    Raises:
        UserError: one of these does not hold.
    """
    trial = _Trial(learner)
    with evaluating(learner.model):
        whole, parts = trial.whole(), trial.parts()
        later = trial.logits(slice(7, 8))[:, :7]
        before = trial.logits(slice(0, 4))[:, 4:]
    if not _close(whole[:, :7], later):
        what = "lets tokens see later ones, so next-token prediction would teach it to copy"
        raise trial.refused(what)
    if learner.packed and not _close(whole[:, 4:], before):
        what = f"lets a token see other documents of its packed row; {_UNPACKED}"
        accepted = "models that read position_ids apart, or a recipe with data.packing: false"
        raise trial.refused(what, accepted)
    if not _close(whole, parts):
        what = "does more than blocks, final norm, head, scale and soft cap, so its parts do not"
        raise trial.refused(f"{what} give the logits of the whole")


def _close(whole: Tensor, other: Tensor) -> bool:
    """Whether two tensors of logits are equal up to differences between kernels."""
    tolerance = 2e-2 if whole.dtype.itemsize < 4 else 1e-3
    whole, other = whole.float(), other.float()
    return torch.allclose(whole, other, rtol=tolerance, atol=tolerance * float(whole.std()))
