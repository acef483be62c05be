"""Steering for TRL's ``SFTTrainer``; needs the extra ``posttrain``."""

from __future__ import annotations

from importlib.util import find_spec

from vpretrain.integrations.transformers import STEERING_ARMS, SteeredTrainer, Steering
from vpretrain.system.errors import user_error

try:
    from trl import SFTTrainer
except ImportError as error:
    where, spec = "vpretrain.integrations.trl", find_spec("trl")
    if spec is not None and spec.submodule_search_locations is None:
        message = "this file has the name of the library TRL and hides it; rename it"
        accepted = "names other than trl.py"
        raise user_error(where, message, value=str(spec.origin), accepted=accepted) from None
    message = f"this needs TRL ({error}); install the extra"
    raise user_error(where, message, accepted="pip install 'vpretrain[posttrain]'") from None

__all__ = ["STEERING_ARMS", "SteeredSFTTrainer", "Steering"]


class SteeredSFTTrainer(SteeredTrainer, SFTTrainer):
    """An ``SFTTrainer`` whose batches are steered.

    It takes the arguments of ``SFTTrainer`` and those of :class:`SteeredTrainer`.

    TRL prepares ``train_dataset`` (chat templates, packing, ``assistant_only_loss``). Feedback rows
    are read as by :class:`SteeredTrainer`, whatever the format of the training set. Token accuracy
    and entropy are logged in evaluation only, because a steered pass does not compute logits of
    tokens that are not predicted.
    """
