"""A tiny random model, word problems as another trainer's rows, and arguments that write and send
nothing by themselves.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from vpretrain.language.data import word_problems
from vpretrain.language.learner import predictions

TOKENIZER = word_problems.tokenizer()
SIZES = dict(
    vocab_size=len(TOKENIZER),
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    initializer_range=0.1,
)


def tiny(kind="llama", **more):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | more))


def arguments(folder, base=TrainingArguments, **more):
    fixed = dict(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        seed=0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return base(**fixed | more)


@pytest.fixture(params=["whole logits", "chunks"])
def head(request, monkeypatch):
    """Both ways over the head, whatever the size of the vocabulary."""
    whole = request.param == "whole logits"
    monkeypatch.setattr(predictions, "WHOLE_LOGITS", 2**40 if whole else 0)
    return request.param


@pytest.fixture(scope="session")
def feedback():
    """Verified rows, prompts with solutions."""
    rows = word_problems.problems("feedback", 40, seed=0)
    return [{"prompt": row["problem"], "solution": row["solution"]} for row in rows]


@pytest.fixture(scope="session")
def stream():
    """The unlabeled rows, tokenised as a user of the Trainer does it: no labels, no padding."""
    rows = word_problems.problems("stream", 60, seed=0)
    texts = [f"{row['problem']} {row['solution']} <eos>" for row in rows]
    return [{"input_ids": ids} for ids in TOKENIZER(texts)["input_ids"]]
