"""Rows of numbers to a matrix: CSV and npy; and the decimals of scores.

Errors are BadRequest and name the row and the column. A missing value is nan. Memory stays within a few times the body,
whose rows and cells are counted before they are read (serve.http.extent).
"""

import array
import math
import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from serve.errors import BadRequest
from serve.formats import npy as files
from serve.http import extent

Matrix = npt.NDArray[np.float32]

_BOM = b"\xef\xbb\xbf"
SMALL = 8192  # bytes; for smaller bodies Python is faster than pyarrow, whose call takes 65 us
# Bytes of the body for each column; below it Python is faster again, because pyarrow takes 4 kB and 30 us a column.
_ARROW_COLUMN = 1024

_LINE_END = re.compile(rb"[^\r\n](\r?\n)(?=[^\r\n])")
_ROW = re.compile(r"^row (\d+)")

_numbers = msgspec.json.Decoder(list[float])

MODEL_HAS = "the model has {} features"  # the end of the error for a wrong number of columns


def csv(body: bytes, width: int, labelled: bool = False, says: str = MODEL_HAS) -> Matrix:
    """The rows of a CSV of `width` columns as float32; infinite values are refused.

    The delimiter is a comma if the first line has one, else the first of semicolon, tab, `|`, space and colon that it
    has. An empty cell is nan.

    Args:
        labelled: rows may have a label before their features; it is dropped.
        says: the end of the error for another number of columns; its `{}` stands for `width`.
    """
    if len(body) <= SMALL and (row := _plain_row(body, width)) is not None:
        return row
    body = _without_blank_ends(body.removeprefix(_BOM), width)
    delimiter, columns = _columns(body, width, labelled, says)
    matrix = finite(_read_csv(body, delimiter, columns, np.float32, says))
    return matrix if columns == width else np.ascontiguousarray(matrix[:, 1:])


def _columns(body: bytes, width: int, labelled: bool, says: str) -> tuple[bytes, int]:
    """The delimiter and the number of columns, by the first line: `width`, or one more with a label."""
    first = body[: body.find(b"\n")] if b"\n" in body else body  # _first_line, without a call
    delimiter = b"," if b"," in first else _delimiter(first)
    _refuse_numbered_header(body, first, delimiter)
    found = first.count(delimiter) + 1
    if found != width and not (labelled and found == width + 1):
        _floats(first.split(delimiter, 50)[:50], 1)  # a header line is the more likely mistake
        wrong_width(1, found, width, says)
    return delimiter, found


class CsvPieces:
    """The rows of a large CSV, a piece at a time: all pieces together are what `csv` returns."""

    def __init__(self, body: bytes, width: int, labelled: bool = False) -> None:
        """Raises BadRequest for the first line, as `csv` does."""
        self._body = _without_blank_ends(body.removeprefix(_BOM), width)
        self._width = width
        self._delimiter, self._columns = _columns(self._body, width, labelled, MODEL_HAS)
        self._at = 0
        self._rows = 0  # read so far

    def next(self, size: int) -> Matrix | None:
        """The next rows, of about so many bytes; None behind the last. Raises BadRequest with the row in the body."""
        if self._at >= len(self._body):
            return None
        # Blank lines are errors, unless they are at the ends of the body; so no piece ends or begins with one.
        found = _LINE_END.search(self._body, self._at + size)
        end, following = found.span(1) if found else (len(self._body), len(self._body))
        piece = self._body[self._at : end]
        try:
            matrix = _read_csv(piece, self._delimiter, self._columns, np.float32, MODEL_HAS)
            if matrix.shape[1] != self._columns:  # one row, which is not compared with another
                wrong_width(1, matrix.shape[1], self._columns)
            finite(matrix)
        except BadRequest as error:
            if self._rows:
                error.message = _ROW.sub(lambda row: f"row {int(row[1]) + self._rows}", error.message, count=1)
                error.hint = ""
            raise
        self._at = following
        self._rows += len(matrix)
        return matrix if self._columns == self._width else np.ascontiguousarray(matrix[:, 1:])


def _plain_row(body: bytes, width: int) -> Matrix | None:
    """The matrix of one line of numbers as JSON writes them, in 1 us; None for all other bodies, valid or not."""
    line = body.rstrip(b"\r\n") if width > 1 else body
    if b"\n" in line:
        return None
    try:
        values = _numbers.decode(b"[%b]" % line)
        if len(values) != width or (b"-0" in line and 0.0 in values):  # JSON's -0 is an integer, which has no sign
            return None
        return np.frombuffer(bytearray(_packed(width)(*values)), np.float32).reshape(1, width)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError):  # OverflowError: too large for float32
        return None


