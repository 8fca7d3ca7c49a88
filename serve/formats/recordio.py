"""RecordIO with SageMaker's protobuf records: bodies to a matrix, and scores to records.

A record has a magic number, its length, the message, and padding to 4 bytes. Requests have features, training data has
labels too; scores are written as labels. Errors are BadRequest and name the record.

The few messages are parsed here, and not by the protobuf package, whose version often conflicts with the version that a
model's own packages need: docs/decisions/0011-recordio.md.
https://docs.aws.amazon.com/sagemaker/latest/dg/cdf-training.html
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from serve.errors import BadRequest
from serve.formats.libsvm import MOST, filled
from serve.formats.tables import MODEL_HAS, Matrix, finite, wrong_width
from serve.http import extent

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# The types of a repeated field's elements: in numpy, and the wire type of an element that is not packed.
FLOAT, DOUBLE, INTEGER = ("<f4", _FIXED32), ("<f8", _FIXED64), ("<i8", _VARINT)


class Malformed(Exception):
    """The predicate of an error whose subject is the record."""


# Protobuf's encoding: https://protobuf.dev/programming-guides/encoding/


def fields(message: memoryview | bytes) -> Iterator[tuple[int, int, memoryview | int]]:
    """The fields of a message in their order: number, wire type, and the value, which is bytes or an integer."""
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
            raise Malformed("is not a protobuf message")
        if at + length > size:
            raise Malformed("has a truncated field")
        yield tag >> 3, wire, view[at : at + length]
        at += length


def repeated(message: memoryview | bytes, kinds: Mapping[int, tuple[str, int]]) -> dict[int, npt.NDArray[Any]]:
    """The numbers of each of these fields, packed or one by one."""
    parts: dict[int, list[npt.NDArray[Any]]] = {}
    alone: dict[int, bytearray] = {}
    for number, wire, value in fields(message):
        if number not in kinds:
            continue
        dtype, single = kinds[number]
        if wire == single:
            loose = alone.setdefault(number, bytearray())
            loose += (value & (1 << 63) - 1).to_bytes(8, "little") if isinstance(value, int) else value
        elif isinstance(value, int) or wire != _BYTES:
            raise Malformed("has truncated values")
        else:
            before = parts.setdefault(number, [])
            if number in alone:
                before.append(np.frombuffer(alone.pop(number), dtype))
            before.append(_packed(value, dtype))
    for number, loose in alone.items():
        parts.setdefault(number, []).append(np.frombuffer(loose, kinds[number][0]))
    return {number: found[0] if len(found) == 1 else np.concatenate(found) for number, found in parts.items()}


def _packed(value: memoryview, dtype: str) -> npt.NDArray[Any]:
    if dtype == INTEGER[0]:
        return _packed_varints(value)
    if len(value) % np.dtype(dtype).itemsize:
        raise Malformed("has truncated values")
    return np.frombuffer(value, dtype)


def _packed_varints(packed: memoryview) -> npt.NDArray[np.int64]:
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


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(view[at : at + 10]):  # 64 bits, 7 in each byte
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise Malformed("has a truncated number")


def delimited(field: int, data: bytes) -> bytes:
    """The encoding of a field of bytes: text, a message, or packed numbers."""
    return bytes([field << 3 | _BYTES]) + _as_varint(len(data)) + data


def _as_varint(value: int) -> bytes:
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


# SageMaker's messages, by the numbers of their fields.
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
    """The values of a row, their columns (None: all), and the row's width (0: not stated). Raises Malformed."""
    return _tensor(record, _FEATURES, "features")


def label(record: memoryview | bytes) -> Any:
    found, _, _ = _tensor(record, _LABEL, "label")
    if len(found) != 1:
        raise Malformed(f"has {len(found)} labels; one is needed")
    return found[0]


def record_width(record: memoryview | bytes) -> int:
    """The number of features of a dense record, or the stated number of a sparse one."""
    found, keys, shape = features(record)
    if not (shape or (keys is None and len(found))):
        raise Malformed("does not state the number of features: its tensor needs a shape")
    return shape or len(found)


def of_labels(tensors: Mapping[bytes, Floats]) -> bytes:
    """A record with these labels."""
    return b"".join(
        delimited(
            _LABEL,
            delimited(_KEY, name)
            + delimited(_VALUE, delimited(_FLOAT32, delimited(_VALUES, values.astype("<f4").tobytes()))),
        )
        for name, values in tensors.items()
    )


def _tensor(record: memoryview | bytes, among: int, what: str) -> tuple[Floats, Integers | None, int]:
    tensor: memoryview | bytes | None = None
    called = b""
    names = 0
    for field, _, entry in fields(record):
        if field == among and isinstance(entry, memoryview):
            name, value = _entry(entry)
            names += 1
            if name == b"values" or tensor is None:
                tensor, called = value, name
    if tensor is None or (called != b"values" and names > 1):
        raise Malformed(f"has no {what} called 'values'")
    found: dict[int, npt.NDArray[Any]] | None = None
    for kind, _, inner in fields(tensor):
        if kind not in _TENSORS or found is not None:
            raise Malformed(f"has {what} that are not a tensor of numbers")
        found = repeated(_message(inner), _TENSORS[kind])
    found = found or {}
    values = found.get(_VALUES, _NONE).astype(np.float32, copy=False)
    keys, sizes = found.get(_KEYS), found.get(_SHAPE, _NONE)
    if len(sizes) > 1 and (sizes[:-1] != 1).any():
        raise Malformed(f"has {what} of more than one row")
    columns = int(sizes[-1]) if len(sizes) else 0
    # A sparse row may have no values; then only its shape distinguishes it from a dense row without features.
    if keys is None and not len(values) and columns > 0:
        keys = _NONE
    return values, keys, columns


