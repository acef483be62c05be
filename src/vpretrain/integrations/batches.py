"""Converts batches from data collators of ``transformers`` or TRL to the core's batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vpretrain.language.data.batch import TokenBatch
from vpretrain.language.data.rows import Document
from vpretrain.language.data.token_columns import IGNORED
from vpretrain.system.errors import user_error

OTHER_LABELS = (
    "labels are read only for where they are not -100, as the targets are the input's own next "
    "tokens: other targets (shifted labels, corrupted inputs, masked language modelling) cannot be "
    "steered"
)

_OTHER_MARKS = {"cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"}
"""Inputs by which some attention kernels tell packed documents apart."""


def token_batch(inputs: Mapping[str, Any]) -> TokenBatch:
    """Converts a collated batch: padding moves to the end of rows, positions mark the documents.

    Args:
        inputs: ``input_ids`` and ``labels``, each ``[B, T]`` int64, labels aligned with their own
            tokens (not shifted) and :data:`IGNORED` where nothing is predicted; ``attention_mask``
            ``[B, T]``, 0 on padding, which may be on either side of a row; ``position_ids`` ``[B,
            T]`` of packed rows, where a document begins wherever they do not increase by one.
            Without a mask nothing is padding, and without positions a row is one document.

    Returns:
        The same rows; a document's first token is never predicted. Documents have no ids of their
        own.

    Raises:
        UserError: ids or labels are missing, one of the tensors has another shape, a label is
            another token than the one at its place, or packed documents come without positions.
    """
    ids, labels = (_rows(inputs, name) for name in ("input_ids", "labels"))
    mask = torch.ones_like(ids)
    if "attention_mask" in inputs:
        mask = _rows(inputs, "attention_mask", ids.shape)
    if "position_ids" not in inputs:
        _check_unmarked(inputs, mask)
    # A stable sort moves padding to the end of the row and keeps the order of the tokens.
    order = (mask == 0).to(torch.uint8).argsort(dim=1, stable=True)
    ids, labels, real = (tensor.gather(1, order) for tensor in (ids, labels, mask != 0))
    flat = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    starts = flat == 0
    if "position_ids" in inputs:
        positions = _rows(inputs, "position_ids", ids.shape).gather(1, order)
        starts = starts | ((positions.diff(dim=1, prepend=positions[:, :1] - 1) != 1) & real)
    # Positions continue through the padding, as in the core's padded rows: to the model it belongs
    # to the last document.
    positions = flat - torch.where(starts, flat, 0).cummax(dim=1).values
    number = starts.flatten().cumsum(0).view_as(ids) - 1
    count = int(starts.sum())
    predicted = (labels != IGNORED) & real & ~starts
    if bool((predicted & (labels != ids)).any()):
        raise user_error(
            "data_collator: labels",
            OTHER_LABELS,
            value="labels that differ from input_ids",
            accepted=f"labels equal to input_ids, or {IGNORED}; mlm=False",
        )
    return TokenBatch(
        input_ids=ids,
        predicted=predicted,
        position_ids=positions,
        document=torch.where(real, number, -1),
        documents=tuple(
            Document((), (), f"train_dataset:{place}", "train_dataset") for place in range(count)
        ),
    )


def _check_unmarked(inputs: Mapping[str, Any], mask: Tensor) -> None:
    """Rejects documents that are packed into a row and told apart by something else than
    positions."""
    marks = inputs.keys() & _OTHER_MARKS
    if bool((mask > 1).any()):
        marks |= {"attention_mask that numbers documents"}
    if marks:
        raise user_error(
            "data_collator: position_ids",
            "packed documents are told apart by position_ids alone; let the collator return them",
            value=", ".join(sorted(marks)),
            accepted="DataCollatorWithFlattening(return_position_ids=True, ...)",
        )


def _rows(inputs: Mapping[str, Any], name: str, like: torch.Size | None = None) -> Tensor:
    value = inputs.get(name)
    shape = tuple(like) if like is not None else "[rows, tokens]"
    if isinstance(value, Tensor) and value.dim() == 2 and (like is None or value.shape == like):
        return value
    raise user_error(
        f"data_collator: {name}",
        "a steered step needs this in every batch: pass data_collator="
        "DataCollatorForLanguageModeling(tokenizer, mlm=False), or one of your own that makes it",
        value=f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"{', '.join(inputs) or 'nothing'}, and no {name}",
        accepted=f"a tensor of shape {shape}"
        + (", -100 where nothing is predicted" if name == "labels" else ""),
    )