@lru_cache(maxsize=4)
def _packed(width: int) -> Callable[..., bytes]:
    return struct.Struct(f"={width}f").pack  # with "=" it refuses what is too large, else it writes infinity


def csv_doubles(body: bytes) -> npt.NDArray[np.float64]:
    """The rows of a CSV as float64, read as by `csv`; its first line has the number of columns. Infinities are kept."""
    body = body.removeprefix(_BOM)
    if not body.strip():
        raise BadRequest("there are no rows")
    width = csv_width(body)
    body = _without_blank_ends(body, width)
    _refuse_numbered_header(body, _first_line(body), _delimiter(_first_line(body)))
    return _read_csv(body, _delimiter(_first_line(body)), width, np.float64, "row 1 has {}")


class NumberedHeader(BadRequest):
    """The first line numbers the columns. The lines must not be read one by one: alone, the first is a row."""


def _refuse_numbered_header(body: bytes, first: bytes, delimiter: bytes) -> None:
    """Raise NumberedHeader where the first line numbers the columns, as pandas does for those without a name.

    Four columns or more, and rows after it: 0,1,2 may well be data.
    """
    if first[:1] not in (b"0", delimiter) or first[1:2] not in (delimiter, b"0"):
        return
    cells = first.strip().split(delimiter)
    numbers = cells[1:] if not cells[0] else cells  # an empty name: pandas' index is a column
    if len(numbers) < 4 or numbers != [b"%d" % number for number in range(len(numbers))] or b"\n" not in body:
        return
    raise NumberedHeader(
        f"row 1 is 0 to {len(numbers) - 1} in order: it seems to be a header line that numbers the columns",
        hint="send the rows without it (pandas: header=False, index=False); write it as 0.0,1,2... if it is data",
    )


def csv_width(body: bytes) -> int:
    """The number of columns of the first line that is not empty."""
    first = _first_line(body.removeprefix(_BOM).lstrip(b"\r\n"))
    return first.count(_delimiter(first)) + 1


def _without_blank_ends(body: bytes, width: int) -> bytes:
    """The body without blank lines at its ends. With one column a blank line is a missing value, so it stays."""
    return body.strip(b"\r\n") if width > 1 else body.removesuffix(b"\n").removesuffix(b"\r")


def _first_line(body: bytes) -> bytes:
    return body[: body.find(b"\n")] if b"\n" in body else body


def _delimiter(line: bytes) -> bytes:
    if b"," in line:
        return b","
    return next((bytes([each]) for each in b";\t| :" if each in line.strip()), b",")


def _read_csv(body: bytes, delimiter: bytes, width: int, dtype: npt.DTypeLike, says: str) -> npt.NDArray[Any]:
    if extent.may_exceed(body):
        rows = body.count(b"\n") + 1
        extent.check(rows, body.count(delimiter) + rows)
    if len(body) <= SMALL:
        matrix = _csv_with_float(body, delimiter, width, dtype)
    elif len(body) >= _ARROW_COLUMN * width:
        matrix = _csv_with_arrow(body, delimiter.decode(), width, dtype)
    else:
        matrix = None
    return _csv_by_line(body, delimiter, width, dtype, says) if matrix is None else matrix


def _csv_with_float(body: bytes, delimiter: bytes, width: int, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
    """The matrix of a small body whose cells `float` reads; else None."""
    if b"_" in body:  # float() reads 1_000
        return None
    try:
        rows = [list(map(float, line.split(delimiter))) for line in body.split(b"\n")]
    except ValueError:
        return None
    if len(rows) > 1 and any(len(row) != width for row in rows):
        return None
    with np.errstate(over="ignore"):  # `finite` reports the cell
        return np.array(rows, np.float64).astype(dtype, copy=False)


def _csv_with_arrow(body: bytes, delimiter: str, width: int, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
    """The matrix of a body that pyarrow reads; else None."""
    import pyarrow as pa  # not at the top: the import starts a thread, and the forkserver must not have threads
    import pyarrow.csv as arrow_csv

    names = list(map(str, range(width)))
    block_size = max(1 << 20, 8 * len(_first_line(body)))
    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(body),
            arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=block_size),
            arrow_csv.ParseOptions(delimiter=delimiter, ignore_empty_lines=False),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float64()), null_values=[""]),
        )
    except pa.ArrowInvalid:
        return None
    matrix = np.empty((table.num_rows, width), dtype)
    with np.errstate(over="ignore"):
        for index, column in enumerate(table.columns):
            begin = 0
            for chunk in column.chunks:
                matrix[begin : begin + len(chunk), index] = _doubles(chunk)
                begin += len(chunk)
    return matrix


