"""Trainer arguments that cannot be combined with steering, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vpretrain.integrations.steering import Steering
from vpretrain.system.errors import Problem

Refusal = tuple[object, str, object, str, str]
"""Whether it applies, the argument, its value, the accepted values, and the reason."""


def problems_of(
    trainer: Any, steering: Steering, compute_loss: Callable[..., Any]
) -> Iterator[Problem]:
    """Yields the problems of a Trainer that was just built.

    Args:
        trainer: a ``transformers`` Trainer.
        steering: its steering section.
        compute_loss: the steered method, which a subclass must not override.
    """
    refusals = [*_losses(trainer, compute_loss), *_machines(trainer), *_models(trainer)]
    for applies, where, value, accepted, message in [
        *refusals,
        *_sharding(trainer),
        *_processes(trainer),
    ]:
        if applies:
            yield Problem(where, str(value), accepted, message)
    if steering.designer.uses_feedback and steering.alignment == "optimizer_aware":
        yield from _preconditioner(trainer)


def _losses(trainer: Any, compute_loss: Callable[..., Any]) -> Iterator[Refusal]:
    """Arguments that would replace the loss of the designer's task."""
    args, config, own = trainer.args, getattr(trainer.model, "config", None), type(trainer)
    yield (
        args.label_smoothing_factor,
        "args.label_smoothing_factor",
        args.label_smoothing_factor,
        "0",
        "the designer decides what each token's target is; smooth with the arm uniform_smoothing "
        "instead",
    )
    yield (
        trainer.compute_loss_func is not None,
        "compute_loss_func",
        getattr(trainer.compute_loss_func, "__name__", "given"),
        "None",
        "the loss of the designer's task takes its place, so that it would never be called; leave "
        "it out",
    )
    yield (
        own.compute_loss is not compute_loss,
        own.__name__,
        "compute_loss",
        "subclasses with other methods, training_step say",
        "a compute_loss of its own would go around the designer; take it out of the subclass",
    )
    loss = getattr(args, "loss_type", "nll")
    message = "the designer's task is a likelihood; leave this as it is"
    yield loss != "nll", "args.loss_type", loss, "nll", message
    yield (
        getattr(config, "output_router_logits", False),
        "model.config.output_router_logits",
        True,
        "False (router_aux_loss_coef=0.0 under TRL)",
        "the steered loss has no auxiliary loss of the router; set this to False in model.config",
    )


def _machines(trainer: Any) -> Iterator[Refusal]:
    """Modes that hide the model's parts, or whose precision is too low for gradients without a loss
    scaler.
    """
    args, forward_mode = trainer.args, trainer.steering.estimator == "forward_mode"
    yield (
        args.torch_compile and forward_mode,
        "args.torch_compile",
        True,
        "False, or Steering(estimator='one_sided_difference')",
        "compiled code has no forward-mode derivative",
    )
    message = "gradients of the feedback vanish in float16, which needs a loss scaler; take bf16"
    # Also set by accelerate launch --mixed_precision, which args do not tell.
    fp16 = trainer.accelerator.mixed_precision == "fp16"
    where = "args.fp16" if args.fp16 else "ACCELERATE_MIXED_PRECISION"
    yield fp16, where, "fp16", "bf16 (bf16=True), or neither", message
    yield (
        args.use_liger_kernel,
        "args.use_liger_kernel",
        True,
        "False",
        "values are taken through the model's own layers, and its kernels were not tried with "
        "that; leave it out: predicted tokens alone are projected as it is",
    )
    yield (
        getattr(args, "activation_offloading", False),
        "args.activation_offloading",
        True,
        "False, or gradient_checkpointing=True",
        "the meta step differentiates inside the forward pass, before activations are sent away",
    )
    yield (
        args.n_gpu > 1,
        "args",
        f"{args.n_gpu} devices",
        "accelerate launch, or CUDA_VISIBLE_DEVICES=0",
        "one process on several devices copies the model at every step; start one process a device",
    )


