"""Request bytes become the right float32 matrix, or a 400 that says where they are wrong."""

import io
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import BadRequest
from serve.formats import instances, libsvm, tables

NAN = float("nan")
LARGE = 2000  # rows enough to leave the way of small bodies


def matrix(rows: list[list[float]]) -> Any:
    return np.array(rows, np.float32)


def same(found: Any, wanted: Any) -> bool:
    return bool(found.dtype == np.float32 and found.shape == wanted.shape and np.array_equal(found, wanted, True))


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"1,2,3", [[1, 2, 3]]),
        (b"1,2,3\n", [[1, 2, 3]]),
        (b"1,2,3\r\n4,5,6\r\n", [[1, 2, 3], [4, 5, 6]]),
        (b"1;2.5;-3e2\n4;5;6", [[1, 2.5, -300], [4, 5, 6]]),
        (b"1\t2\t3\n", [[1, 2, 3]]),
        (b" 1 , 2,3 \n", [[1, 2, 3]]),
        (b"1,,3\n,,\n", [[1, NAN, 3], [NAN, NAN, NAN]]),
        (b"1,nan,NaN\n", [[1, NAN, NAN]]),
        (b'"1","2",""\n', [[1, 2, NAN]]),
        (b"\xef\xbb\xbf1,2,3\n", [[1, 2, 3]]),
        (b"1,2,3\n\n\n", [[1, 2, 3]]),
    ],
)
def test_a_csv_reads_the_same_however_long_it_is(body: bytes, rows: list[list[float]]) -> None:
    """What a short body means does not depend on which parser its length selects."""
    assert same(tables.csv(body, 3), matrix(rows))

    block = body.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") + b"\n"
    assert same(tables.csv(block * LARGE, 3), np.tile(matrix(rows), (LARGE, 1)))


def test_few_wide_rows_read_like_many_narrow_ones() -> None:
    """pyarrow would take more memory for 3,000 columns than for the body; the rows are read line by line instead."""
    cells = [str(number / 8) for number in range(3000)]
    wanted = np.tile(np.array(cells, np.float32), (4, 1))
    wanted[1, 2] = NAN
    rows = [",".join(cells)] * 4
    rows[1] = ",".join([*cells[:2], "", '"0.375"', *cells[4:]])
    body = "\r\n".join(rows).encode()
    assert tables.SMALL < len(body) < 1024 * 3000
    assert same(tables.csv(body, 3000), wanted)
    with pytest.raises(BadRequest, match=r"^row 3, column 7: '1_0' is not a number$"):
        tables.csv("\n".join([*rows[:2], ",".join([*cells[:6], "1_0", *cells[7:]])]).encode(), 3000)


def test_doubles_are_read_like_floats() -> None:
    """With the same delimiters and errors, as wide as the first line; and infinite values are kept."""
    for body in (b"1;2.5\n-inf;", b"1\t2.5\r\n-inf\t\r\n", b"\xef\xbb\xbf1,2.5\n-inf,\n"):
        assert np.array_equal(tables.csv_doubles(body), [[1, 2.5], [-np.inf, NAN]], equal_nan=True)
        many = body.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") + b"\n"
        assert tables.csv_doubles(many * LARGE).shape == (2 * LARGE, 2)
    assert tables.csv_doubles(b"0.1,0.2").dtype == np.float64
    with pytest.raises(BadRequest, match=r"^row 2 has 1 columns; row 1 has 2$"):
        tables.csv_doubles(b"1,2\n3")


def test_a_cell_is_rounded_once_from_double() -> None:
    """The nearest float32 of the decimal's double, as numpy makes it, on either way."""
    cells = [f"{value!r}" for value in np.random.default_rng(0).normal(size=6000).tolist()]
    wanted = np.array(cells, np.float64).astype(np.float32)
    assert same(tables.csv("\n".join(cells).encode(), 1), wanted.reshape(-1, 1))
    assert same(tables.csv(",".join(cells[:300]).encode(), 300), wanted[:300].reshape(1, -1))


