"""Recipes: their schema, YAML with places, overrides, and every problem said at once."""
