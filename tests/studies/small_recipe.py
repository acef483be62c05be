"""The language demo's recipe at a size that a probe takes in seconds."""

from vpretrain.config import recipe as recipes
from vpretrain.run.modalities import SCHEMAS

TINY = [
    "learner.model=null",
    "learner.prepare=null",
    "learner.config={model_type: llama, vocab_size: 96, hidden_size: 24, intermediate_size: "
    "32, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128, "
    "tie_word_embeddings: false, "
    "attention_dropout: 0.3}",
    "learner.aligned_blocks=1",
    "data.batch_size=4",
    "data.stream.0.rows.rows=200",
    "data.stream.1.rows.rows=200",
    "data.feedback.rows.rows=64",
    "data.feedback.batch_size=16",
    "data.evaluation.test.rows=40",
    "evaluate.new_tokens=4",
]


def tiny_recipe(*overrides):
    return recipes.load("demo-language", [*TINY, "arm=onehot", *overrides], schemas=SCHEMAS)
