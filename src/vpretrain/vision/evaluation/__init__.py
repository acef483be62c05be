"""Evaluation of frozen features: probes and retrieval."""
