"""Arguments of a Trainer that cannot work with steering, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from vpretrain.integrations.steering import Steering
from vpretrain.system.errors import Problem


def problems_of(
    trainer: Any, steering: Steering, compute_loss: Callable[..., Any]
) -> Iterator[Problem]:
    """What is wrong with a Trainer that was just built.

    Args:
        trainer: a ``transformers`` Trainer.
        steering: of the same.
        compute_loss: the steered one, which a subclass must leave alone.
    """
    yield from _losses(trainer, compute_loss)
    yield from _machines(trainer)
    yield from _processes(trainer)
    if steering.alignment == "optimizer_aware":
        yield from _preconditioner(trainer)


def _losses(trainer: Any, compute_loss: Callable[..., Any]) -> Iterator[Problem]:
    """Whatever would make another loss than that of the designer's task."""
    args, config = trainer.args, getattr(trainer.model, "config", None)
    if args.label_smoothing_factor:
        message = (
            "the designer decides what each token's target is; smooth with the arm "
            "uniform_smoothing instead"
        )
        yield Problem("args.label_smoothing_factor", str(args.label_smoothing_factor), "0", message)
    if trainer.compute_loss_func is not None:
        message = (
            "the loss of the designer's task takes its place, so that it would never be "
            "called; leave it out"
        )
        yield Problem(
            "compute_loss_func",
            getattr(trainer.compute_loss_func, "__name__", "given"),
            "None",
            message,
        )
    if type(trainer).compute_loss is not compute_loss:
        message = (
            "a compute_loss of its own would go around the designer; take it out of the subclass"
        )
        yield Problem(
            type(trainer).__name__,
            "compute_loss",
            "subclasses with other methods, training_step say",
            message,
        )
    if (loss := getattr(args, "loss_type", "nll")) != "nll":
        yield Problem(
            "args.loss_type",
            loss,
            "nll",
            "the designer's task is a likelihood; leave this as it is",
        )
    if getattr(config, "output_router_logits", False):
        message = (
            "the steered loss has no auxiliary loss of the router; set this to False in "
            "model.config"
        )
        yield Problem(
            "model.config.output_router_logits",
            "True",
            "False (router_aux_loss_coef=0.0 under TRL)",
            message,
        )


def _machines(trainer: Any) -> Iterator[Problem]:
    """Ways of running that hide the model's parts, or whose precision is too narrow for a gradient
    without a scaler.
    """
    args = trainer.args
    if args.torch_compile:
        message = (
            "a compiled model runs without the hooks by which its blocks' inputs are read; "
            "leave it out"
        )
        if trainer.steering.estimator == "forward_mode":
            message = (
                "compiled code has no forward-mode derivative, and runs without the hooks "
                "of "
                "a steered pass; leave it out"
            )
        yield Problem("args.torch_compile", "True", "False", message)
    if args.fp16:
        message = (
            "gradients of the feedback would vanish in float16, which needs a loss scaler; "
            "take bf16"
        )
        yield Problem("args.fp16", "True", "bf16=True, or neither", message)
    if args.use_liger_kernel:
        message = (
            "these kernels replace the model's forward pass and have no second derivatives; "
            "leave them out"
        )
        yield Problem("args.use_liger_kernel", "True", "False", message)
    if getattr(args, "activation_offloading", False):
        message = (
            "the meta step differentiates inside the forward pass, where activations are "
            "not "
            "yet sent away"
        )
        yield Problem(
            "args.activation_offloading", "True", "False, or gradient_checkpointing=True", message
        )
    if args.n_gpu > 1:
        message = (
            "one process on several devices copies the model at every step; start one "
            "process a device"
        )
        yield Problem(
            "args", f"{args.n_gpu} devices", "accelerate launch, or CUDA_VISIBLE_DEVICES=0", message
        )
    if quantised := getattr(trainer.model, "quantization_method", None):
        message = (
            "the value of a task is taken in float32 through the blocks' weights, which are "
            "packed here"
        )
        yield Problem(
            "model",
            f"quantised by {quantised}",
            "weights in float32 or bfloat16, LoRA too",
            message,
        )
    whole = (
        "DDP, where every process holds the model whole: accelerate launch or torchrun, "
        "without a plugin"
    )
    if trainer.is_fsdp_enabled or getattr(trainer, "is_distributed_loading_by_transformers", False):
        message = "sharded parameters cannot be run again block by block"
        yield Problem("args.fsdp", str(args.fsdp or "sharded"), whole, message)
    if trainer.is_deepspeed_enabled:
        message = (
            "its engine keeps gradients and Adam's moments apart (and at stage 3 the "
            "weights), which a steered step reads"
        )
        yield Problem("args.deepspeed", str(args.deepspeed or "given"), whole, message)
    if getattr(trainer.accelerator, "parallelism_config", None) is not None:
        message = "tensor, context and sequence parallelism split what a steered pass reads whole"
        yield Problem("args.parallelism_config", "given", "None", message)


def _processes(trainer: Any) -> Iterator[Problem]:
    """Processes that were started together and could not speak to each other."""
    if not torch.distributed.is_initialized():
        return
    together, backend = torch.distributed.get_world_size(), torch.distributed.get_backend_config()
    if together != trainer.args.world_size:
        message = (
            f"{together} processes were started and each would train on its own; without an "
            "accelerator say use_cpu"
        )
        yield Problem(
            "args.world_size",
            str(trainer.args.world_size),
            "TrainingArguments(use_cpu=True, ...)",
            message,
        )
    if "cpu:" not in backend:
        message = (
            "processes tell each other figures that lie on the CPU; start the process group "
            "before the arguments are made"
        )
        yield Problem(
            "torch.distributed",
            backend,
            "init_process_group('cpu:gloo,cuda:nccl'), first of all",
            message,
        )


_ADAM = ("adamw_torch", "adamw_torch_fused")


def _preconditioner(trainer: Any) -> Iterator[Problem]:
    """``optimizer_aware`` reads Adam's second moments."""
    message = "alignment optimizer_aware reads the second moments of torch's Adam or AdamW"
    instead = "or Steering(alignment='dot')"
    optimizer, (made_by, _) = trainer.optimizer, trainer.optimizer_cls_and_kwargs or (None, None)
    adams = (torch.optim.Adam, torch.optim.AdamW)
    if optimizer is not None or made_by is not None:
        if not issubclass(made_by or type(optimizer), adams):
            name = (made_by or type(optimizer)).__name__
            yield Problem("optimizers", name, f"torch.optim.AdamW, {instead}", message)
    elif trainer.args.optim not in _ADAM:
        yield Problem(
            "args.optim", str(trainer.args.optim), f"{', '.join(_ADAM)}, {instead}", message
        )
