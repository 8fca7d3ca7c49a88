"""libsvm to a matrix, and how rows with most of their cells missing are kept."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from serve.errors import BadRequest
from serve.handlers.tabular import Matrix, too_large

_DENSE = 1 << 20  # cells; where there are more, and most are missing, short rows of a wide model would fill the memory


def read(body: bytes, width: int) -> Matrix | csr_matrix:
    """`[label] index:value ...` a line. Indices count from 0 if a 0 is among them, else from 1. Sparse if large."""
    indices: list[int] = []
    values: list[float] = []
    ends = [0]
    for number, line in enumerate(body.rstrip(b"\r\n").split(b"\n"), 1):
        pairs = line.partition(b"#")[0].split()
        for position, pair in enumerate(pairs):
            index, colon, value = pair.partition(b":")
            if index == b"qid" and colon:
                continue
            try:
                if not colon:
                    float(pair)
                    if position:
                        raise ValueError
                    continue
                if not index.isdigit() or len(index) > 18 or b"_" in value:
                    raise ValueError
                indices.append(int(index))
                values.append(float(value))
            except ValueError:
                shown = pair[:60].decode(errors="replace")
                raise BadRequest(f"row {number}: {shown!r} is not index:value with a number on both sides") from None
        if not pairs:
            raise BadRequest(f"row {number} is empty", hint="a row without features still has a label: 0")
        ends.append(len(indices))
    columns = np.array(indices, np.int64)
    if len(columns) and columns.min() >= 1:
        columns -= 1
    if len(columns) and columns.max() >= width:
        raise BadRequest(f"a row has feature number {max(indices)}; the model has {width} features")
    with np.errstate(over="ignore"):  # `filled` finds it
        data = np.array(values, np.float64).astype(np.float32)
    return filled(data, columns, np.array(ends, np.int64), width)


def filled(data: Matrix, columns: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], width: int) -> Any:
    """Rows from cells one after the other, of which row n has those from ends[n] to ends[n + 1]; the others are nan."""
    infinite = np.isinf(data)
    if infinite.any():
        cell = int(infinite.argmax())
        too_large(int(np.searchsorted(ends, cell, "right")), int(columns[cell]) + 1)
    rows = len(ends) - 1
    if rows * width > _DENSE and len(data) * 4 < rows * width:
        return csr_matrix((data, columns, ends), shape=(rows, width))
    matrix = np.full((rows, width), np.nan, np.float32)
    matrix[np.repeat(np.arange(rows), np.diff(ends)), columns] = data
    return matrix
