"""Dimension(name, value): a label of a metric."""

from mms.metrics.dimension import Dimension

__all__ = ["Dimension"]
