"""Parquet to a float32 matrix: each column is a feature, in their order; null is nan.

A few bytes of Parquet can stand for any number of rows, and a page unpacks to whatever its header says; so rows,
columns and the sizes of all pages are added up before anything is decoded, and what is too much is a 413.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.errors import BadRequest, PayloadTooLarge
from serve.formats.tables import MODEL_HAS, Matrix, finite

_STOP, _TRUE, _FALSE, _BYTE, _I64, _DOUBLE, _BINARY, _LIST, _STRUCT = 0, 1, 2, 3, 6, 7, 8, 9, 12
_DEEPEST = 12  # Parquet goes 6 deep
_LAST = 64  # number of a field; Parquet's end at 17

Integers = dict[int, int]


def struct(
    body: bytes,
    at: int,
    path: Sequence[int] = (),
    each: Callable[[Integers], None] | None = None,
    depth: int = 0,
) -> tuple[Integers, int]:
    """The integers of the struct at `at`, by the numbers of their fields, and where it ends.

    `each` gets the integers of every struct that is found by going along `path`, a field a step, through lists too.
    """
    if depth > _DEEPEST:
        raise ValueError("a struct is nested too deeply")
    integers: Integers = {}
    field = 0
    while body[at] != _STOP:
        kind, delta = body[at] & 15, body[at] >> 4
        at += 1
        if delta:
            field += delta
        else:
            number, at = _varint(body, at)
            field = _zigzag(number)
        if not 0 < field <= _LAST:
            raise ValueError("a struct has a field that Parquet has not")
        if _BYTE < kind <= _I64:
            if field in integers:
                raise ValueError("a struct has a field twice")
            number, at = _varint(body, at)
            integers[field] = _zigzag(number)
        elif path and field == path[0]:
            at = _along(body, at, kind, path[1:], each, depth + 1)
        else:
            at = _skip(body, at, kind, depth + 1)
    if each and not path:
        each(integers)
    return integers, at + 1


def _along(
    body: bytes, at: int, kind: int, path: Sequence[int], each: Callable[[Integers], None] | None, depth: int
) -> int:
    count = 1
    if kind == _LIST:
        count, kind, at = _list(body, at)
    if kind != _STRUCT:
        raise ValueError("there is something else where a struct belongs")
    for _ in range(count):
        _, at = struct(body, at, path, each, depth)
    return at


def _skip(body: bytes, at: int, kind: int, depth: int) -> int:
    if kind in (_TRUE, _FALSE):
        return at
    if kind == _BYTE:
        return at + 1
    if kind <= _I64:
        return _varint(body, at)[1]
    if kind == _DOUBLE:
        return at + 8
    if kind == _STRUCT:
        return struct(body, at, depth=depth)[1]
    if kind == _BINARY:
        length, at = _varint(body, at)
        return at + length
    if kind == _LIST:
        if depth > _DEEPEST:
            raise ValueError("a list is nested too deeply")
        count, kind, at = _list(body, at)
        for _ in range(count):
            at = at + 1 if kind in (_TRUE, _FALSE) else _skip(body, at, kind, depth + 1)
        return at
    raise ValueError("there is a type that Parquet has not")  # which has no sets and maps


def _list(body: bytes, at: int) -> tuple[int, int, int]:
    """How many elements, of what kind, and where the first is."""
    count, kind = body[at] >> 4, body[at] & 15
    at += 1
    if count == 15:
        count, at = _varint(body, at)
    if count > len(body) - at:  # each takes a byte at least
        raise ValueError("a list is cut short")
    return count, kind, at


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = body[at + shift // 7]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + shift // 7 + 1
    raise ValueError("there is a number too long")


def _zigzag(number: int) -> int:
    return number >> 1 ^ -(number & 1)


_CELLS = 1 << 25  # 128 MB of float32
_UNPACKED = 1 << 28  # bytes: those cells as float64
_AT_ONCE = 1 << 20  # cells decoded at a time
_METADATA = 1 << 20  # bytes of its strings, and elements of its lists
# What exceptions of Arrow's C++ that it has no name for become, by Cython's table; most are RuntimeError.
_FROM_CPP = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)

# Fields: of the footer its row groups, of those their columns, of those what is said of their pages.
_CHUNKS = (4, 1, 3)
_PACKED, _DATA_AT, _DICTIONARY_AT = 7, 9, 11
_PAGE_UNPACKED, _PAGE_PACKED = 2, 3


def read(body: bytes, width: int) -> Matrix:
    import pyarrow as pa  # here and not above: importing it starts a thread, which a process that forks must not have
    import pyarrow.parquet as arrow_parquet

    try:
        file = arrow_parquet.ParquetFile(
            pa.BufferReader(body),
            pre_buffer=False,
            thrift_string_size_limit=_METADATA,
            thrift_container_size_limit=_METADATA,
        )
        _check_columns(file, width, MODEL_HAS)
        _check_sizes(file.metadata, body, width)
        return _decoded(file, width)
    except (pa.ArrowException, *_FROM_CPP) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BadRequest(f"the body is not Parquet that can be read: {reason[:300]}") from error


def read_file(path: Path, width: int, says: str) -> Matrix:
    """The same of a file of one's own, as large as it is; where `width` is 0, it is the file's."""
    import pyarrow as pa
    import pyarrow.parquet as arrow_parquet

    try:
        with arrow_parquet.ParquetFile(path) as file:
            width = width or file.metadata.num_columns
            _check_columns(file, width, says)
            return _decoded(file, width)
    except (pa.ArrowException, *_FROM_CPP) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BadRequest(f"it is not Parquet that can be read: {reason[:300]}") from error


def _decoded(file: Any, width: int) -> Matrix:
    import pyarrow as pa

    matrix = np.empty((file.metadata.num_rows, width), np.float32)
    start = 0
    for batch in file.iter_batches(batch_size=max(1, _AT_ONCE // max(1, width)), use_threads=False):
        end = start + batch.num_rows
        with np.errstate(over="ignore"):  # `finite` finds it
            for index, column in enumerate(batch.columns):
                matrix[start:end, index] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        start = end
    if start != len(matrix):
        raise BadRequest(f"the Parquet says it has {len(matrix)} rows, and has {start}")
    return finite(matrix)


def _check_columns(file: Any, width: int, says: str) -> None:
    from pyarrow import types

    metadata = file.metadata
    if metadata.num_columns != width:
        raise BadRequest(f"the Parquet has {metadata.num_columns} columns; {says.format(width)}")
    for field in file.schema_arrow:
        kind = field.type
        numeric = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
        if not (numeric or types.is_null(kind)):
            raise BadRequest(f"column {field.name[:60]!r} is of type {str(kind)[:60]}; numbers are needed")
    if metadata.num_rows < 1:
        raise BadRequest("there are no rows")


def _check_sizes(metadata: Any, body: bytes, width: int) -> None:
    """By the footer itself: of what is wrong in it Arrow's own view of a column ends the process (26.0.1)."""
    unpacked = 0

    def add(chunk: Integers) -> None:
        nonlocal unpacked
        unpacked += _unpacked(body, chunk)

    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    if footer < 0:
        raise ValueError("its footer is cut short")
    struct(body, footer, _CHUNKS, add)
    if metadata.num_rows * width > _CELLS or unpacked > _UNPACKED:
        raise PayloadTooLarge(
            f"the Parquet unfolds to {metadata.num_rows} rows of {width} columns in {unpacked} bytes; "
            f"the limits are {_CELLS} cells and {_UNPACKED} bytes",
            hint="send it in parts",
        )


def _unpacked(body: bytes, chunk: Integers) -> int:
    """Bytes that the pages of a column say they unpack to."""
    at = chunk.get(_DATA_AT, -1)
    if 0 < chunk.get(_DICTIONARY_AT, 0) < at:
        at = chunk[_DICTIONARY_AT]
    end = at + chunk.get(_PACKED, -1)
    if not 0 <= at <= end <= len(body):
        raise ValueError("a column lies outside the body")
    total = 0
    while at < end:
        sizes, at = struct(body, at)
        unpacked, packed = sizes.get(_PAGE_UNPACKED, -1), sizes.get(_PAGE_PACKED, -1)
        if unpacked < 0 or packed < 0:
            raise ValueError("a page has no size")
        total += unpacked
        at += packed
    return total
