"""The generation settings of evaluation, which are not those of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig


@contextmanager
def own_generation(model: Any, tokenizer: Any, *, temperature: float = 0.0) -> Iterator[None]:
    """Sets the checkpoint's generation settings aside but for its special tokens: a repetition
    penalty, for example, would change greedy answers too.

    Args:
        model: a ``transformers`` model that can generate.
        tokenizer: the model's tokenizer, whose end token ends answers too.
        temperature: 0 is greedy; above 0, the full distribution is sampled.
    """
    before = model.generation_config
    ends = before.eos_token_id if isinstance(before.eos_token_id, list) else [before.eos_token_id]
    ends = sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})
    # Set explicitly for sampling: the default of transformers is top-k 50.
    whole = {"do_sample": True, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    model.generation_config = GenerationConfig(
        eos_token_id=ends,
        bos_token_id=before.bos_token_id,
        pad_token_id=before.pad_token_id,
        **whole,
    )
    try:
        yield
    finally:
        model.generation_config = before
