"""decode(body, content_type) -> numpy array. Unlike the toolkit's it does not unpickle, and refuses text in a CSV."""

import re
from typing import Any

import numpy as np

from sagemaker_inference import content_types, errors
from serve.formats import values
from serve.handlers.custom.faults import InvalidInput, json_errors, value_errors

_WHOLE = re.compile(rb"[-+0-9,\s]*")


def decode(obj: str | bytes, content_type: str) -> Any:
    """Raises UnsupportedFormatError; ValueError (json.JSONDecodeError for JSON) for an invalid body."""
    body = obj.encode() if isinstance(obj, str) else bytes(obj)
    if content_type == content_types.JSON:
        with json_errors(body):
            data = values.read(body, content_type)
        return _array(data)
    if content_type not in (content_types.CSV, content_types.NPY, content_types.NPZ):
        raise errors.UnsupportedFormatError(content_type)
    with value_errors():
        found = values.read(body, content_type)
    if content_type != content_types.CSV:
        return found
    # As numpy's genfromtxt in the toolkit: without dimensions of one, and whole numbers as such.
    found = np.squeeze(found)
    whole = _WHOLE.fullmatch(body) and np.all(np.abs(found) < 2**53)  # a missing value is nan, which is not less
    return found.astype(np.int64) if whole else found


def _array(value: Any) -> Any:
    """Nested lists as an array: of numbers, or of objects if there is anything else among them."""
    found = np.array(value, object)  # an array of text would give each cell the width of the longest text
    kinds = {type(each) for each in found.ravel()}
    if list in kinds:
        raise InvalidInput("the JSON is not an array: it has lists of different lengths")
    return np.array(value) if kinds <= {int, float, bool} else found
