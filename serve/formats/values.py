"""What arrays and plain values are read from and written to: JSON, CSV, text, npy, npz.

Nothing here unpickles, and nothing takes much more memory than the body has bytes, whatever a header promises.
"""

import csv
import io
import math
from array import array as flat
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import scipy.sparse

from serve.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from serve.formats import npy
from serve.formats.npy import array

JSON, CSV, TEXT, NPY, NPZ, STREAMED = (
    "application/json",
    "text/csv",
    "text/plain",
    "application/x-npy",
    "application/x-npz",
    "application/jsonlines",
)
WRITES = (JSON, CSV, TEXT, NPY)

Array = npt.NDArray[Any]


def is_text(content_type: str) -> bool:
    return content_type.startswith("text/") or is_json(content_type) or content_type == STREAMED


def is_json(content_type: str) -> bool:
    return content_type == JSON or content_type.endswith("+json")


def decoded(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset)
    except (LookupError, ValueError) as error:
        raise BadRequest(f"the body is not text in charset {charset[:40]!r}: {error}") from error


def read(body: bytes, content_type: str, charset: str = "utf-8") -> Any:
    """JSON as objects, CSV as a float array of two dimensions, npy as an array, text as str, all else as bytes.

    An npz is a scipy matrix if it is one, else a dictionary of arrays.
    """
    if content_type == STREAMED:  # each line will come as JSON by itself
        raise UnsupportedMediaType(f"{STREAMED} is not read as a whole", hint="send JSON, or give it an input_fn")
    if content_type == NPY:
        return array(body).copy()  # its own, so that it can be written to
    if content_type == NPZ:
        return npy.read(body)
    if is_json(content_type):
        return json(decoded(body, charset))
    if content_type == CSV:
        return table(decoded(body, charset))
    return decoded(body, charset) if is_text(content_type) else body


def json(text: str | bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise BadRequest("the JSON is nested too deeply") from error


def table(text: str) -> Array:
    """Rows of numbers with commas between them, float64; an empty cell is nan."""
    lines = text.removeprefix("\ufeff").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise BadRequest("there are no rows")
    try:
        if all(lines):  # loadtxt passes over empty lines
            return np.loadtxt(lines, delimiter=",", ndmin=2, comments=None)
    except ValueError:
        pass
    return _table_cell_by_cell(lines)


def _table_cell_by_cell(lines: list[str]) -> Array:
    """The slow way, which takes empty cells and quotes, and knows where it is."""
    # Not a table made for as many cells as row 1 promises: a wide line and many short ones would be terabytes.
    cells = flat("d")
    width = 0
    try:
        for number, row in enumerate(csv.reader(lines), 1):
            width = width or len(row) or 1
            if (len(row) or 1) != width:
                raise BadRequest(f"row {number} has {len(row) or 1} columns; row 1 has {width}")
            for column, cell in enumerate(row or [""], 1):
                cells.append(_cell(cell, number, column))
    except csv.Error as error:
        raise BadRequest(f"the body is not CSV: {error}") from error
    return np.frombuffer(cells).reshape(-1, width)


def _cell(text: str, row: int, column: int) -> float:
    try:
        return float(text) if text.strip() else math.nan
    except ValueError:
        raise BadRequest(
            f"row {row}, column {column}: {text[:60]!r} is not a number",
            hint="send rows of numbers, without a header line" if row == 1 else "",
        ) from None


def numbers(value: Any, dtype: npt.DTypeLike, what: str = "the input") -> Array:
    """Nested lists from JSON as an array of this type. What does not fit it (ragged rows, fractions) is a 400."""
    wanted = np.dtype(dtype)
    try:
        if wanted.kind in "iu":
            found = np.array(value, wanted)
            if not np.array_equal(found, np.array(value, np.float64)):  # numpy would cut 1.5 to 1
                raise ValueError("fractions, where whole numbers are needed")
        elif wanted.kind == "b":
            found = np.array(value)
            if found.dtype.kind != "b":
                raise ValueError("true or false is needed")
        else:
            with np.errstate(over="ignore"):
                found = np.array(value, np.float64).astype(wanted)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest(f"{what} is not an array of {wanted}: {str(error)[:200]}") from error
    return found


def values(value: Any) -> Array:
    """Nested lists from JSON as an array of the type they have: numbers, or objects where there is text among them."""
    try:
        found = np.array(value, object)  # of text numpy would give every cell the width of the widest
        kinds = {type(each) for each in found.ravel()}  # `flat` ends at 32 dimensions
        if kinds & {list, dict}:
            raise ValueError("the lists in it have different lengths, or there are objects in it")
        return np.array(value) if kinds <= {int, float, bool} else found
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"the JSON is not an array: {str(error)[:200]}") from error


def write(value: Any, media_type: str) -> bytes:
    if media_type == CSV:
        return _csv(_plain(value))
    if media_type == TEXT:
        return str(value).encode()
    if media_type == NPY:
        file = io.BytesIO()
        if hasattr(value, "detach"):  # a tensor, of which numpy would not take all
            value = value.detach().cpu().numpy()
        try:
            np.save(file, np.asarray(value), allow_pickle=False)
        except ValueError as error:
            raise NotAcceptable(f"the prediction cannot be written as npy: {error}", hint=f"ask for {JSON}") from error
        return file.getvalue()
    return msgspec.json.encode(value, enc_hook=_plain)


def _csv(plain: Any) -> bytes:
    """Rows, or under a header line objects with equal keys, as pipelines return them."""
    text = io.StringIO()
    rows = plain if isinstance(plain, list | tuple) else [plain]
    objects = [row for row in rows if isinstance(row, dict)]
    if objects and (objects[0] is plain or any(row.keys() != objects[0].keys() for row in objects) or rows != objects):
        raise NotAcceptable("the prediction is no table and cannot be written as CSV", hint=f"ask for {JSON}")
    out = csv.writer(text, lineterminator="\n")
    if objects:
        out.writerow(objects[0])
        rows = [list(row.values()) for row in objects]
    out.writerows(row if isinstance(row, list | tuple) else [row] for row in map(_plain, rows))
    return text.getvalue().encode()


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
    if scipy.sparse.issparse(value):
        return value.toarray().tolist()
    if type(value).__module__ == "builtins":
        return value
    raise TypeError(f"{type(value).__name__} cannot be written")
