"""Parquet files of a training job as a float32 matrix: each column is a feature, in their order; null is nan."""

from pathlib import Path
from typing import Any

import numpy as np

from serve.errors import BadRequest
from serve.formats.tables import Matrix, finite

_CELLS_AT_ONCE = 1 << 20  # decoded cells are float64 until they are copied into the matrix
# Arrow's C++ exceptions that have no Python name become one of these, by Cython's table; most are RuntimeError.
_FROM_CPP = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)


def read(path: Path, width: int, says: str) -> Matrix:
    """The rows of a file of `width` columns, or of as many as it has where `width` is 0.

    `says` is the end of the error for another number of columns; its `{}` stands for `width`. Raises BadRequest.
    """
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pa.parquet.ParquetFile(path) as file:
            width = width or file.metadata.num_columns
            _check_columns(file, width, says)
            return _decoded(file, width)
    except (pa.ArrowException, *_FROM_CPP) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BadRequest(f"invalid Parquet: {reason[:300]}") from error


def _decoded(file: Any, width: int) -> Matrix:
    import pyarrow as pa

    matrix = np.empty((file.metadata.num_rows, width), np.float32)
    start = 0
    for batch in file.iter_batches(batch_size=max(1, _CELLS_AT_ONCE // max(1, width)), use_threads=False):
        end = start + batch.num_rows
        with np.errstate(over="ignore"):  # `finite` reports the cell that became infinite
            for index, column in enumerate(batch.columns):
                matrix[start:end, index] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        start = end
    if start != len(matrix):
        raise BadRequest(f"invalid Parquet: its footer promises {len(matrix)} rows, it has {start}")
    return finite(matrix)


def _check_columns(file: Any, width: int, says: str) -> None:
    from pyarrow import types

    metadata = file.metadata
    if metadata.num_columns != width:
        raise BadRequest(f"the Parquet file has {metadata.num_columns} columns; {says.format(width)}")
    for field in file.schema_arrow:
        kind = field.type
        numeric = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
        if not (numeric or types.is_null(kind)):
            raise BadRequest(f"column {field.name[:60]!r} has type {str(kind)[:60]}; numbers are needed")
    if metadata.num_rows < 1:
        raise BadRequest("the Parquet file has no rows")
