"""How answers are generated: not by the checkpoint's own settings, but for its end tokens, and
within the model's positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import GenerationConfig

from vpretrain.system.errors import user_error


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


def check_positions(model: Any, prompt_tokens: int, new_tokens: int, where: str) -> None:
    """Rejects answers that reach beyond a model's table of positions, as GPT-2 has one. Models
    without such a table (rotary positions) can go on.

    Args:
        model: a ``transformers`` model.
        prompt_tokens: length of the longest prompt.
        new_tokens: maximum length of an answer.
        where: recipe key or argument of ``new_tokens``, for the message.

    Raises:
        UserError: the longest prompt with the longest answer has more tokens than the table.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    # The last token of an answer is not read again.
    if positions is None or prompt_tokens + new_tokens - 1 <= positions:
        return
    tokens = model.get_input_embeddings()
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not tokens)
    # OPT and its kin have two rows more than positions.
    if any(positions <= table.num_embeddings <= positions + 2 for table in tables):
        left = positions + 1 - prompt_tokens
        raise user_error(
            where,
            f"the model has {positions} positions, and the longest prompt takes {prompt_tokens}",
            value=new_tokens,
            accepted=f"1 to {left}" if left > 0 else "none: leave out the longest prompts",
        )


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
