"""RecordIO of SageMaker's protobuf records: request bytes to a matrix, and scores to records.

A record is framed by a magic number, its length, and padding to 4 bytes; what is in it is the message Record of AWS's
built-in algorithms (docs.aws.amazon.com/sagemaker/latest/dg/cdf-inference.html): maps from names to tensors, of which
`features` are read here and `label` is written. Reading is by hand, since one message of three levels needs no
compiler and no generated code; whatever the bytes are, it is a 400 that names the record.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from serve.errors import BadRequest
from serve.handlers.rows.libsvm import MOST, filled
from serve.handlers.rows.tabular import MODEL_HAS, Matrix, finite, wrong_width

_MAGIC = 0xCED7230A
_MARK = struct.pack("<I", _MAGIC)
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # how a record is cut where the magic number occurs in its bytes

# Field numbers of AWS's Record, and what its values' elements are.
_FEATURES, _LABEL = 1, 2
_KEY, _VALUE = 1, 2
_VALUES, _KEYS, _SHAPE = 1, 2, 3
_TENSORS: Mapping[int, str] = {2: "<f4", 3: "<f8", 7: "varint"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class _Wrong(Exception):
    """What is wrong with a record."""


def read(body: bytes, width: int) -> Matrix | csr_matrix:
    """Records of dense or sparse features; what a sparse one does not name is missing. Sparse if large."""
    alike = _alike(body, width)
    if alike is not None:
        return finite(alike)
    return _rows(body, width, MODEL_HAS, None)


def read_labelled(body: bytes, width: int, says: str) -> tuple[Matrix | csr_matrix, Floats]:
    """The same with the label of each record; where `width` is 0, it is that of the first record."""
    labels: list[Floats] = []
    return _rows(body, width, says, labels), np.array(labels, np.float32)


def _rows(body: bytes, width: int, says: str, labels: list[Floats] | None) -> Matrix | csr_matrix:
    columns: list[Integers] = []
    values: list[Floats] = []
    with np.errstate(over="ignore"):  # of float64; `filled` finds it
        try:
            for number, record in enumerate(_records(body), 1):
                width = width or _width(record)
                found, keys = _row(record, number, width, says)
                if labels is not None:
                    labels.append(_label(record))
                columns.append(keys)
                values.append(found)
        except _Wrong as wrong:
            raise BadRequest(f"record {len(values) + 1} {wrong}") from None
    if not values:
        raise BadRequest("there are no records")
    return filled(np.concatenate(values), np.concatenate(columns), np.cumsum([0, *map(len, values)]), width)


def width(body: bytes) -> int:
    """How many columns the first record says it has, for records whose width nobody knows."""
    try:
        columns = _width(next(_records(body), b""))
    except _Wrong as wrong:
        raise BadRequest(f"record 1 {wrong}") from None
    if columns > MOST:
        raise BadRequest(f"record 1 has {columns} columns; {MOST} is the most")
    return columns


def _alike(body: bytes, width: int) -> Matrix | None:
    """The rows of records that differ in nothing but float32 features, as most dense ones do; None where they may not.

    Of eight features, one by one they take 8 us each, which of a body of 25 MB makes seconds; together 0.02 us.
    """
    try:
        record = next(_records(body), b"")
        with np.errstate(over="ignore"):
            found, keys, _ = _features(record)
    except _Wrong:
        return None
    frames = np.frombuffer(body, np.uint8)
    size = 8 + len(record) + -len(record) % 4
    start = found.ctypes.data - frames.ctypes.data  # in the body itself, unless something had to be put together
    end = start + 4 * width
    if keys is not None or len(found) != width or not 0 <= start < end <= size or len(body) % size:
        return None
    frames = frames.reshape(-1, size)
    if (frames[:, :start] != frames[0, :start]).any() or (frames[:, end:] != frames[0, end:]).any():
        return None
    return np.ascontiguousarray(frames[:, start:end]).view(np.float32)


def _width(record: memoryview | bytes) -> int:
    """The number of features that a record has or, sparse, says it has."""
    found, keys, shape = _features(record)
    if not (shape or (keys is None and len(found))):
        raise _Wrong("does not say how many features there are: its tensor needs a shape")
    return shape or len(found)


def _label(record: memoryview | bytes) -> Any:
    found, _, _ = _tensor_of(record, _LABEL, "label")
    if len(found) != 1:
        raise _Wrong(f"has {len(found)} labels; one is needed")
    return found[0]


def _row(record: memoryview | bytes, number: int, width: int, says: str) -> tuple[Floats, Integers]:
    """The values of a record, and their columns."""
    found, keys, shape = _features(record)
    if keys is None:
        if len(found) != width:
            wrong_width(number, len(found), width, says)
        return found, np.arange(width)
    if shape not in (0, width):
        wrong_width(number, shape, width, says)
    if len(keys) != len(found) or (len(keys) and not 0 <= keys.min() <= keys.max() < width):
        raise _Wrong(f"needs as many keys as values, each from 0 to {width - 1}")
    return found, keys


def _records(body: bytes) -> Iterator[memoryview | bytes]:
    view = memoryview(body)
    at, parts = 0, list[bytes]()
    while at < len(body):
        if body[at : at + 4] != _MARK:
            raise _Wrong("does not begin with RecordIO's magic number")
        if at + 8 > len(body):
            raise _Wrong("is cut short")
        head = int.from_bytes(view[at + 4 : at + 8], "little")
        kind, length = head >> 29, head & 0x1FFFFFFF
        end = at + 8 + length
        if end > len(body):
            raise _Wrong("is cut short")
        if kind > _LAST or bool(parts) != (kind in (_MIDDLE, _LAST)):
            raise _Wrong("is in parts that do not follow one another")
        part = view[at + 8 : end]
        at = end + -length % 4  # the padding of the last record may be missing
        if kind == _WHOLE:
            yield part
        else:
            parts.append(bytes(part))
            if kind == _LAST:
                yield _MARK.join(parts)
                parts = []
    if parts:
        raise _Wrong("is cut short")


def _features(record: memoryview | bytes) -> tuple[Floats, Integers | None, int]:
    """Values, their columns (None: all of them) and the row's width (0: not said) of one record."""
    return _tensor_of(record, _FEATURES, "features")


