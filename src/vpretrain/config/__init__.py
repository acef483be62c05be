"""Recipes: schema, YAML with the place of every key, overrides, and reports of problems."""
