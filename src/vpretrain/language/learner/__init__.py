"""A causal language model as the learner: loading, the one-pass head, the suffix with S."""