def _tensor_of(record: memoryview | bytes, among: int, what: str) -> tuple[Floats, Integers | None, int]:
    tensors = {}
    for field, _, entry in _fields(record):
        if field == among and isinstance(entry, memoryview):
            pair = {number: value for number, _, value in _fields(entry)}
            tensors[bytes(_message(pair.get(_KEY, b"")))] = _message(pair.get(_VALUE, b""))
    tensor = tensors.get(b"values", next(iter(tensors.values())) if len(tensors) == 1 else None)
    if tensor is None:
        raise _Wrong(f"has no {what} called 'values'")
    numbers: list[Floats] = []
    keys: list[Integers] = []
    shape: list[Integers] = []
    for kind, _, inner in _fields(tensor):
        if kind not in _TENSORS:
            raise _Wrong(f"has {what} that are no tensor of numbers")
        for field, wire, value in _fields(_message(inner)):
            if field == _VALUES:
                numbers.append(_elements(wire, value, _TENSORS[kind]).astype(np.float32, copy=False))
            elif field in (_KEYS, _SHAPE):
                (keys if field == _KEYS else shape).append(_elements(wire, value, "varint"))
    found = numbers[0] if len(numbers) == 1 else np.concatenate([np.empty(0, np.float32), *numbers])
    sizes = np.concatenate(shape) if shape else np.empty(0, np.int64)
    if len(sizes) > 1 and (sizes[:-1] != 1).any():
        raise _Wrong(f"has {what} of more than one row")
    width = int(sizes[-1]) if len(sizes) else 0
    # A sparse row may have no values at all: then only its shape tells it from a dense one of no features.
    sparse = bool(keys) or (not len(found) and width > 0)
    return found, (np.concatenate(keys) if keys else np.empty(0, np.int64)) if sparse else None, width


def _fields(message: memoryview | bytes) -> Iterator[tuple[int, int, memoryview | int]]:
    """The fields of a protobuf message, in order: number, wire type, and its bytes or its integer."""
    view = memoryview(message)
    at, size = 0, len(view)
    while at < size:
        tag, at = _varint(view, at)
        wire = tag & 7
        if wire == _BYTES:
            length, at = _varint(view, at)
        elif wire == _VARINT:
            number, at = _varint(view, at)
            yield tag >> 3, wire, number
            continue
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _Wrong("is not a protobuf message")
        if at + length > size:
            raise _Wrong("is cut short inside")
        yield tag >> 3, wire, view[at : at + length]
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(view[at : at + 10]):  # 64 bits in sevens
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise _Wrong("has a number that is cut short")


def _elements(wire: int, value: memoryview | int, kind: str) -> npt.NDArray[Any]:
    """One field of a repeated number: packed or, as protobuf also allows, one of its elements."""
    if kind == "varint":
        if isinstance(value, memoryview):
            return _packed_varints(value)
        return np.array([value & (1 << 63) - 1], np.int64)
    if isinstance(value, int) or len(value) % np.dtype(kind).itemsize or wire == (_FIXED64 if kind == "<f4" else 5):
        raise _Wrong("has values that are cut short")
    return np.frombuffer(value, kind)


def _packed_varints(packed: memoryview) -> Integers:
    found = np.frombuffer(packed, np.uint8)
    if not len(found):
        return np.empty(0, np.int64)
    if found.max() < 0x80:
        return found.astype(np.int64)
    numbers = []
    at = 0
    while at < len(packed):
        number, at = _varint(packed, at)
        numbers.append(number & (1 << 63) - 1)
    return np.array(numbers, np.int64)


def _message(value: memoryview | bytes | int) -> memoryview | bytes:
    if isinstance(value, int):
        raise _Wrong("has a number where a message belongs")
    return value


def write(columns: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """A record for each row, each column of it (rows by width) a float32 tensor among its labels."""
    names = [(_delimited(_KEY, name.encode()), rows) for name, rows in columns.items()]
    count = max(len(rows) for _, rows in names)
    out = bytearray()
    for row in range(count):
        record = b"".join(_delimited(_LABEL, key + _tensor(rows[row])) for key, rows in names)
        out += struct.pack("<II", _MAGIC, len(record)) + record + b"\0" * (-len(record) % 4)
    return bytes(out)


def _tensor(row: npt.NDArray[np.float32]) -> bytes:
    return _delimited(_VALUE, _delimited(2, _delimited(_VALUES, row.astype("<f4").tobytes())))


def _delimited(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | _BYTES]) + _as_varint(len(data)) + data


def _as_varint(value: int) -> bytes:
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
