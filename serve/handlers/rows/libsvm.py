"""libsvm to a matrix, and how rows with most of their cells missing are kept."""

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from serve.errors import BadRequest
from serve.handlers.rows.tabular import Matrix, too_large

MOST = (1 << 31) - 2  # index of a column that XGBoost can count
_DENSE = 1 << 20  # cells; where there are more, and most are missing, short rows of a wide model would fill the memory


def read(body: bytes, width: int) -> Matrix | csr_matrix:
    """`[label] index:value ...` a line. Indices count from 0 if a 0 is among them, else from 1. Sparse if large."""
    data, columns, ends = _cells(body)
    largest = int(columns.max(initial=-1))
    if len(columns) and columns.min() >= 1:
        columns -= 1
    if len(columns) and columns.max() >= width:
        raise BadRequest(f"a row has feature number {largest}; the model has {width} features")
    return filled(data, columns, ends, width)


def as_written(body: bytes, width: int = 0) -> csr_matrix:
    """The same with indices from 0, as XGBoost itself reads a file; `width` columns, or as many as there are if 0."""
    data, columns, ends = _cells(body)
    largest = int(columns.max(initial=-1))
    if largest > MOST or (width and largest >= width):
        has = f"the model has {width} features, counted from 0" if width else f"{MOST} is the most"
        raise BadRequest(f"a row has feature number {largest}; {has}")
    _refuse_infinite(data, columns, ends)
    return csr_matrix((data, columns, ends), shape=(len(ends) - 1, width or largest + 1))


def _cells(body: bytes) -> tuple[Matrix, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The values of all rows, the index of each, and where each row ends."""
    indices, values, ends = array("q"), array("d"), array("q", [0])  # 8 bytes each, where lists take 40
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
    with np.errstate(over="ignore"):  # `_refuse_infinite` finds it
        data = np.array(values, np.float64).astype(np.float32)
    return data, np.array(indices, np.int64), np.array(ends, np.int64)


def filled(data: Matrix, columns: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], width: int) -> Any:
    """Rows from cells one after the other, of which row n has those from ends[n] to ends[n + 1]; the others are nan."""
    _refuse_infinite(data, columns, ends)
    rows = len(ends) - 1
    if rows * width > _DENSE and len(data) * 4 < rows * width:
        return csr_matrix((data, columns, ends), shape=(rows, width))
    matrix = np.full((rows, width), np.nan, np.float32)
    matrix[np.repeat(np.arange(rows), np.diff(ends)), columns] = data
    return matrix


def _refuse_infinite(data: Matrix, columns: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
    infinite = np.isinf(data)
    if infinite.any():
        cell = int(infinite.argmax())
        too_large(int(np.searchsorted(ends, cell, "right")), int(columns[cell]) + 1)
