"""Parquet is read where it is a table of numbers, and never more of it than was promised or fits."""

import contextlib
import io
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from serve.errors import BadRequest, PayloadTooLarge, ServeError
from serve.formats import parquet

NAN = float("nan")


def written(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pa.parquet.write_table(pa.table(columns), file, **options)
    return file.getvalue()


COLUMNS = {"a": [1, 2, 300], "b": pa.array([0.5, None, NAN]), "c": [True, False, None]}
MATRIX = np.array([[1, 0.5, 1], [2, NAN, 0], [300, NAN, NAN]], np.float32)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_each_column_is_a_feature(compression: str, version: str) -> None:
    """Integers, floats and booleans, nulls as nan, with and without a dictionary, in one group of rows or several."""
    for dictionary in (True, False):
        for rows in (1, 100):
            body = written(
                COLUMNS,
                compression=compression,
                data_page_version=version,
                use_dictionary=dictionary,
                row_group_size=rows,
            )
            found = parquet.read(body, 3)
            assert found.dtype == np.float32
            assert np.array_equal(found, MATRIX, equal_nan=True)


def test_many_rows_are_read_in_steps() -> None:
    """Which leave no trace in the answer."""
    matrix = np.random.default_rng(0).normal(size=(400_000, 3)).astype(np.float32)
    body = written({str(column): matrix[:, column] for column in range(3)})
    assert np.array_equal(parquet.read(body, 3), matrix)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"", BadRequest, "the body is not Parquet that can be read: "),
        (b"1,2,3\n", BadRequest, "the body is not Parquet that can be read: "),
        (written({"a": [1], "b": [2]}), BadRequest, "the Parquet has 2 columns; the model has 3 features"),
        (written({"a": [1], "b": [2], "c": ["x"]}), BadRequest, "column 'c' is of type string; numbers are needed"),
        (written({"a": [1], "b": [2], "c": [[3]]}), BadRequest, "column 'c' is of type list"),
        (written({"a": pa.array([], pa.int64()), "b": pa.array([], pa.int64()), "c": pa.array([], pa.int64())}),
         BadRequest, "there are no rows"),
        (written({"a": [1.0], "b": [2.0], "c": [1e300]}), BadRequest, "row 1, column 3 is infinite, or too large"),
        (written(dict.fromkeys("abc", np.zeros(20_000_000, np.int8))), PayloadTooLarge,
         "the Parquet unfolds to 20000000 rows of 3 columns"),
        (written(dict.fromkeys("abc", np.zeros(11_500_000)), use_dictionary=False, compression="zstd"), PayloadTooLarge,
         "the Parquet unfolds to 11500000 rows of 3 columns in 276"),
    ],
    ids=["nothing", "CSV", "too few", "text", "lists", "no rows", "too large a number", "repeats", "zeros"],
)  # fmt: skip
def test_what_is_no_table_of_numbers_is_told(body: bytes, error: type[ServeError], message: str) -> None:
    """With both counts, or the column; a bomb of repeats or zeros is told before it goes off."""
    assert len(body) < 2 << 20
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        parquet.read(body, 3)


def test_a_file_cut_short_is_told() -> None:
    """Wherever it is cut."""
    whole = written(COLUMNS)
    for end in range(0, len(whole) - 1, 11):
        with pytest.raises(BadRequest):
            parquet.read(whole[:end], 3)


def test_a_page_that_promises_gigabytes_is_told() -> None:
    """The size in the page's own header is what the reader would allocate, whatever the file says of it elsewhere."""
    whole = written({"a": np.arange(3.0)}, compression="snappy", use_dictionary=False, write_statistics=False)
    assert whole[4:7] == b"\x15\x00\x15"  # a data page; and then its size, in one byte
    # Two gigabytes take five bytes: what comes behind lies elsewhere than the file says, which is not come to.
    with pytest.raises(PayloadTooLarge, match=r"in 2147483647 bytes"):
        parquet.read(whole[:7] + b"\xfe\xff\xff\xff\x0f" + whole[8:], 1)


def test_no_byte_of_a_file_can_end_the_process() -> None:
    """Each of them changed, in the footer above all, where Arrow's own view of a column aborts on some."""
    good = written(COLUMNS)
    for at in range(len(good)):
        body = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with contextlib.suppress(BadRequest, PayloadTooLarge):
            assert parquet.read(body, 3).shape == (3, 3)


def test_a_size_said_in_two_ways_is_told() -> None:
    """The same field as another type, or by a number that wraps around: Arrow would go by one, and we by the other."""
    good = written({"a": [1.0] * 5}, compression="none", use_dictionary=False)
    header = good[4:]  # of the first page: its type, unpacked and packed size
    assert header[0] == header[2] == 0x15
    for more, said in ((b"\x06\x04\x02", "a field twice"), (b"\x05\x84\x80\x08\x02", "a field that Parquet has not")):
        with pytest.raises(ValueError, match=said):
            parquet.struct(header[:6] + more + header[6:], 0)
