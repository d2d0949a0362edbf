"""Recipes: what is done to make a photograph, in which order, as data; `step` is the contract."""
