"""Feedback on language: small sets of verified rows, and the downstream gradient of each kind of
signal (eq. 7).

Each kind is declared in a file of this folder (see ``signals``): ``likelihood`` (verified
solutions), ``rewards`` (sampled answers scored by a checker) and ``preferences`` (chosen over
rejected answers). ``tasks`` builds them from a recipe. Nothing here reaches the learner's
optimizer.
"""
