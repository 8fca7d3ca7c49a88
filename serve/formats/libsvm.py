"""libsvm to a matrix, for requests and for training; and the form in which rows with many missing cells are kept.

A line is `label index:value ...`. A request may omit the label. Training reads `label:weight` and `qid:group` too.
"""

import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from serve.errors import BadRequest
from serve.formats.tables import Matrix, too_large
from serve.http import extent

MOST = (1 << 31) - 2  # the largest index of a column that XGBoost can count
_DENSE = 1 << 20  # cells; short rows of a wide model would fill the memory, so larger matrices may be sparse

# `*+` does not backtrack: a group that can keeps its state for each pair of a long line, 100 bytes for 4 of the body.
_PAIRS = rb"((?:\s+\d{1,15}:[^\s:_]+)*+)"
# Groups: label, weight, query, pairs. In a request the second never matches, because there 1:2 is a pair.
_LABELLED = re.compile(rb"\s([^\s:]+)(?::([^\s:]+))?(?:\s+qid:(\d+))?" + _PAIRS)
_REQUEST = re.compile(rb"(?:\s([^\s:]+)(?!\S))?((?!))?(?:\s+qid:(\d+))?" + _PAIRS)
_DECIMAL = re.compile(rb"([-+]?)(?=\.?\d)(\d*)(?:\.(\d*))?(?:[eE]([-+]?)(\d+))?")
# XGBoost accepts this end of a line in a training file, and takes the next line's label for the value. Here the value
# is missing. The file of AWS's multiclass example has such a line.
_NO_VALUE = re.compile(rb"\s\d{1,15}:$")
_PAIR = re.compile(rb"\d{1,15}:[^\s:_]+")  # 15 digits are exact in a float64


@dataclass(slots=True)
class Lines:
    """The cells of all rows, one after the other; row n has the cells from ends[n] to ends[n + 1]."""

    labels: npt.NDArray[np.float32]  # of a request: empty
    weights: npt.NDArray[np.float32] | None
    queries: npt.NDArray[np.uint64] | None
    columns: npt.NDArray[np.int64]  # as written in the file
    values: npt.NDArray[np.float32]
    ends: npt.NDArray[np.int64]

    def matrix(self, width: int) -> csr_matrix:
        return csr_matrix((self.values, self.columns, self.ends), shape=(len(self.ends) - 1, width))


def read(body: bytes, width: int) -> Matrix | csr_matrix:
    """The rows of a request for a model of `width` features. Large matrices of many missing cells are sparse.

    Index n is the model's feature n, counted from 0, as in the file that XGBoost trained the model on: a file whose
    indices begin with 1 makes a model of one feature more, whose feature 0 is always missing.
    """
    lines = _request(body, width)
    return filled(lines.values, lines.columns, lines.ends, width)


def as_xgboost(body: bytes, width: int = 0) -> csr_matrix:
    """The same rows, sparse, as XGBoost itself reads a file; `width` 0: as many columns as the largest index needs."""
    lines = _request(body, width, xgboosts_number)
    _refuse_infinite(lines.values, lines.columns, lines.ends)
    return lines.matrix(width or int(lines.columns.max(initial=-1)) + 1)


def _request(body: bytes, width: int, number: Callable[[bytes], float] = float) -> Lines:
    """The cells of a request; raises BadRequest for an index that the model does not have, or that a row has twice."""
    if extent.may_exceed(body):
        extent.check(body.count(b"\n") + 1, body.count(b":"))
    lines = _parse(body, labelled=False, number=number)
    largest = int(lines.columns.max(initial=-1))
    if width and largest >= width:
        raise BadRequest(
            f"a row has feature number {largest}; the model has {width} features, numbered from 0 to {width - 1}",
            hint="indices are read as written, as XGBoost reads the training file; subtract 1 from each index if the "
            "model was not trained on libsvm that counts from 1",
        )
    _refuse_uncountable(largest)
    _refuse_repeated(lines)
    return lines


def xgboosts_number(text: bytes) -> float:
    """A number of a libsvm file as XGBoost reads it, which may be the neighbour of the nearest 32-bit number.

    XGBoost adds the fraction to the whole part, and multiplies by powers of ten, in 32-bit numbers (ParseFloat in
    dmlc-core's strtonum.h). 9 of 100 numbers with many digits differ, so a row could take another branch than the same
    row of the training file. Raises ValueError.
    """
    found = _DECIMAL.fullmatch(text)
    if not found or len(found[2]) > 19 or len(found[5] or b"") > 2 or int(found[5] or 0) > 37:
        return float(text)  # nan, or close to the end of the 32-bit numbers
    sign, whole, fraction, minus, exponent = found.groups()
    value = _single(int(whole or 0))
    if fraction:
        digits = fraction[:19]
        value = _single(value + _single(int(digits) / 10 ** len(digits)))
    if exponent:
        scale, left = 1.0, int(exponent)
        while left:
            step = 8 if left >= 8 else 1
            scale, left = _single(scale * 10**step), left - step
        value = _single(value / scale if minus == b"-" else value * scale)
    return -value if sign == b"-" else value


