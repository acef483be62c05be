"""Feedback from labelled pictures: heads on frozen features, and the gradient through them."""
