"""Recipes: from a brief to a delivered photograph. Drives the engine, knows no tensors."""
