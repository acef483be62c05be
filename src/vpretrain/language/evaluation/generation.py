"""How answers are generated: not by the checkpoint's own settings, but for its end tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids of the tokens that end an answer, sorted: the tokenizer's end token and the checkpoint's,
    since many chat models end a turn otherwise than a text.

    Args:
        model: a ``transformers`` model.
        tokenizer: the model's tokenizer.
    """
    own = getattr(model.generation_config, "eos_token_id", None)  # of None if it cannot generate
    ends = own if isinstance(own, list) else [own]
    return sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})


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
    # Set explicitly for sampling: the default of transformers is top-k 50.
    whole = {"do_sample": True, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    model.generation_config = GenerationConfig(
        eos_token_id=end_tokens(model, tokenizer),
        bos_token_id=before.bos_token_id,
        pad_token_id=before.pad_token_id,
        **whole,
    )
    try:
        yield
    finally:
        model.generation_config = before
