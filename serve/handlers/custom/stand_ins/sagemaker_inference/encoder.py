"""encode(prediction, content_type) -> str for JSON and CSV, bytes for npy."""

from typing import Any

from sagemaker_inference import content_types, errors
from serve.formats import values
from serve.handlers.custom.faults import value_errors

SUPPORTED_CONTENT_TYPES = {content_types.JSON, content_types.CSV, content_types.NPY}


def encode(array_like: Any, content_type: str) -> str | bytes:
    """Raises UnsupportedFormatError; ValueError or TypeError for a value that the type cannot hold."""
    if content_type not in SUPPORTED_CONTENT_TYPES:
        raise errors.UnsupportedFormatError(content_type)
    with value_errors():
        body = values.write(array_like, content_type)
    return body if content_type == content_types.NPY else body.decode()