def test_with_one_column_a_blank_line_is_a_missing_value() -> None:
    """Only the newline that ends the last row is taken off, so that rows and answers stay in step."""
    assert same(tables.csv(b"1\n\n3\n", 1), matrix([[1], [NAN], [3]]))
    assert same(tables.csv(b"1\n\n3\n" * 4000, 1), np.tile(matrix([[1], [NAN], [3]]), (4000, 1)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"age,height,size\n1,2,3\n", "row 1, column 1: 'age' is not a number"),
        (b"age,height\n1,2,3\n", "row 1, column 1: 'age' is not a number"),
        (b"1,2\n", "row 1 has 2 columns; the model has 3 features"),
        (b"1,2,3\n1,2,3,4\n", "row 2 has 4 columns; the model has 3 features"),
        (b"1,2,3\n\n1,2,3\n", "row 2 has 1 columns; the model has 3 features"),
        (b"1,2,3\n1,x,3\n", "row 2, column 2: 'x' is not a number"),
        (b"1,2,1_000\n", "row 1, column 3: '1_000' is not a number"),
        (b"1,2,\xff\n", "row 1, column 3: '\ufffd' is not a number"),
        (b"1,2,inf\n", "row 1, column 3 is infinite, or too large for a 32-bit number"),
        (b"1,2,3\n1,1e39,3\n", "row 2, column 2 is infinite, or too large for a 32-bit number"),
        (b"\n", "row 1 has 1 columns; the model has 3 features"),
        (b"," * 1_000_000, "row 1 has 1000001 columns; the model has 3 features"),
    ],
)
def test_a_wrong_csv_is_told_where(body: bytes, message: str) -> None:
    """Row, column and cell, at the end of a long body as at the start of a short one."""
    with pytest.raises(BadRequest, match=f"^{re.escape(message)}$"):
        tables.csv(body, 3)


@pytest.mark.parametrize("size", [1, 10, 1000, 30_000])
@pytest.mark.parametrize(
    ("block", "width"),
    [
        (b"1,2,3\n", 3),
        (b"1,2,3\r\n4,5,6\r\n", 3),
        (b"1;2.5;-3e2\n4;5;6\n", 3),
        (b"1,,3\n,,\n", 3),
        (b"1\n\n3\n", 1),
        (b"7,1,2,3\n", 3),  # with a label
        (b"0,1,2,3,4\n", 5),
    ],
)
def test_pieces_of_a_csv_are_the_whole(block: bytes, width: int, size: int) -> None:
    """Of any size, with any ends of lines; the row after the first may well number the columns."""
    first = b"9,9,9,9,9\n" if width == 5 else b""
    body = b"\n\n" * (width > 1) + first + block * (LARGE if size > 10 else 40) + b"\n\n" * (width > 1)
    pieces, found = tables.CsvPieces(body, width, labelled=True), []
    while (matrix := pieces.next(size)) is not None:
        found.append(matrix)
    assert same(np.concatenate(found), tables.csv(body, width, labelled=True))
    assert len(found) > 1 or size >= len(body)


def read_all(pieces: tables.CsvPieces, size: int) -> None:
    while pieces.next(size) is not None:
        pass


@pytest.mark.parametrize("bad", [b"1,2\n", b"1,2,x\n", b"1,2,inf\n", b"1,2,3,4\n"])
def test_pieces_of_a_csv_are_refused_as_the_whole(bad: bytes) -> None:
    """With the row in the body."""
    body = b"1,2,3\n" * 1000 + bad + b"1,2,3\n" * 1000
    with pytest.raises(BadRequest) as whole:
        tables.csv(body, 3)
    for size in (1, 500, 5000, 100_000):
        pieces = tables.CsvPieces(body, 3)
        with pytest.raises(BadRequest) as piece:
            read_all(pieces, size)
        assert (piece.value.message, piece.value.hint) == (whole.value.message, whole.value.hint)
    with pytest.raises(BadRequest, match="row 1 has 2 columns"):
        tables.CsvPieces(b"1,2\n1,2,3\n", 3)
    with pytest.raises(BadRequest, match="row 1, column 1: 'age' is not a number"):
        tables.CsvPieces(b"age,height,size\n1,2,3\n", 3).next(1)


