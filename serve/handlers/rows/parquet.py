"""Parquet to a float32 matrix: each column is a feature, in their order; null is nan.

A few bytes of Parquet can stand for any number of rows, and a page unpacks to whatever its header says; so rows,
columns and the sizes of all pages are added up before anything is decoded, and what is too much is a 413.
"""

from pathlib import Path
from typing import Any

import numpy as np

from serve.errors import BadRequest, PayloadTooLarge
from serve.handlers.rows.tabular import MODEL_HAS, Matrix, finite

_CELLS = 1 << 25  # 128 MB of float32
_UNPACKED = 1 << 28  # bytes: those cells as float64
_AT_ONCE = 1 << 20  # cells decoded at a time
_METADATA = 1 << 20  # bytes of its strings, and elements of its lists

# Thrift's compact protocol, in which page headers are written (github.com/apache/thrift/blob/master/doc/specs).
_STOP, _TRUE, _FALSE, _BYTE, _I64, _DOUBLE, _BINARY, _STRUCT = 0, 1, 2, 3, 6, 7, 8, 12
_DEEPEST = 8  # a page header goes 3 deep


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
    except (pa.ArrowException, OSError, OverflowError, ValueError, IndexError) as error:
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
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
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
    chunks = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    unpacked = sum(_unpacked(body, each) for each in chunks)
    if metadata.num_rows * width > _CELLS or unpacked > _UNPACKED:
        raise PayloadTooLarge(
            f"the Parquet unfolds to {metadata.num_rows} rows of {width} columns in {unpacked} bytes; "
            f"the limits are {_CELLS} cells and {_UNPACKED} bytes",
            hint="send it in parts",
        )


def _unpacked(body: bytes, chunk: Any) -> int:
    """Bytes that the pages of a column say they unpack to."""
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    if not 0 <= at <= end <= len(body):
        raise ValueError("a column lies outside the body")
    total = 0
    while at < end:
        sizes: dict[int, int] = {}
        at = _struct(body, at, 0, sizes)
        unpacked, packed = sizes.get(2, -1), sizes.get(3, -1)
        if unpacked < 0 or packed < 0:
            raise ValueError("a page has no size")
        total += unpacked
        at += packed
    return total


def _struct(body: bytes, at: int, depth: int, integers: dict[int, int]) -> int:
    """Where a struct ends that begins at `at`; its own integer fields by number."""
    if depth > _DEEPEST:
        raise ValueError("a page header is nested too deeply")
    field = 0
    while body[at] != _STOP:
        kind, delta = body[at] & 15, body[at] >> 4
        at += 1
        if delta:
            field += delta
        else:
            number, at = _varint(body, at)
            field = _zigzag(number)
        if _BYTE < kind <= _I64:
            number, at = _varint(body, at)
            integers[field] = _zigzag(number)
        else:
            at = _skip(body, at, kind, depth)
    return at + 1


def _skip(body: bytes, at: int, kind: int, depth: int) -> int:
    if kind in (_TRUE, _FALSE):
        return at
    if kind == _BYTE:
        return at + 1
    if kind == _DOUBLE:
        return at + 8
    if kind == _STRUCT:
        return _struct(body, at, depth + 1, {})
    if kind == _BINARY:
        length, at = _varint(body, at)
        return at + length
    raise ValueError("a page header is not one of Parquet's")  # which has no lists, sets and maps


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (body[at + shift // 7] & 0x7F) << shift
        if body[at + shift // 7] < 0x80:
            return value, at + shift // 7 + 1
    raise ValueError("a page header has a number too long")


def _zigzag(number: int) -> int:
    return number >> 1 ^ -(number & 1)
