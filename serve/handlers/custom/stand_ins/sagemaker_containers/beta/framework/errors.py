"""Errors of model code, with the status of the reply."""

from sagemaker_inference.errors import ClientError, UnsupportedFormatError

__all__ = ["ClientError", "UnsupportedFormatError"]
