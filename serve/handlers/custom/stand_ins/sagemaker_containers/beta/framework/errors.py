"""Errors that model code raises, each with the status of its answer."""

from sagemaker_inference.errors import ClientError, UnsupportedFormatError

__all__ = ["ClientError", "UnsupportedFormatError"]
