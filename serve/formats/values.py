"""Bodies to Python values and arrays, and predictions to bodies: JSON, CSV, text, npy, npz.

Nothing is unpickled. Memory stays within a few times the body, whatever a header states.
"""

import csv
import io
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from serve.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from serve.formats import npy, tables
from serve.http import media
from serve.http.body import decode_json, decode_text, to_utf8

READS = (media.JSON, media.CSV, media.NPY, media.NPZ)  # the types of which `read` makes arrays
WRITES = (media.JSON, media.CSV, media.TEXT, media.NPY)

Array = npt.NDArray[Any]


def read(body: bytes, content_type: str, charset: str = "utf-8") -> Any:
    """The value of a body, by its media type.

    JSON becomes objects; CSV a float64 array of rows; npy an array; npz a dictionary of arrays, or the sparse matrix
    that it holds; other text a str. A body of any other type is returned as it is.

    Raises BadRequest for an invalid body, UnsupportedMediaType for JSON Lines and for an unsupported charset.
    """
    if content_type == media.JSON_LINES:  # the runner then sends each line as JSON
        raise UnsupportedMediaType(
            f"unsupported Content-Type: {media.JSON_LINES}", hint="send JSON, or add an input_fn"
        )
    if content_type == media.NPY:
        return npy.array(body).copy()  # writable, unlike a view of the body
    if content_type == media.NPZ:
        return npy.read(body)
    if media.is_json(content_type):
        return decode_json(body, charset)
    if content_type == media.CSV:
        return tables.csv_doubles(to_utf8(body, charset))
    return decode_text(body, charset) if media.is_text(content_type) else body


def numbers(value: Any, dtype: npt.DTypeLike, what: str = "the input") -> Array:
    """Nested lists of numbers as an array of this type.

    Raises BadRequest where the type cannot hold a value (a fraction as an integer), and for lists of unequal lengths.
    """
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
    """Nested lists as an array: of numbers, or of objects if there is text among them. Raises BadRequest."""
    try:
        found = np.array(value, object)  # an array of text would give each cell the width of the longest text
        kinds = {type(each) for each in found.ravel()}  # ravel, because numpy's `flat` ends at 32 dimensions
        if kinds & {list, dict}:
            raise ValueError("it has lists of different lengths, or objects")
        return np.array(value) if kinds <= {int, float, bool} else found
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"the JSON is not an array: {str(error)[:200]}") from error


def write(value: Any, media_type: str) -> bytes:
    """A prediction as one of WRITES. Raises NotAcceptable for a value that the type cannot hold."""
    if media_type == media.CSV:
        return _csv(_plain(value))
    if media_type == media.TEXT:
        return str(value).encode()
    if media_type == media.NPY:
        file = io.BytesIO()
        if hasattr(value, "detach"):  # numpy does not convert every tensor
            value = value.detach().cpu().numpy()
        try:
            np.save(file, storable(np.asarray(value)), allow_pickle=False)
        except ValueError as error:
            raise NotAcceptable(
                f"the prediction cannot be written as npy: {error}", hint=f"ask for {media.JSON}"
            ) from error
        return file.getvalue()
    return _json(value)


def _json(value: Any) -> bytes:
    """JSON. Raises TypeError for what JSON cannot hold, and names it."""
    try:
        return msgspec.json.encode(value, enc_hook=_json_value)
    except RecursionError:
        raise TypeError("a value that contains itself, or is nested too deeply, cannot be written as JSON") from None


def _json_value(value: Any) -> Any:
    """What msgspec writes in place of a value of a type that it does not know."""
    found = _plain(value)
    if type(found) is not type(value):
        return found
    if isinstance(value, np.floating):  # a longdouble, which is its own `tolist`
        return float(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def storable(array: Array) -> Array:
    """The same array; an array of str objects, which npy cannot hold without a pickle, as one of texts."""
    if array.dtype.kind != "O" or not all(isinstance(each, str) for each in array.ravel()):
        return array
    return array.astype(str)


def _csv(plain: Any) -> bytes:
    """Rows; or, for objects with equal keys, as pipelines return them, a header line and rows."""
    text = io.StringIO()
    rows = plain if isinstance(plain, list | tuple) else [plain]
    objects = [row for row in rows if isinstance(row, dict)]
    if objects and (objects[0] is plain or any(row.keys() != objects[0].keys() for row in objects) or rows != objects):
        raise NotAcceptable("the prediction is not a table and cannot be written as CSV", hint=f"ask for {media.JSON}")
    out = csv.writer(text, lineterminator="\n")
    if objects:
        out.writerow(objects[0])
        rows = [list(row.values()) for row in objects]
    out.writerows(_cells(row) if isinstance(row, list | tuple) else _cells([row]) for row in map(_plain, rows))
    return text.getvalue().encode()


def _cells(row: Sequence[Any]) -> Sequence[Any]:
    """The row. Raises TypeError for an object that has no text of its own but its address."""
    for cell in row:
        kind: Any = type(cell)
        if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
            raise TypeError(f"{kind.__name__} cannot be written as CSV")
    return row


def chunk(value: Any) -> bytes:
    """One chunk of a stream: bytes as they are, text in UTF-8, any other value as a line of JSON."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    return _json(value) + b"\n"


def _plain(value: Any) -> Any:
    """Arrays, tensors and numpy's scalars as Python's own types; values of Python's own types unchanged."""
    if hasattr(value, "tolist"):
        return value.tolist()
    sparse = sys.modules.get("scipy.sparse")  # if it is not imported, no value is one of its matrices
    if sparse and sparse.issparse(value):
        return value.toarray().tolist()
    if type(value).__module__ == "builtins":
        return value
    raise TypeError(f"{type(value).__name__} cannot be written")
