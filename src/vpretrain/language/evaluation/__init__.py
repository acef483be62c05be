"""Benchmarks: pinned prompts, answers found in what a model wrote, scores with standard errors; run
by lm-eval.

lm-eval (the ``eval`` extra) gives the model's wrapper, batches, filters and standard errors; tasks,
prompts and rules are our own and versioned (:mod:`~vpretrain.language.evaluation.benchmarks`),
since its own read the hub and change over time.
"""
