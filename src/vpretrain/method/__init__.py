"""V-pretraining itself: roles, value, its estimators, designers, feedback, one step. Knows no
recipe, file, command or modality.
"""
