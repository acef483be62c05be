"""Recognises a finished run of a comparison by the script that made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpretrain.integrations.apart import trained_on
from vpretrain.integrations.transformers import SteeredTrainer
from vpretrain.language.data.rows import documents_hash
from vpretrain.system.errors import abbreviated, user_error

_NO_MATTER = (
    *("output_dir", "seed", "run_name", "project", "report_to", "trackio_", "disable_tqdm"),
    *("log_", "logging_", "include_", "skip_memory_metrics", "debug"),
    *("save_", "enable_jit_checkpoint", "resume_from_checkpoint", "restore_callback_states"),
    *("hub_", "push_to_hub", "do_train", "do_eval", "do_predict", "local_rank", "ddp_timeout"),
    *("per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only"),
    *("dataset_num_proc", "dataloader_num_workers", "dataloader_pin_memory"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor"),
)
"""Prefixes of arguments that do not affect a run's scores; the seed is in the name of the run's
file.
"""

_NOT_SETTINGS = (
    *("_name_or_path", "base_model_name_or_path", "transformers_version", "peft_version"),
    *("params", "model", "optimizer_dict"),
)
"""Keys that say where a model is from or what wrote it, and those under which an optimizer is given
the parameters themselves.
"""


def script_of(trainer: SteeredTrainer, held_out: str, weights: float) -> dict[str, str]:
    """Returns everything a run's scores depend on, as far as the trainer tells.

    An earlier run is reused only if all of it is equal.

    Args:
        trainer: before its training.
        held_out: digest of the rows that it is scored on.
        weights: sum of the initial weights.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapters = getattr(model, "peft_config", {})
    rows = trained_on(trainer.train_dataset, trainer.processing_class)
    collator = trainer.data_collator
    return {
        name: str(value)
        for name, value in trainer.args.to_dict().items()
        if not name.startswith(_NO_MATTER)
    } | {
        "world_size": str(trainer.args.world_size),
        "data_collator": getattr(collator, "__qualname__", type(collator).__qualname__),
        "steering": trainer.steering.model_dump_json(),
        "optimizer": _optimizer(trainer),
        "model.config": digest(_kept(model.config.to_dict())),
        "peft_config": _text(
            {name: _kept(adapter.to_dict()) for name, adapter in adapters.items()}
        ),
        "trained parameters": digest([n for n, p in model.named_parameters() if p.requires_grad]),
        "weights": f"{weights:.12g}",
        "train_dataset": "not known" if rows is None else documents_hash(rows),
        "feedback_dataset": documents_hash(trainer.feedback),
        "held_out": held_out,
    }


def check_same(path: Path, before: Any, script: Mapping[str, str]) -> None:
    """Rejects an earlier run of another script, or one that ``compare_arms`` did not write."""
    if not isinstance(before, dict):
        message = (
            "this run is not of compare_arms, as one of vpretrain compare; name another folder"
        )
        raise user_error(str(path), message)
    names = {**before, **script}
    if other := [name for name in names if before.get(name) != script.get(name)]:
        message = f"this run was made with another {abbreviated(other)}; "
        raise user_error(str(path), message + "name another folder, or remove it")


def digest(value: Any) -> str:
    """Returns a hash of nested lists and dictionaries."""
    return hashlib.sha256(_text(value).encode()).hexdigest()[:16]


def _text(value: Any) -> str:
    # The order of a set of strings differs between processes.
    return json.dumps(
        value, default=lambda each: sorted(map(str, each)) if isinstance(each, set) else str(each)
    )


def _kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}


def _optimizer(trainer: SteeredTrainer) -> str:
    """Returns class and settings of an optimizer of the script's own; "args.optim" without one."""
    if trainer.optimizer is not None:
        groups = [_kept(group) for group in trainer.optimizer.param_groups]
        return f"{type(trainer.optimizer).__qualname__} {_text(groups)}"
    if trainer.optimizer_cls_and_kwargs is not None:
        made_by, settings = trainer.optimizer_cls_and_kwargs
        return f"{made_by.__qualname__} {_text(_kept(settings))}"
    return "args.optim"
