"""The baseline against the Hugging Face Trainer: the same batches, seed, AdamW and schedule give
the same losses.
"""

import copy
import itertools

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from tests.run.test_train import tiny_recipe
from vpretrain.language import Language
from vpretrain.run.run import Run
from vpretrain.run.train import train

STEPS, WARMUP = 50, 5
QWEN2 = (
    "learner.config={model_type: qwen2, vocab_size: 96, hidden_size: 24, intermediate_size: "
    "32, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 128, "
    "tie_word_embeddings: true}"
)


class Windows(IterableDataset):
    """Packed windows in the order of the batches: labels are -100 wherever nothing is predicted."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for batch in self.batches:
            labels = torch.where(batch.predicted, batch.input_ids, -100)
            for ids, places, targets in zip(
                batch.input_ids, batch.position_ids, labels, strict=True
            ):
                yield {"input_ids": ids, "position_ids": places, "labels": targets}


class Listening(Trainer):
    """The Trainer as it is, with its losses noted before they are rounded for the log."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
        return loss


def test_onehot_follows_the_trainer(tmp_path):
    recipe = tiny_recipe(
        "arm=onehot",
        QWEN2,
        "learner.learning_rate=3e-3",
        f"learner.warmup_fraction={WARMUP / STEPS}",
        "learner.final_fraction=0",
        "learner.clip_norm=0.5",
        "learner.betas=[0.9, 0.98]",
        "value.settle_steps=0",
        f"budget.steps={STEPS}",
    )
    materials = Language().load(recipe)
    parts = Language().build(recipe, materials)
    model = copy.deepcopy(parts.learner.model)
    model.config.use_cache = (
        False  # with a cache transformers would take a packed window for one document
    )
    batches = list(itertools.islice(Language().build(recipe, materials).stream, STEPS))

    trainer = Listening(
        model,
        TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=recipe.data.batch_size,
            learning_rate=3e-3,
            adam_beta1=0.9,
            adam_beta2=0.98,
            adam_epsilon=1e-8,
            weight_decay=0.0,
            max_grad_norm=0.5,
            lr_scheduler_type="cosine",
            warmup_steps=WARMUP,
            seed=recipe.seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=Windows(batches),
    )
    trainer.losses = []
    trainer.train()

    result = train(Run(recipe, parts, step0={}))
    mine = torch.tensor([record["loss"] for record in result.history])
    its = torch.tensor(trainer.losses)
    assert len(its) == STEPS and float(its[:5].mean() - its[-5:].mean()) > 0.5  # it does train
    assert float((mine - its).abs().max()) <= 1e-5
    for (name, ours), theirs in zip(
        parts.learner.model.named_parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-3, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}"
        )
