"""A causal language model as the learner: loading, the head in one pass, the suffix that
holds S.
"""
