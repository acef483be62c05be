"""What frozen features are good for: probes and retrieval."""
