"""decode(body, content_type), encode(prediction, content_type), and a function for each format."""

import csv
import io
from typing import Any

import numpy as np
from sagemaker_inference import content_types, decoder
from sagemaker_inference.encoder import encode

from sagemaker_containers.beta.framework.errors import ClientError
from serve.handlers.custom.faults import InvalidInput

__all__ = [
    "array_to_csv",
    "array_to_json",
    "array_to_npy",
    "csv_to_numpy",
    "decode",
    "encode",
    "json_to_numpy",
    "npy_to_numpy",
]
TEXTS = 1 << 28  # bytes of an array of texts, in which each cell has the width of the longest


def array_to_csv(array_like: Any) -> Any:
    return encode(array_like, content_types.CSV)


def array_to_json(array_like: Any) -> Any:
    return encode(array_like, content_types.JSON)


def array_to_npy(array_like: Any) -> Any:
    return encode(array_like, content_types.NPY)


def csv_to_numpy(string_like: str | bytes, dtype: Any = None) -> Any:
    """Numbers without dimensions of one, else texts if no `dtype` is asked for. Raises ClientError, a ValueError."""
    try:
        return decoder.decode(string_like, content_types.CSV).astype(dtype or np.float64)
    except InvalidInput as error:
        text = _texts(string_like) if dtype is None else None
        if text is None:
            raise ClientError(error.message) from error
        return text


def _texts(string_like: str | bytes) -> Any:
    """The cells as text; None for rows of different lengths, and for too many bytes."""
    text = string_like if isinstance(string_like, str) else string_like.decode()
    rows = list(csv.reader(io.StringIO(text), strict=True))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        return None
    width = max((len(cell) for row in rows for cell in row), default=0)
    if 4 * width * len(rows) * len(rows[0]) > TEXTS:
        return None
    return np.squeeze(np.array(rows, f"U{max(1, width)}"))


def json_to_numpy(string_like: str | bytes, dtype: Any = None) -> Any:
    found = decoder.decode(string_like, content_types.JSON)
    return found.astype(dtype) if dtype else found


def npy_to_numpy(npy_array: bytes) -> Any:
    return decoder.decode(npy_array, content_types.NPY)


def decode(obj: str | bytes, content_type: str) -> Any:
    """Raises UnsupportedFormatError; ValueError for an invalid body."""
    return csv_to_numpy(obj) if content_type == content_types.CSV else decoder.decode(obj, content_type)
