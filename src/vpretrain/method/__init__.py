"""V-pretraining itself: roles, value, the three estimators, designers, feedback, one step. Knows no
recipe, file, command or modality.
"""
