"""The message Record of AWS's built-in algorithms: maps from names to tensors, of features and of labels.

docs.aws.amazon.com/sagemaker/latest/dg/cdf-inference.html has its definition. Where names are free, a tensor is called
`values`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.handlers.rows import protobuf
from serve.handlers.rows.protobuf import DOUBLE, FLOAT, INTEGER, Malformed

# Field numbers.
_FEATURES, _LABEL = 1, 2
_KEY, _VALUE = 1, 2
_FLOAT32, _FLOAT64, _INT32 = 2, 3, 7
_VALUES, _KEYS, _SHAPE = 1, 2, 3
_TENSORS = {
    number: {_VALUES: kind, _KEYS: INTEGER, _SHAPE: INTEGER}
    for number, kind in ((_FLOAT32, FLOAT), (_FLOAT64, DOUBLE), (_INT32, INTEGER))
}

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_NONE = np.empty(0, np.int64)


def features(record: memoryview | bytes) -> tuple[Floats, Integers | None, int]:
    """Values, their columns (None: all of them) and the row's width (0: not said). Raises Malformed."""
    return _tensor(record, _FEATURES, "features")


def label(record: memoryview | bytes) -> Any:
    found, _, _ = _tensor(record, _LABEL, "label")
    if len(found) != 1:
        raise Malformed(f"has {len(found)} labels; one is needed")
    return found[0]


def width(record: memoryview | bytes) -> int:
    """The number of features that a record has or, sparse, says it has."""
    found, keys, shape = features(record)
    if not (shape or (keys is None and len(found))):
        raise Malformed("does not say how many features there are: its tensor needs a shape")
    return shape or len(found)


def of_labels(tensors: Mapping[bytes, Floats]) -> bytes:
    """A record with these among its labels."""
    return b"".join(
        protobuf.delimited(
            _LABEL,
            protobuf.delimited(_KEY, name)
            + protobuf.delimited(
                _VALUE, protobuf.delimited(_FLOAT32, protobuf.delimited(_VALUES, values.astype("<f4").tobytes()))
            ),
        )
        for name, values in tensors.items()
    )


def _tensor(record: memoryview | bytes, among: int, what: str) -> tuple[Floats, Integers | None, int]:
    tensor: memoryview | bytes | None = None
    called = b""
    names = 0
    for field, _, entry in protobuf.fields(record):
        if field == among and isinstance(entry, memoryview):
            name, value = _entry(entry)
            names += 1
            if name == b"values" or tensor is None:
                tensor, called = value, name
    if tensor is None or (called != b"values" and names > 1):
        raise Malformed(f"has no {what} called 'values'")
    found: dict[int, npt.NDArray[Any]] | None = None
    for kind, _, inner in protobuf.fields(tensor):
        if kind not in _TENSORS or found is not None:
            raise Malformed(f"has {what} that are no tensor of numbers")
        found = protobuf.repeated(_message(inner), _TENSORS[kind])
    found = found or {}
    values = found.get(_VALUES, _NONE).astype(np.float32, copy=False)
    keys, sizes = found.get(_KEYS), found.get(_SHAPE, _NONE)
    if len(sizes) > 1 and (sizes[:-1] != 1).any():
        raise Malformed(f"has {what} of more than one row")
    columns = int(sizes[-1]) if len(sizes) else 0
    # A sparse row may have no values at all: then only its shape tells it from a dense one of no features.
    if keys is None and not len(values) and columns > 0:
        keys = _NONE
    return values, keys, columns


def _entry(entry: memoryview) -> tuple[bytes, memoryview | bytes]:
    """Key and value of an entry of a map."""
    parts: dict[int, memoryview | bytes] = {}
    for field, _, part in protobuf.fields(entry):
        if field in (_KEY, _VALUE):
            parts[field] = _message(part)
    return bytes(parts.get(_KEY, b"")), parts.get(_VALUE, b"")


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise Malformed("has a number where a message belongs")
    return value
