"""Rows of numbers: request bytes to a float32 matrix, and float32 to decimals.

Whatever is wrong with the bytes is a 400 that says where. Missing values are nan. `width` is the number of columns
wanted; memory stays within a few times the body.
"""

import math
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from serve.errors import BadRequest
from serve.formats.npy import array
from serve.handlers.base import Request

Matrix = npt.NDArray[np.float32]

SMALL = 8192  # bytes; below it plain Python beats pyarrow, which spends 65 us on a call

MODEL_HAS = "the model has {} features"  # what rows are held against


def csv(body: bytes, width: int, labelled: bool = False, says: str = MODEL_HAS) -> Matrix:
    """Rows separated by newlines, cells by what the first line has of `,;\\t| :`; an empty cell is nan.

    Of labelled rows the first column may be a label, which is left out. `says` is what asks for `width`, in an error.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    # For one column a blank line is a missing value, else it is slack at the ends.
    body = body.strip(b"\r\n") if width > 1 else body.removesuffix(b"\n").removesuffix(b"\r")
    first = body[: body.find(b"\n")] if b"\n" in body else body
    delimiter = b"," if b"," in first else _delimiter(first)
    if first.count(delimiter) + 1 != width:
        if labelled and first.count(delimiter) == width:
            return np.ascontiguousarray(csv(body, width + 1, says=says)[:, 1:])
        _check_cells(first.split(delimiter, 50)[:50], 1)  # a header line is the likelier mistake
        wrong_width(1, first.count(delimiter) + 1, width, says)
    if len(body) > SMALL:
        matrix = _csv_with_arrow(body, delimiter.decode(), width, len(first))
    else:
        matrix = _csv_with_float(body, delimiter, width)
    return finite(_csv_cell_by_cell(body, delimiter, width, says) if matrix is None else matrix)


def csv_width(body: bytes) -> int:
    """The number of cells in the first line."""
    first = body.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").partition(b"\n")[0]
    return first.count(b"," if b"," in first else _delimiter(first)) + 1


def _delimiter(line: bytes) -> bytes:
    """What stands between the cells of a line without commas."""
    return next((bytes([each]) for each in b";\t| :" if each in line.strip()), b",")


def _csv_with_float(body: bytes, delimiter: bytes, width: int) -> Matrix | None:
    if b"_" in body:  # float() reads 1_000
        return None
    try:
        rows = [list(map(float, line.split(delimiter))) for line in body.split(b"\n")]
    except ValueError:
        return None
    if len(rows) > 1 and any(len(row) != width for row in rows):
        return None
    with np.errstate(over="ignore"):  # `finite` finds it
        return np.array(rows, np.float64).astype(np.float32)


def _csv_with_arrow(body: bytes, delimiter: str, width: int, line: int) -> Matrix | None:
    import pyarrow as pa  # here and not above: importing it starts a thread, which a process that forks must not have
    import pyarrow.csv as arrow_csv

    names = list(map(str, range(width)))
    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(body),
            arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=max(1 << 20, 8 * line)),
            arrow_csv.ParseOptions(delimiter=delimiter, ignore_empty_lines=False),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float64()), null_values=[""]),
        )
    except pa.ArrowInvalid:
        return None
    matrix = np.empty((table.num_rows, width), np.float32)
    with np.errstate(over="ignore"):
        for index, column in enumerate(table.columns):
            matrix[:, index] = column.to_numpy()
    return matrix


def _csv_cell_by_cell(body: bytes, delimiter: bytes, width: int, says: str) -> Matrix:
    """The slow way, which knows where it is."""
    lines = body.split(b"\n")
    matrix = np.empty((len(lines), width), np.float32)
    for number, line in enumerate(lines, 1):
        cells = line.removesuffix(b"\r").split(delimiter)
        if len(cells) != width:
            wrong_width(number, len(cells), width, says)
        with np.errstate(over="ignore"):
            matrix[number - 1] = _check_cells(cells, number)
    return matrix


def _check_cells(cells: list[bytes], row: int) -> list[float]:
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
    """A numpy array of one or two dimensions; one dimension is one row."""
    matrix = array(body)
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
    """The same matrix, without infinities."""
    infinite = np.isinf(matrix)
    if infinite.any():
        row, column = divmod(int(infinite.argmax()), matrix.shape[1])
        too_large(row + 1, column + 1)
    return matrix


def too_large(row: int, column: int) -> NoReturn:
    raise BadRequest(f"row {row}, column {column} is infinite, or too large for a 32-bit number")


def decimals(values: Matrix) -> list[str]:
    """The shortest decimals that read back as the same float32, as `str` of numpy's scalars gives them."""
    if len(values) < 256:
        return list(map(str, values))
    import pyarrow as pa  # four times the speed; not above: importing it starts a thread

    texts: list[str] = pa.array(values).cast(pa.string()).to_pylist()
    size = np.abs(values)
    with np.errstate(invalid="ignore"):
        # Elsewhere Arrow writes 1 for 1.0, e-7 for e-07.
        alike = (size > 1e-4) & (size < 1e6) & (values != np.trunc(values))
    for index in np.flatnonzero(~alike).tolist():
        texts[index] = str(values[index])
    return texts


def text(request: Request) -> bytes:
    """The body in UTF-8, whatever charset the request named."""
    if request.charset.lower() in ("utf-8", "utf8", "us-ascii", "ascii"):
        return request.body
    try:
        return request.body.decode(request.charset).encode()
    except (LookupError, ValueError) as error:
        raise BadRequest(f"the body cannot be read with charset {request.charset[:40]!r}") from error


def wrong_width(row: int, found: int, width: int, says: str = MODEL_HAS) -> NoReturn:
    raise BadRequest(f"row {row} has {found} columns; {says.format(width)}")
