"""Metrics of model code: see context.metrics."""