def _single(value: float) -> float:
    """The nearest 32-bit number, or infinity."""
    return array("f", (value,))[0]


def _refuse_repeated(lines: Lines) -> None:
    """Raise BadRequest where a row names a feature twice: XGBoost's readers sum the values, or take the last one."""
    columns = lines.columns
    rows = np.repeat(np.arange(len(lines.ends) - 1), np.diff(lines.ends))
    if ((np.diff(columns) > 0) | (np.diff(rows) > 0)).all():
        return
    order = np.lexsort((columns, rows))
    same = (np.diff(columns[order]) == 0) & (np.diff(rows[order]) == 0)
    if same.any():
        cell = int(order[int(same.argmax())])
        raise BadRequest(f"row {rows[cell] + 1} has feature number {columns[cell]} more than once")


def read_labelled(body: bytes) -> Lines:
    """The rows of a training file; blank lines are skipped. Raises BadRequest, naming row and column."""
    lines = _parse(body, labelled=True)
    _refuse_uncountable(int(lines.columns.max(initial=-1)))
    infinite = np.isinf(lines.values)
    if infinite.any():
        row = int(np.searchsorted(lines.ends, int(infinite.argmax()), "right"))
        raise BadRequest(f"row {row} has a value that is infinite, or too large for a 32-bit number")
    return lines


def _parse(body: bytes, *, labelled: bool, number: Callable[[bytes], float] = float) -> Lines:
    pattern = _LABELLED if labelled else _REQUEST
    # Arrays of 8 bytes a number, where lists take 40.
    labels, weights, queries, ends, cells = array("d"), array("d"), array("q"), array("q", [0]), array("d")
    for row, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\n"), 1):
        text = line.partition(b"#")[0].strip()
        if not text:
            if labelled:
                continue
            raise BadRequest(f"row {row} is empty", hint="a row without features still has a label: 0")
        if labelled and _NO_VALUE.search(text):
            text += b"nan"
        found = pattern.fullmatch(b" " + text)
        if not found:
            _refuse(text, row, labelled)
        label, weight, query, pairs = found.groups()
        try:
            texts: list[Any] = pairs.replace(b":", b" ").split()
            if number is not float:
                texts[1::2] = list(map(number, texts[1::2]))
            cells.extend(map(float, texts))
            target = float(label or 0)
            if labelled:
                labels.append(target)
                weights.append(1.0 if weight is None else float(weight))
                if query is not None:
                    queries.append(int(query))
        except ValueError:
            _refuse(text, row, labelled)
        ends.append(len(cells) // 2)
    if queries and len(queries) != len(labels):
        raise BadRequest("some rows have a qid: and some have none")
    flat = np.frombuffer(cells, np.float64).reshape(-1, 2) if cells else np.empty((0, 2))
    with np.errstate(over="ignore"):  # the caller refuses infinite values
        values, targets = flat[:, 1].astype(np.float32), np.array(labels, np.float64).astype(np.float32)
    return Lines(
        targets,
        np.array(weights, np.float32) if any(weight != 1 for weight in weights) else None,
        np.array(queries, np.uint64) if queries else None,
        flat[:, 0].astype(np.int64),
        values,
        np.array(ends, np.int64),
    )


def _refuse(text: bytes, number: int, labelled: bool) -> NoReturn:
    """Raise BadRequest for the first invalid cell of a line."""
    for place, cell in enumerate(text.split(), 1):
        if place == 1 and (labelled or b":" not in cell):
            parts = cell.split(b":")
            good, wanted = len(parts) <= 2 and all(map(_is_number, parts)), "a label, or label:weight"
        elif place <= 2 and cell.startswith(b"qid:"):
            good, wanted = cell[4:].isdigit(), "qid: and a number"
        else:
            good = bool(_PAIR.fullmatch(cell)) and _is_number(cell.partition(b":")[2])
            wanted = "index:value with a number on both sides"
        if not good:
            raise BadRequest(f"row {number}, column {place}: {cell[:60].decode(errors='replace')!r} is not {wanted}")
    raise BadRequest(f"row {number} is not of the form: label index:value index:value")


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def filled(data: Matrix, columns: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], width: int) -> Any:
    """The matrix of `width` columns whose row n has the cells from ends[n] to ends[n + 1]; all other cells are nan.

    A large matrix with less than a quarter of its cells is sparse. Raises BadRequest for an infinite value.
    """
    _refuse_infinite(data, columns, ends)
    rows = len(ends) - 1
    if rows * width > _DENSE and len(data) * 4 < rows * width:
        return csr_matrix((data, columns, ends), shape=(rows, width))
    matrix = np.full((rows, width), np.nan, np.float32)
    matrix[np.repeat(np.arange(rows), np.diff(ends)), columns] = data
    return matrix


def _refuse_uncountable(largest: int) -> None:
    if largest > MOST:
        raise BadRequest(f"a row has feature number {largest}; {MOST} is the most")


def _refuse_infinite(data: Matrix, columns: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> None:
    infinite = np.isinf(data)
    if infinite.any():
        cell = int(infinite.argmax())
        too_large(int(np.searchsorted(ends, cell, "right")), int(columns[cell]) + 1)
