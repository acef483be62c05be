"""The V-pretraining algorithm: roles, value estimators, designers, feedback and one training step.

Independent of recipes, files, commands and modalities.
"""
