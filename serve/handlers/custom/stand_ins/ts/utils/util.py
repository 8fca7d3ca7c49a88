"""PredictionException(message, error_code): an error with the status of the reply."""

from mms.service import PredictionException

__all__ = ["PredictionException"]