def test_the_last_of_many_rows_is_told_too() -> None:
    """The fast parser's failures are looked up by the thorough one."""
    good = b"1,2,3\n" * LARGE
    for last, message in [
        (b"1,2,x", f"row {LARGE + 1}, column 3: 'x' is not a number"),
        (b"1,2", f"row {LARGE + 1} has 2 columns; the model has 3 features"),
        (b"1,1e999,3", f"row {LARGE + 1}, column 2 is infinite, or too large for a 32-bit number"),
    ]:
        with pytest.raises(BadRequest, match=f"^{re.escape(message)}$"):
            tables.csv(good + last, 3)


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"1 0:0.5 2:2\n0 1:7\n", [[0.5, NAN, 2], [NAN, 7, NAN]]),
        (b"1:0.5 2:2\n1:7", [[NAN, 0.5, 2], [NAN, 7, NAN]]),
        (b"1 2:0.5 1:7\n", [[NAN, 7, 0.5]]),
        (b"1 qid:4 1:0.5 # a comment\n", [[NAN, 0.5, NAN]]),
        (b"-1\n+1 1:1\n", [[NAN, NAN, NAN], [NAN, 1, NAN]]),
    ],
)
def test_libsvm_indices_are_read_as_written(body: bytes, rows: list[list[float]]) -> None:
    """Features that are not named are missing; labels and query ids are passed over."""
    assert same(libsvm.read(body, 3), matrix(rows))


@pytest.mark.peer("xgboost")
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1.4385", "0x1.7041880000000p+0"),
        ("1.7015", "0x1.b395800000000p+0"),
        ("2.3305", "0x1.2a4dd40000000p+1"),
        ("-1.1785", "-0x1.2db22c0000000p+0"),
        ("1.63", "0x1.a147ae0000000p+0"),
        ("0.1", "0x1.99999a0000000p-4"),
        ("16777217", "0x1.0000000000000p+24"),
        ("3.141592653589793238462643", "0x1.921fb60000000p+1"),
        ("1.234e-3", "0x1.437c560000000p-10"),
        ("-2.5E+2", "-0x1.f400000000000p+7"),
        ("7.89e-20", "0x1.74983e0000000p-64"),
        ("9.99e9", "0x1.29b9a60000000p+33"),
        ("5.", "0x1.4000000000000p+2"),
        (".5", "0x1.0000000000000p-1"),
    ],
)
def test_a_dmatrix_of_libsvm_has_the_numbers_that_xgboost_reads(text: str, wanted: str) -> None:
    """Recorded with XGBoost 1.7.4 and 3.0.5 (a file, and get_data); some are not the nearest 32-bit numbers."""
    assert libsvm.as_xgboost(f"1 0:{text}".encode()).data.tolist() == [float.fromhex(wanted)]


@pytest.mark.parametrize(
    "text", [b"1" * 400, b"1e38" + b"9" * 50, b"0e99", b"1e-99", b".", b"e5", b"1e", b"--1", b"nan"]
)
def test_no_text_of_a_number_ends_in_another_error(text: bytes) -> None:
    """The readers of requests agree on what is no number."""
    outcomes: list[bool | None] = []
    for read in (libsvm.as_xgboost, lambda body: libsvm.read(body, 1)):
        try:
            outcomes.append(bool(np.isnan(read(b"1 0:" + text).sum())))
        except BadRequest:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