def _models(trainer: Any) -> Iterator[Refusal]:
    """Models whose blocks cannot be run on their own."""
    devices = {str(device) for device in getattr(trainer.model, "hf_device_map", {}).values()}
    yield (
        len(devices) > 1,
        "model",
        f"device_map over {', '.join(sorted(devices))}",
        "a model on one device (without device_map), a process a device",
        "its parts are run on their own here, and gradients over them compared; load it whole",
    )
    attention = str(getattr(trainer.model.config, "_attn_implementation", None))
    yield (
        "flash" in attention and trainer.steering.designer.uses_feedback,
        "model",
        f"attn_implementation={attention}",
        "attn_implementation='sdpa'",
        "values are taken in float32 or by forward mode, and flash attention has kernels for "
        "neither; load the model with another one",
    )
    method = getattr(trainer.model, "quantization_method", None)
    yield (
        method,
        "model",
        f"quantised by {method}",
        "weights in float32 or bfloat16, LoRA too",
        "the value of a task is taken through the blocks' weights, which are packed here",
    )
    adapters = getattr(trainer.model, "peft_config", None) or {}
    prompts = [each for each in adapters.values() if getattr(each, "is_prompt_learning", False)]
    yield (
        prompts,
        "model",
        ", ".join(type(each).__name__ for each in prompts),
        "LoRA, or another adapter inside the blocks",
        "a learned prompt lies outside the blocks on whose parameters gradients are compared",
    )
    tied = getattr(trainer.model.config, "tie_word_embeddings", False)
    yield (
        tied and any(getattr(each, "trainable_token_indices", None) for each in adapters.values()),
        "model",
        "trainable_token_indices, tied embeddings",
        "modules_to_save=['embed_tokens'], or no new tokens",
        "the head is then a table with rows of the adapter's in it, which is not read here",
    )


def _sharding(trainer: Any) -> Iterator[Refusal]:
    """Ways of distributing a model in which no process holds it whole."""
    args = trainer.args
    whole = (
        "DDP, where every process holds the model whole (accelerate launch or torchrun, without a "
        "plugin); or learner.shard: true in a recipe, which shares out the blocks below S by FSDP2"
    )
    loaded = getattr(trainer, "is_distributed_loading_by_transformers", False)
    message = "S has to be whole in every process, and a plugin's shards of it are not"
    yield trainer.is_fsdp_enabled or loaded, "args.fsdp", args.fsdp or "sharded", whole, message
    yield (
        trainer.is_deepspeed_enabled,
        "args.deepspeed",
        args.deepspeed or "given",
        whole,
        "its engine keeps gradients and Adam's moments apart (and at stage 3 the weights), which a "
        "steered step reads",
    )
    parallelism = getattr(trainer.accelerator, "parallelism_config", None) is not None
    message = "tensor, context and sequence parallelism split what a steered pass reads whole"
    yield parallelism, "args.parallelism_config", "given", "None", message


def _processes(trainer: Any) -> Iterator[Refusal]:
    """Processes that were launched together, of which the arguments know nothing."""
    if not torch.distributed.is_initialized():
        return
    together = torch.distributed.get_world_size()
    yield (
        together != trainer.args.world_size,
        "args.world_size",
        trainer.args.world_size,
        "TrainingArguments(use_cpu=True, ...)",
        f"{together} processes were started and each would train on its own; without an "
        "accelerator say use_cpu",
    )


_ADAM = ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit")
_ADAM_8BIT = ("adamw_torch_8bit", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")
_OTHER_ADAMS = re.compile(r"(bitsandbytes|torchao)\..*\.(Paged)?AdamW?(8bit|32bit)?")
"""Their optimizer classes, with 8-bit moments or whole ones."""


def _preconditioner(trainer: Any) -> Iterator[Problem]:
    """Optimizers without second moments, which ``optimizer_aware`` reads."""
    optimizer, (made_by, _) = trainer.optimizer, trainer.optimizer_cls_and_kwargs or (None, None)
    adams = (torch.optim.Adam, torch.optim.AdamW)
    where, accepted = "args.optim", ", ".join(_ADAM + _ADAM_8BIT)
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    known = name in _ADAM + _ADAM_8BIT
    if optimizer is not None or made_by is not None:
        made = made_by or type(optimizer)
        where, name, accepted = "optimizers", made.__name__, "torch.optim.AdamW"
        known = issubclass(made, adams) or bool(
            _OTHER_ADAMS.fullmatch(f"{made.__module__}.{made.__qualname__}")
        )
    if not known:
        reason = _NO_PRECONDITIONER.get(name, "reads the second moments of Adam or AdamW")
        message = f"alignment optimizer_aware {reason}; any other alignment works with it"
        yield Problem(where, name, f"{accepted}, or Steering(alignment='dot')", message)


_NO_PRECONDITIONER = {
    "Muon": "weighs directions as the optimizer does, and a step of Muon is not linear in its "
    "gradient, so that no such weights exist"
}
