"""decode(body, content_type) -> numpy array. Unlike the toolkit's it does not unpickle, and refuses text in a CSV."""

from typing import Any

from sagemaker_inference import content_types, errors
from serve.formats import values


def decode(obj: str | bytes, content_type: str) -> Any:
    body = obj.encode() if isinstance(obj, str) else obj
    if content_type not in (content_types.JSON, content_types.CSV, content_types.NPY, content_types.NPZ):
        raise errors.UnsupportedFormatError(content_type)
    data = values.read(body, content_type)
    return values.values(data) if content_type == content_types.JSON else data