def test_much_libsvm_stays_sparse() -> None:
    """Its cells are those of the same rows read one by one."""
    found: Any = libsvm.read(b"1 0:0.5 999:2\n0 1:7\n" * 1000, 1000)
    found = found.tocoo()
    dense = np.full(found.shape, np.nan, np.float32)
    dense[found.row, found.col] = found.data
    assert same(dense, np.tile(libsvm.read(b"1 0:0.5 999:2\n0 1:7\n", 1000), (1000, 1)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"1 3:1\n", "a row has feature number 3; the model has 3 features, numbered from 0 to 2"),
        (b"1 1:1\n0 2:1 0:1 2:1\n", "row 2 has feature number 2 more than once"),
        (b"1 1:1 2:\n", "row 1, column 3: '2:' is not index:value with a number on both sides"),
        (b"1 a:1\n", "row 1, column 2: 'a:1' is not index:value with a number on both sides"),
        (b"1 1:1\n1 2:x\n", "row 2, column 2: '2:x' is not index:value with a number on both sides"),
        (b"1 2 3\n", "row 1, column 2: '2' is not index:value with a number on both sides"),
        (b"1 -1:3\n", "row 1, column 2: '-1:3' is not index:value with a number on both sides"),
        (
            b"1 99999999999999999999:3\n",
            "row 1, column 2: '99999999999999999999:3' is not index:value with a number on both sides",
        ),
        (b"\xff\xfe", "row 1, column 1: '\ufffd\ufffd' is not a label, or label:weight"),
        (b"1 1:1\n\n1 1:1\n", "row 2 is empty"),
        (b"1 1:inf", "row 1, column 2 is infinite, or too large for a 32-bit number"),
    ],
)
def test_wrong_libsvm_is_told_where(body: bytes, message: str) -> None:
    """The row and what stands there."""
    with pytest.raises(BadRequest, match=f"^{re.escape(message)}$"):
        libsvm.read(body, 3)


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"[1, 2, 3]", [[1, 2, 3]]),
        (b"[[1, 2, null], [4, 5, 6.5]]", [[1, 2, NAN], [4, 5, 6.5]]),
        (b' {"instances": [[1, 2, 3]]}', [[1, 2, 3]]),
        (b'{"instances": [{"features": [1, 2, 3]}, {"features": [4, 5, 6]}]}', [[1, 2, 3], [4, 5, 6]]),
        (b'{"instances": [{"data": {"features": {"values": [1, 2, 3]}}}]}', [[1, 2, 3]]),
        (b'{"instances": [{"data": {"features": {"keys": [2], "shape": [3], "values": [9]}}}]}', [[NAN, NAN, 9]]),
        (b'{"features": [1, 2, 3]}', [[1, 2, 3]]),
        (b'{"inputs": [[1, 2, 3]], "kind": "trees"}', [[1, 2, 3]]),
        (b'{"kind": "trees", "inputs": [1, 2, 3]}', [[1, 2, 3]]),
    ],
)
def test_json_rows_have_the_shapes_of_the_built_in_algorithms(body: bytes, rows: list[list[float]]) -> None:
    """null is missing, and the key that chose the model is passed over."""
    assert same(instances.rows(body, 3, "kind"), matrix(rows))


def test_json_lines_hold_one_record_each() -> None:
    """As SageMaker's batch jobs split them."""
    assert same(instances.lines(b'[1, 2]\n{"features": [3, null]}\n', 2, "kind"), matrix([[1, 2], [3, NAN]]))


def test_wrong_json_lines_are_told_by_their_line() -> None:
    """Of a line by itself there is nothing to tell."""
    for body, message in [
        (b"[1, 2]\n[1]\n", "row 2 has 1 columns; the model has 2 features"),
        (b"[1, 2]\n\n[3, 4]\n", "line 2: the body is empty"),
        (b"[1]\n", "row 1 has 1 columns; the model has 2 features"),
    ]:
        with pytest.raises(BadRequest, match=f"^{re.escape(message)}$"):
            instances.lines(body, 2, "kind")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[[1, 2, 3], [4, 5]]", "row 2 has 2 columns; the model has 3 features"),
        (b'[[1, 2, "x"]]', "the JSON is not rows of numbers: Expected `float | null`, got `str` - at `$[0][2]`"),
        (b"[[1, 2, true]]", "the JSON is not rows of numbers: Expected `float | null`, got `bool` - at `$[0][2]`"),
        (b"[]", "row 1 has 0 columns; the model has 3 features"),
        (b"[[]]", "row 1 has 0 columns; the model has 3 features"),
        (b'{"instances": [[1, 2, 3]], "extra": 1}', "the object's keys are 'instances', 'extra'"),
        (b'{"rows": [[1, 2, 3]]}', "the object's keys are 'rows'"),
        (b"{}", "the object's keys are missing"),
        (b'{"instances": [{}]}', "row 1 needs either features or data.features.values"),
        (
            b'{"instances": [{"data": {"features": {"keys": [3], "values": [9]}}}]}',
            "row 1 needs as many keys as values, each from 0 to 2",
        ),
        (b"[[1, 2, 1e39]]", "row 1, column 3 is infinite, or too large for a 32-bit number"),
        (b"7", "the JSON is not rows of numbers: Expected `array`, got `int`"),
    ],
)
def test_wrong_json_is_told_where(body: bytes, message: str) -> None:
    """The path of what is wrong, or both widths."""
    with pytest.raises(BadRequest, match=f"^{re.escape(message)}$"):
        instances.rows(body, 3, "kind")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[[1, 2, NaN]]",
        b"[[1, 2, Infinity]]",
        b"[[1, 2, 3]",
        b"[" * 10_000,
        b"[" * 1_000_000,
        b'{"instances": ' + b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
        b'"\xff"',
        b'{"\xff": 1}',
        b'[{"\xff": 1}]',
        b"[[1, 2, 1" + b"0" * 400 + b"]]",
        b"[" + b"[]," * 100_000 + b"[]]",
    ],
)
def test_hostile_json_is_a_400(body: bytes) -> None:
    """Whatever the bytes."""
    with pytest.raises(BadRequest):
        instances.rows(body, 3, "kind")


