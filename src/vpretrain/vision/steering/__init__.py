"""The designers of vision, the surfaces they act on, and the declarations of their arms.

An arm declared in any file of this folder is available to recipes."""