def _doubles(chunk: Any) -> npt.NDArray[np.float64]:
    """The numbers of an Arrow array of float64; nulls are NaN.

    Read from its buffers: `to_numpy` and `fill_null` import pandas where it is installed, some 75 MB for each runner.
    """
    validity, data = chunk.buffers()
    part = slice(chunk.offset, chunk.offset + len(chunk))
    values = np.frombuffer(data, np.float64)[part]
    if not chunk.null_count:
        return values
    valid = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[part]
    return np.where(valid, values, np.nan)


def _csv_by_line(body: bytes, delimiter: bytes, width: int, dtype: npt.DTypeLike, says: str) -> npt.NDArray[Any]:
    """The matrix of any body. Raises BadRequest with the row and the column.

    The cells are collected in an array that grows: a matrix allocated by its width would take terabytes for a wide
    first line and many short lines.
    """
    cells = array.array("d")
    for number, line in enumerate(body.split(b"\n"), 1):
        row = line.removesuffix(b"\r").split(delimiter)
        if len(row) != width:
            wrong_width(number, len(row), width, says)
        try:
            if b"_" in line:
                raise ValueError
            values = list(map(float, row))
        except ValueError:
            values = _floats(row, number)
        cells.extend(values)
    with np.errstate(over="ignore"):
        return np.frombuffer(cells).astype(dtype, copy=False).reshape(-1, width)


def _floats(cells: list[bytes], row: int) -> list[float]:
    """The numbers of the cells of one row, which may be empty or quoted. Raises BadRequest."""
    values = []
    for column, cell in enumerate(cells, 1):
        text = cell.strip()
        if len(text) > 1 and text[:1] == text[-1:] == b'"':
            text = text[1:-1].strip()
        try:
            if b"_" in text:
                raise ValueError
            values.append(float(text) if text else math.nan)
        except ValueError:
            shown = text[:60].decode(errors="replace")
            raise BadRequest(
                f"row {row}, column {column}: {shown!r} is not a number",
                hint="send rows of numbers, without a header line" if row == 1 else "",
            ) from None
    return values


def npy(body: bytes, width: int) -> Matrix:
    """The rows of a .npy file of one or two dimensions as float32; one dimension is one row."""
    matrix = files.array(body)
    if matrix.ndim not in (1, 2) or matrix.dtype.kind == "c":
        raise BadRequest(f"the array has {matrix.ndim} dimensions of {matrix.dtype}; rows of real numbers are needed")
    matrix = matrix.reshape(1, -1) if matrix.ndim == 1 else matrix
    if matrix.shape[1] != width:
        wrong_width(1, matrix.shape[1], width)
    if not len(matrix):
        raise BadRequest("there are no rows")
    with np.errstate(over="ignore"):
        return finite(np.require(matrix, np.float32, ["C", "A"]))


def finite(matrix: Matrix) -> Matrix:
    """The same matrix. Raises BadRequest for the first infinite value."""
    infinite = np.isinf(matrix)
    if infinite.any():
        row, column = divmod(int(infinite.argmax()), matrix.shape[1])
        too_large(row + 1, column + 1)
    return matrix


def too_large(row: int, column: int) -> NoReturn:
    raise BadRequest(f"row {row}, column {column} is infinite, or too large for a 32-bit number")


def wrong_width(row: int, found: int, width: int, says: str = MODEL_HAS) -> NoReturn:
    raise BadRequest(f"row {row} has {found} columns; {says.format(width)}")


def decimals(values: Matrix) -> list[str]:
    """The shortest decimals that read back as the same float32, in the form of `str` of numpy's scalars."""
    if len(values) < 256:
        return list(map(str, values))
    import pyarrow as pa  # four times as fast; not at the top: the import starts a thread

    # pa.array(values) would import pandas where it is installed, some 75 MB for each runner.
    array = pa.Array.from_buffers(pa.float32(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
    texts: list[str] = array.cast(pa.string()).to_pylist()
    size = np.abs(values)
    with np.errstate(invalid="ignore"):
        # Other values have another form: Arrow writes 1 for 1.0, and e-7 for e-07.
        alike = (size > 1e-4) & (size < 1e6) & (values != np.trunc(values))
    for index in np.flatnonzero(~alike).tolist():
        texts[index] = str(values[index])
    return texts
