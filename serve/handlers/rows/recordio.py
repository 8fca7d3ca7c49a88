"""RecordIO of SageMaker's protobuf records: request bytes to a matrix, and scores to records.

A record is framed by a magic number, its length, and padding to 4 bytes; `record.py` has what is in it. Of requests its
features are read, of a training's data its label too, and scores are written as labels. Whatever the bytes are, it is
a 400 that names the record.
"""

import struct
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from serve.errors import BadRequest
from serve.handlers.rows import record
from serve.handlers.rows.libsvm import MOST, filled
from serve.handlers.rows.protobuf import Malformed
from serve.handlers.rows.record import Floats, Integers
from serve.handlers.rows.tabular import MODEL_HAS, Matrix, finite, wrong_width

_MAGIC = 0xCED7230A
_MARK = struct.pack("<I", _MAGIC)
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # how a record is cut where the magic number occurs in its bytes


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
            for number, message in enumerate(_records(body), 1):
                width = width or record.width(message)
                found, keys = _row(message, number, width, says)
                if labels is not None:
                    labels.append(record.label(message))
                columns.append(keys)
                values.append(found)
        except Malformed as wrong:
            raise BadRequest(f"record {len(values) + 1} {wrong}") from None
    if not values:
        raise BadRequest("there are no records")
    return filled(np.concatenate(values), np.concatenate(columns), np.cumsum([0, *map(len, values)]), width)


def width(body: bytes) -> int:
    """How many columns the first record says it has, for records whose width nobody knows."""
    try:
        columns = record.width(next(_records(body), b""))
    except Malformed as wrong:
        raise BadRequest(f"record 1 {wrong}") from None
    if columns > MOST:
        raise BadRequest(f"record 1 has {columns} columns; {MOST} is the most")
    return columns


def _alike(body: bytes, width: int) -> Matrix | None:
    """The rows of records that differ in nothing but float32 features, as most dense ones do; None where they may not.

    Of eight features, one by one they take 12 us each, which of a body of 25 MB makes seconds; together 0.03 us.
    """
    try:
        first = next(_records(body), b"")
        with np.errstate(over="ignore"):
            found, keys, _ = record.features(first)
    except Malformed:
        return None
    frames = np.frombuffer(body, np.uint8)
    size = 8 + len(first) + -len(first) % 4
    start = found.ctypes.data - frames.ctypes.data  # in the body itself, unless something had to be put together
    end = start + 4 * width
    if keys is not None or len(found) != width or not 0 <= start < end <= size or len(body) % size:
        return None
    frames = frames.reshape(-1, size)
    if (frames[:, :start] != frames[0, :start]).any() or (frames[:, end:] != frames[0, end:]).any():
        return None
    return np.ascontiguousarray(frames[:, start:end]).view(np.float32)


def _row(message: memoryview | bytes, number: int, width: int, says: str) -> tuple[Floats, Integers]:
    """The values of a record, and their columns."""
    found, keys, shape = record.features(message)
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
            raise Malformed("is cut short")
        head = int.from_bytes(view[at + 4 : at + 8], "little")
        kind, length = head >> 29, head & 0x1FFFFFFF
        end = at + 8 + length
        if end > len(body):
            raise Malformed("is cut short")
        if kind > _LAST or bool(parts) != (kind in (_MIDDLE, _LAST)):
            raise Malformed("is in parts that do not follow one another")
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
        raise Malformed("is cut short")


def write(columns: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """A record for each row, each column of it (rows by width) a float32 tensor among its labels."""
    names = {name.encode(): rows for name, rows in columns.items()}
    count = max(len(rows) for rows in names.values())
    out = bytearray()
    for row in range(count):
        message = record.of_labels({name: rows[row] for name, rows in names.items()})
        out += struct.pack("<II", _MAGIC, len(message)) + message + b"\0" * (-len(message) % 4)
    return bytes(out)
