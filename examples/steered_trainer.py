"""Continued pretraining with the Trainer, steered by 64 verified sums; give it a folder or none."""

import sys

from transformers import AutoModelForCausalLM, LlamaConfig, TrainingArguments
from transformers import DataCollatorForLanguageModeling as Collator

from vpretrain.integrations.transformers import SteeredTrainer, Steering
from vpretrain.language.data import word_problems

tokenizer = word_problems.tokenizer()
# many answers of the stream forget the carry
stream = word_problems.problems("stream", 400, seed=0, noise_share=0.5)
texts = [f"{row['problem']} {row['solution']} {tokenizer.eos_token}" for row in stream]
verified = word_problems.problems("feedback", 64, seed=0)
rows = [{"prompt": row["problem"], "solution": row["solution"]} for row in verified]
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
folder = sys.argv[1] if len(sys.argv) > 1 else "steered"
often = dict(max_steps=40, logging_steps=10, save_steps=20, report_to="none")
trainer = SteeredTrainer(
    AutoModelForCausalLM.from_config(config),  # or any decoder-only model, with LoRA or without
    TrainingArguments(folder, per_device_train_batch_size=8, learning_rate=3e-3, **often),
    Collator(tokenizer, mlm=False),
    [{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]],
    processing_class=tokenizer,
    feedback_dataset=rows,
    steering=Steering(arm="document_weights", meta_period=4),
)
trainer.train()
