"""libsvm to a matrix, and how rows with most of their cells missing are kept."""

import re
from array import array
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from serve.errors import BadRequest
from serve.formats.tables import Matrix, too_large

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


# One pass of a compiled pattern tells a good line; a bad one is taken apart to say what is wrong with it.
_LINE = re.compile(rb"([^\s:]+)(?::([^\s:]+))?(?:\s+qid:(\d+))?((?:\s+\d{1,9}:[^\s:_]+)*)\s*")
_PAIR = re.compile(rb"\d{1,9}:[^\s:_]+")


@dataclass(slots=True)
class Lines:
    """The cells of all rows, one after the other; row n has those from ends[n] to ends[n + 1]."""

    labels: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None
    queries: npt.NDArray[np.uint64] | None
    columns: npt.NDArray[np.int64]  # as they are in the file, from 0 or from 1
    values: npt.NDArray[np.float32]
    ends: npt.NDArray[np.int64]

    def matrix(self, first: int, width: int) -> csr_matrix:
        """Of so many columns, of which the file calls the first so."""
        return csr_matrix((self.values, self.columns - first, self.ends), shape=(len(self.labels), width))


def read_labelled(body: bytes) -> Lines:
    """All lines but empty ones. Raises BadRequest, naming line and column."""
    labels, weights, queries, ends, cells = array("d"), array("d"), array("q"), array("q", [0]), array("d")
    for number, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        text = line.partition(b"#")[0].strip()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if not found:
            _wrong(text, number)
        label, weight, query, pairs = found.groups()
        try:
            labels.append(float(label))
            weights.append(1.0 if weight is None else float(weight))
            cells.extend(map(float, pairs.replace(b":", b" ").split()))
        except ValueError:
            _wrong(text, number)
        if query is not None:
            queries.append(int(query))
        ends.append(len(cells) // 2)
    if queries and len(queries) != len(labels):
        raise BadRequest("some rows have a qid: and some have none")
    flat = np.frombuffer(cells, np.float64).reshape(-1, 2) if cells else np.empty((0, 2))
    with np.errstate(over="ignore"):  # `_finite` finds it
        values, targets = flat[:, 1].astype(np.float32), np.array(labels, np.float64).astype(np.float32)
    rows = np.array(ends, np.int64)
    _finite(values, rows)
    return Lines(
        targets,
        np.array(weights, np.float32) if any(weight != 1 for weight in weights) else None,
        np.array(queries, np.uint64) if queries else None,
        flat[:, 0].astype(np.int64),
        values,
        rows,
    )


def _finite(values: npt.NDArray[np.float32], ends: npt.NDArray[np.int64]) -> None:
    infinite = np.isinf(values)
    if infinite.any():
        row = int(np.searchsorted(ends, int(infinite.argmax()), "right"))
        raise BadRequest(f"row {row} has a value that is infinite, or too large for a 32-bit number")


def _wrong(text: bytes, number: int) -> NoReturn:
    first, *rest = text.split()
    for place, cell in enumerate([first, *rest], 1):
        try:
            if place == 1:
                for part in cell.split(b":"):
                    float(part)
                good = cell.count(b":") <= 1
            elif place == 2 and cell.startswith(b"qid:"):
                good = cell[4:].isdigit()
            else:
                good = bool(_PAIR.fullmatch(cell))
                float(cell.partition(b":")[2])
        except ValueError:
            good = False
        if not good:
            wanted = "a label, or label:weight" if place == 1 else "index:value with a number on both sides"
            raise BadRequest(f"row {number}, column {place}: {cell[:60].decode(errors='replace')!r} is not {wanted}")
    raise BadRequest(f"row {number} is not of the form: label index:value index:value")
