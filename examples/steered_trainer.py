"""Continued pretraining with the Trainer, steered by 64 verified word problems: python
examples/steered_trainer.py [FOLDER].
"""

import sys

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    TrainingArguments,
)

from vpretrain.integrations.transformers import SteeredTrainer, Steering
from vpretrain.language.data import word_problems

tokenizer = word_problems.tokenizer()
stream = word_problems.problems(
    "stream", 400, seed=0, noise_share=0.5
)  # many of its answers forget the carry
texts = [f"{row['problem']} {row['solution']} {tokenizer.eos_token}" for row in stream]
verified = word_problems.problems("feedback", 64, seed=0)

sizes = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)
config = AutoConfig.for_model(
    "llama", vocab_size=len(tokenizer), max_position_embeddings=128, **sizes
)
trainer = SteeredTrainer(
    AutoModelForCausalLM.from_config(
        config
    ),  # or any decoder-only model, or one with LoRA adapters
    TrainingArguments(
        sys.argv[1] if len(sys.argv) > 1 else "steered",
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        logging_steps=10,
        save_steps=20,
        report_to="none",
    ),
    DataCollatorForLanguageModeling(tokenizer, mlm=False),
    [{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]],
    processing_class=tokenizer,
    feedback_dataset=[{"prompt": row["problem"], "solution": row["solution"]} for row in verified],
    steering=Steering(arm="token_weights", meta_period=4),
)
trainer.train()