def test_many_short_instances_of_a_wide_model_stay_sparse() -> None:
    """In JSON and in its lines, or a few bytes would fill the memory; among them may be whole ones, and missing."""
    row = b'{"data": {"features": {"keys": [2, 7], "shape": [20000], "values": [9, null]}}}'
    whole = b'{"features": [' + b"1," * 19_999 + b"null]}"
    for read, body in (
        (instances.rows, b'{"instances": [' + b",".join([whole, *[row] * 1000]) + b"]}"),
        (instances.lines, b"\n".join([whole, *[row] * 1000])),
    ):
        tracemalloc.start()
        found: Any = read(body, 20_000, "kind")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (found.shape, found.nnz, found[1000, 2], found[0, 3]) == ((1001, 20_000), 22_000, 9, 1)
        assert np.isnan(found[1000, 7])
        assert peak < 40 * len(body)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "i8", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_of_numbers_is_read(dtype: str, order: Any) -> None:
    """Any real type and order; one dimension is one row."""
    array = np.array([[0, 1, 1], [1, 0, 0]], dtype, order=order)
    assert same(tables.npy(npy(array), 3), array.astype(np.float32))
    assert same(tables.npy(npy(array[0]), 3), array[:1].astype(np.float32))


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        b"\x80\x04N.",
        npy(np.zeros((2, 3), np.float32))[:-1],
        npy(np.zeros((2, 3), np.float32)) + b"\0",
        npy(np.zeros((2, 4), np.float32)),
        npy(np.zeros((0, 3), np.float32)),
        npy(np.zeros((1, 1, 3), np.float32)),
        npy(np.float32(1)),
        npy(np.zeros((1, 3), complex)),
        npy(np.array([["a", "b", "c"]])),
        npy(np.array([[1, None, 3]], object), allow_pickle=True),
        npy(np.array([[1, 2, np.inf]])),
        header("(1000000000000, 3)") + b"\0" * 12,
        header("(-1, 3)") + b"\0" * 12,
        header("(" * 3000),
        header("(1, 3)", "'O'") + b"\0" * 24,
        header("(1, 3)", "[('a', 'O')]") + b"\0" * 24,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    ],
)
def test_a_hostile_npy_is_a_400(body: bytes) -> None:
    """Objects (pickles), promises of terabytes, and files cut short: nothing of them is opened or allocated."""
    with pytest.raises(BadRequest):
        tables.npy(body, 3)


def test_memory_stays_within_a_few_times_the_body() -> None:
    """The smallest of cells are the most wasteful, and still cost no more than tens of bytes."""
    for read, body in [
        (lambda body: tables.csv(body, 3), b"1,2,3\n" * 30_000),
        (lambda body: instances.rows(body, 3, "kind"), b"[" + b"[1,2,3]," * 30_000 + b"[1,2,3]]"),
        (lambda body: libsvm.read(body, 100_000), b"0\n" * 30_000),
        (libsvm.as_xgboost, b"1 " + b" ".join(b"%d:1" % n for n in range(30_000))),
    ]:
        peaks = []
        for _ in range(3):  # the first may import something, and another thread's memory counts too
            tracemalloc.start()
            read(body)  # type: ignore[no-untyped-call]
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert min(peaks) < 40 * len(body)