def _entry(entry: memoryview) -> tuple[bytes, memoryview | bytes]:
    """The key and the value of an entry of a map."""
    parts: dict[int, memoryview | bytes] = {}
    for field, _, part in fields(entry):
        if field in (_KEY, _VALUE):
            parts[field] = _message(part)
    return bytes(parts.get(_KEY, b"")), parts.get(_VALUE, b"")


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise Malformed("has a number in place of a message")
    return value


_MAGIC = 0xCED7230A
_MARK = struct.pack("<I", _MAGIC)
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # parts of a record, which is split where it contains the magic number


def read(body: bytes, width: int) -> Matrix | csr_matrix:
    """The rows of a request, dense or sparse. Large matrices of many missing cells are sparse."""
    uniform = _uniform(body, width)
    if uniform is not None:
        return finite(uniform)
    return _rows(body, width, MODEL_HAS, None)


def read_labelled(body: bytes, width: int, says: str) -> tuple[Matrix | csr_matrix, Floats]:
    """The rows of training data, and the label of each; `width` 0: the width of the first record."""
    labels: list[Floats] = []
    return _rows(body, width, says, labels), np.array(labels, np.float32)


def _rows(body: bytes, width: int, says: str, labels: list[Floats] | None) -> Matrix | csr_matrix:
    columns: list[Integers] = []
    values: list[Floats] = []
    cells = 0
    with np.errstate(over="ignore"):  # of float64; `filled` reports it
        try:
            for number, message in enumerate(_records(body), 1):
                width = width or record_width(message)
                found, keys = _row(message, number, width, says)
                cells += len(found)
                extent.check(number, cells)
                if labels is not None:
                    labels.append(label(message))
                columns.append(keys)
                values.append(found)
        except Malformed as wrong:
            raise BadRequest(f"record {len(values) + 1} {wrong}") from None
    if not values:
        raise BadRequest("there are no records")
    return filled(np.concatenate(values), np.concatenate(columns), np.cumsum([0, *map(len, values)]), width)


def width(body: bytes) -> int:
    """The number of columns of the first record."""
    try:
        columns = record_width(next(_records(body), b""))
    except Malformed as wrong:
        raise BadRequest(f"record 1 {wrong}") from None
    if columns > MOST:
        raise BadRequest(f"record 1 has {columns} columns; {MOST} is the most")
    return columns


def _uniform(body: bytes, width: int) -> Matrix | None:
    """The rows of records that are equal but for their float32 features, as most dense ones are; else None.

    A record of eight features takes 12 us by itself, so a body of 25 MB takes seconds; here it takes 0.03 us. If the
    features of the first record are a view of the body, their address gives their position in each record.
    """
    try:
        first = next(_records(body), b"")
        with np.errstate(over="ignore"):
            found, keys, _ = features(first)
    except Malformed:
        return None
    frames = np.frombuffer(body, np.uint8)
    size = 8 + len(first) + -len(first) % 4
    start = found.ctypes.data - frames.ctypes.data  # out of range, if they are not a view
    end = start + 4 * width
    if keys is not None or len(found) != width or not 0 <= start < end <= size or len(body) % size:
        return None
    frames = frames.reshape(-1, size)
    extent.check(len(frames), len(frames) * width)
    if (frames[:, :start] != frames[0, :start]).any() or (frames[:, end:] != frames[0, end:]).any():
        return None
    return np.ascontiguousarray(frames[:, start:end]).view(np.float32)


def _row(message: memoryview | bytes, number: int, width: int, says: str) -> tuple[Floats, Integers]:
    """The values of a record and their columns."""
    found, keys, shape = features(message)
    if keys is None:
        if len(found) != width:
            wrong_width(number, len(found), width, says)
        return found, np.arange(width)
    if shape not in (0, width):
        wrong_width(number, shape, width, says)
    if len(keys) != len(found) or (len(keys) and not 0 <= keys.min() <= keys.max() < width):
        raise Malformed(f"needs as many keys as values, each from 0 to {width - 1}")
    return found, keys


def _records(body: bytes) -> Iterator[memoryview | bytes]:
    view = memoryview(body)
    at, parts = 0, list[bytes]()
    while at < len(body):
        if body[at : at + 4] != _MARK:
            raise Malformed("does not begin with RecordIO's magic number")
        if at + 8 > len(body):
            raise Malformed("is truncated")
        head = int.from_bytes(view[at + 4 : at + 8], "little")
        kind, length = head >> 29, head & 0x1FFFFFFF
        end = at + 8 + length
        if end > len(body):
            raise Malformed("is truncated")
        if kind > _LAST or bool(parts) != (kind in (_MIDDLE, _LAST)):
            raise Malformed("has parts in the wrong order")
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
        raise Malformed("is truncated")


def write(columns: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """One record per row; each column (rows by width) is a float32 tensor of the labels."""
    names = {name.encode(): rows for name, rows in columns.items()}
    count = max(len(rows) for rows in names.values())
    out = bytearray()
    for row in range(count):
        message = of_labels({name: rows[row] for name, rows in names.items()})
        out += struct.pack("<II", _MAGIC, len(message)) + message + b"\0" * (-len(message) % 4)
    return bytes(out)
