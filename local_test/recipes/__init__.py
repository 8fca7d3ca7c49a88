"""Recipes of the sample models, for local_test.make_models."""
