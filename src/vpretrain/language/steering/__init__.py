"""Designers of the next-token task, their rules, and the declarations of their arms.

Every arm declared in a file of this folder is available in recipes.
"""
