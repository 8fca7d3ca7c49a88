"""Errors of model code, with the status of the reply."""

from sagemaker_inference import errors
from sagemaker_inference.errors import UnsupportedFormatError

__all__ = ["ClientError", "UnsupportedFormatError"]


class ClientError(errors.ClientError, ValueError):
    """Also a ValueError, as the errors of other decoders."""
