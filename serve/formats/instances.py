"""JSON rows of numbers to a matrix: bare lists, and the forms of SageMaker's built-in algorithms.

The bodies are in UTF-8 (`serve.http.body.to_utf8`).
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from scipy.sparse import csr_matrix

from serve.errors import BadRequest
from serve.formats import frames
from serve.formats.frames import RECORDS, SPLIT, Table
from serve.formats.libsvm import filled
from serve.formats.tables import Matrix, finite, wrong_width
from serve.http import extent
from serve.http.body import decode_json

Values = list[float | None]
Row = tuple[Values, list[int] | None]  # values, and their columns; None: the values of all columns


class _Values(msgspec.Struct, forbid_unknown_fields=True):
    values: Values
    keys: list[int] | None = None
    shape: list[int] | None = None


class _Features(msgspec.Struct, forbid_unknown_fields=True):
    features: _Values


class _Instance(msgspec.Struct, forbid_unknown_fields=True):
    features: Values | None = None
    data: _Features | None = None


_ROW = msgspec.json.Decoder(Values)
_ROWS = msgspec.json.Decoder(list[Values])
_INSTANCE = msgspec.json.Decoder(_Instance)
_INSTANCES = msgspec.json.Decoder(list[_Instance])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def rows(body: bytes, width: int, model_field: str) -> Matrix | csr_matrix:
    """The matrix of a row, of a list of rows, or of an object with either under `instances` or `inputs`.

    null is nan. A large matrix in which most values are missing is sparse. Raises BadRequest.
    """
    return _matrix(_parsed(body, width, model_field), width)


def table(body: bytes, names: Sequence[str] | None, model_field: str) -> list[list[Any]] | None:
    """The rows of a frame in one of MLflow's forms, in the order of `names` if the model has them.

    The forms: `dataframe_split`, `dataframe_records`, and `inputs` or `instances` with an object of columns. None for
    any other body. Raises BadRequest.
    """
    if body.lstrip()[:1] != b"{":
        return None
    keys = decode_json(body, decoder=_OBJECT)
    asked = [key for key in keys if key != model_field]
    if not {SPLIT, RECORDS} & set(asked):
        if len(asked) != 1 or asked[0] not in ("inputs", "instances") or bytes(keys[asked[0]]).lstrip()[:1] != b"{":
            return None
        found: Table | list[Any] | None = frames.by_column(decode_json(bytes(keys[asked[0]])))
    else:
        found = frames.frame(decode_json(body), model_field)
    if isinstance(found, Table):
        return (found if names is None else found.ordered(names)).rows
    return found


def matrix(rows: list[list[Any]], width: int) -> Matrix | csr_matrix:
    """The matrix of rows of numbers, truth values and None. Raises BadRequest."""
    numbers = [[float(cell) if isinstance(cell, bool) else cell for cell in row] for row in rows]
    try:
        return _matrix([(row, None) for row in msgspec.convert(numbers, list[Values])], width)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the JSON is not rows of numbers: {error}") from error


def lines(body: bytes, width: int, model_field: str) -> Matrix | csr_matrix:
    """The matrix of JSON Lines, each line a row or rows. The error for one of several lines has its number."""
    bodies = body.rstrip(b"\r\n").split(b"\n")
    if len(bodies) == 1:
        return rows(bodies[0], width, model_field)
    extent.check(len(bodies))
    found: list[Row] = []
    for number, line in enumerate(bodies, 1):
        try:
            found += _parsed(line, width, model_field)
        except BadRequest as error:
            raise BadRequest(f"line {number}: {error.message}", hint=error.hint) from error
    return _matrix(found, width)


def _parsed(body: bytes, width: int, model_field: str) -> list[Row]:
    try:
        text = body.lstrip()
        if text[:1] == b"{":
            keys = decode_json(text, decoder=_OBJECT)
            asked = [key for key in keys if key != model_field]
            if len(asked) == 1 and asked[0] in ("features", "data"):
                return [_instance(decode_json(text, decoder=_INSTANCE), 1, width)]
            if len(asked) != 1 or asked[0] not in ("instances", "inputs"):
                raise BadRequest(
                    f"the object's keys are {', '.join(map(repr, asked))[:300] or 'missing'}",
                    hint='send {"instances": [[...], ...]} or a bare list',
                )
            text = bytes(keys[asked[0]]).lstrip()
        inner = text[1:].lstrip()[:1] if text[:1] == b"[" else b""
        if inner == b"[":
            return [(row, None) for row in decode_json(text, decoder=_ROWS)]
        if inner == b"{":
            instances = decode_json(text, decoder=_INSTANCES)
            return [_instance(each, number, width) for number, each in enumerate(instances, 1)]
        return [(decode_json(text, decoder=_ROW), None)]
    except msgspec.ValidationError as error:
        raise BadRequest(f"the JSON is not rows of numbers: {error}") from error


def _instance(instance: _Instance, number: int, width: int) -> Row:
    if instance.features is not None and instance.data is None:
        return instance.features, None
    if instance.data is None or instance.features is not None:
        raise BadRequest(f"row {number} needs either features or data.features.values")
    sparse = instance.data.features
    if sparse.keys is None:
        return sparse.values, None
    if sparse.shape not in (None, [width]):
        raise BadRequest(f"row {number} has shape {sparse.shape}; the model has {width} features")
    if len(sparse.keys) != len(sparse.values) or not all(0 <= key < width for key in sparse.keys):
        raise BadRequest(f"row {number} needs as many keys as values, each from 0 to {width - 1}")
    return sparse.values, sparse.keys


def _matrix(rows: list[Row], width: int) -> Matrix | csr_matrix:
    if not rows:
        raise BadRequest("there are no rows")
    extent.check(len(rows))
    for number, (values, keys) in enumerate(rows, 1):
        if keys is None and len(values) != width:
            wrong_width(number, len(values), width)
    with np.errstate(over="ignore"):
        if all(keys is None for _, keys in rows):
            return finite(np.array([values for values, _ in rows], np.float64).astype(np.float32))  # None becomes nan
        # A row of a wide model can be a few bytes: memory for its missing columns depends on the number of rows.
        cells = np.array([value for values, _ in rows for value in values], np.float64).astype(np.float32)
        columns = np.array([key for _, keys in rows for key in (range(width) if keys is None else keys)], np.int64)
    return filled(cells, columns, np.cumsum([0, *(len(values) for values, _ in rows)]), width)