def test_decimals_are_the_shortest_that_read_back() -> None:
    """A long array prints as its values do one by one, in the form of numpy's scalars."""
    generator = np.random.default_rng(0)
    values = np.concatenate(
        [
            generator.random(2000).astype(np.float32),
            generator.integers(0, 2**32, 20_000, np.uint32).view(np.float32),  # every kind of bit pattern
            np.array([0, -0.0, 1, -1, 1e-4, 9.9e-5, 1e6, 1e7, 1e15, 1e16, 16777216, NAN, np.inf, -np.inf], np.float32),
        ]
    )
    wanted = [str(value) for value in values]
    assert tables.decimals(values) == wanted
    assert tables.decimals(values[-14:]) == wanted[-14:]
    assert np.array_equal(np.array(wanted, np.float64).astype(np.float32), values, equal_nan=True)


@pytest.mark.peer(
    "xgboost-container",
    differs="the container scores such a line as a row, which is one answer too many",
)
@pytest.mark.parametrize("reads", [lambda body: tables.csv(body, 5), tables.csv_doubles], ids=["csv", "csv_doubles"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("between", [b",", b";", b"\t"])
def test_a_header_line_that_numbers_the_columns_is_no_row(
    reads: Callable[[bytes], Any], end: bytes, between: bytes
) -> None:
    """pandas writes 0 to n - 1 as the names of columns without one; such a line before rows is refused."""
    row = between.join([b"5.1", b"3.5", b"1.4", b"0.2", b"9"])
    for header in (b"0,1,2,3,4", b",0,1,2,3"):
        with pytest.raises(BadRequest, match="header line that numbers the columns"):
            reads(header.replace(b",", between) + end + row + end)


@pytest.mark.parametrize(
    "body",
    [b"0,1,2,3\n", b"0,1,2\n3,4,5", b"0.0,1,2,3\n4,5,6,7", b"1,2,3,4\n0,1,2,3", b"0,1,2,4\n4,5,6,7", b"0,1\n1,0"],
)
def test_a_row_that_is_no_header_line_is_read(body: bytes) -> None:
    """Alone, of few columns, with a fraction, or in another place: the numbers are data."""
    expected = [[float(cell) for cell in line.split(b",")] for line in body.split()]
    assert tables.csv_doubles(body).tolist() == expected
    assert tables.csv(body, len(expected[0])).tolist() == expected


CELLS = st.one_of(
    st.sampled_from(
        ["", " ", "-0", "0", "-0.0", "01", ".5", "5.", "+1", "1_0", "nan", "inf", "null", "true", '"1"', "[1]", "1,2"]
    ),
    st.sampled_from(
        ["1e39", "-1e39", "1e400", "1e-400", "3.4028235e38", "3.4028236e38", "123456789012345678901234567890"]
    ),
    st.floats(allow_nan=False).map(repr),
    st.integers().map(str),
    st.text('0123456789.eE+- \t\r[]"', max_size=8),
)


@given(st.lists(CELLS, min_size=3, max_size=3), st.sampled_from(["", "\n", "\r\n", "\n\n"]))
def test_a_row_alone_is_read_as_among_others(cells: list[str], end: str) -> None:
    """To the bit, and refused where it is refused there, although most rows are read as JSON."""
    row = ",".join(cells)

    def bits(body: str) -> Any:
        try:
            return tables.csv(body.encode(), 3)[-1].tobytes()
        except BadRequest:
            return None

    assert bits(row + end) == bits("1.5,2.5,3.5\n" + row + end)


def test_reading_and_writing_a_large_table_does_not_import_pandas() -> None:
    """pyarrow would import it by itself, and each runner that meets a CSV body would have 75 MB more."""
    code = """if True:
        import sys
        import numpy as np
        from serve.formats import tables
        read = tables.csv(b"1,2,\\n4,5,6\\n" * 2_000, 3)
        assert np.isnan(read).sum() == 2_000
        tables.decimals(read[:, :2].ravel())
        assert "pyarrow" in sys.modules
        sys.exit("pandas" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
