"""I-JEPA: context encoder, target encoder, predictor and block masks."""
