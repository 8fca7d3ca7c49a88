"""What a custom model reads and writes without input_fn or output_fn: JSON, CSV, text and npy."""

import csv
import io
from typing import Any

import msgspec
import numpy as np

from serve.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from serve.handlers.tabular import array

JSON, CSV, TEXT, NPY, STREAMED = (
    "application/json",
    "text/csv",
    "text/plain",
    "application/x-npy",
    "application/jsonlines",
)
WRITES = (JSON, CSV, TEXT, NPY)


def is_text(content_type: str) -> bool:
    return content_type.startswith("text/") or content_type in (JSON, STREAMED) or content_type.endswith("+json")


def decoded(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset)
    except (LookupError, ValueError) as error:
        raise BadRequest(f"the body is not text in charset {charset[:40]!r}: {error}") from error


def read(body: bytes, content_type: str, charset: str) -> Any:
    """JSON as objects, CSV as a float array of two dimensions, npy as an array, text as str, all else as bytes."""
    if content_type == STREAMED:  # each line will come as JSON by itself
        raise UnsupportedMediaType(f"{STREAMED} is not read as a whole", hint="send JSON, or give it an input_fn")
    if content_type == NPY:
        return array(body).copy()  # its own, so that it can be written to
    if content_type == JSON or content_type.endswith("+json"):
        try:
            return msgspec.json.decode(decoded(body, charset))
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
        except RecursionError as error:
            raise BadRequest("the JSON is nested too deeply") from error
    if content_type == CSV:
        lines = decoded(body, charset).splitlines()
        if not lines:
            raise BadRequest("there are no rows")
        try:
            return np.loadtxt(lines, delimiter=",", ndmin=2, comments=None)
        except ValueError as error:
            raise BadRequest(f"the CSV is not rows of numbers: {error}") from error
    return decoded(body, charset) if is_text(content_type) else body


def write(value: Any, media_type: str) -> bytes:
    if media_type == CSV:
        plain = _plain(value)
        if isinstance(plain, dict) or (isinstance(plain, list | tuple) and any(isinstance(row, dict) for row in plain)):
            raise NotAcceptable("the prediction is no table and cannot be written as CSV", hint=f"ask for {JSON}")
        rows = plain if isinstance(plain, list | tuple) else [plain]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            row if isinstance(row, list | tuple) else [row] for row in map(_plain, rows)
        )
        return text.getvalue().encode()
    if media_type == TEXT:
        return str(value).encode()
    if media_type == NPY:
        file = io.BytesIO()
        np.save(file, np.asarray(value), allow_pickle=False)
        return file.getvalue()
    return msgspec.json.encode(value, enc_hook=_plain)


def chunk(value: Any) -> bytes:
    """One chunk of a stream: bytes as they are, text encoded, anything else a line of JSON."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    return msgspec.json.encode(value, enc_hook=_plain) + b"\n"


def _plain(value: Any) -> Any:
    """Arrays, tensors and numpy's scalars as Python's own; what is no such thing as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if type(value).__module__ == "builtins":
        return value
    raise TypeError(f"{type(value).__name__} cannot be written")
