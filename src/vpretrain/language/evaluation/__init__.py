"""Benchmarks run by lm-eval: pinned prompts, answers extracted from completions, scores with
standard errors.

lm-eval (the ``eval`` extra) provides the model wrapper, batching, filters and standard errors.
Tasks, prompts and extraction are defined and versioned here
(:mod:`~vpretrain.language.evaluation.benchmarks`), since lm-eval's own tasks read the hub and
change over time.
"""
