"""Foundations of all other packages: errors for users, processes, random streams, timing.

Imports torch, but no other package of vpretrain.
"""
