"""A training job reads a Parquet file that is a table of numbers, and refuses every other one with the reason."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from serve.errors import BadRequest
from serve.train import parquet

NAN = float("nan")


def written(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pa.parquet.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def read(body: bytes, directory: Path, width: int = 3) -> Any:
    path = directory / "a.parquet"
    path.write_bytes(body)
    return parquet.read(path, width, "the first row of all has {}")


COLUMNS = {"a": [1, 2, 300], "b": pa.array([0.5, None, NAN]), "c": [True, False, None]}
MATRIX = np.array([[1, 0.5, 1], [2, NAN, 0], [300, NAN, NAN]], np.float32)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_each_column_is_a_feature(tmp_path: Path, compression: str, version: str) -> None:
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
            found = read(body, tmp_path)
            assert found.dtype == np.float32
            assert np.array_equal(found, MATRIX, equal_nan=True)


def test_many_rows_are_read_in_steps(tmp_path: Path) -> None:
    """The steps leave no trace in the matrix."""
    matrix = np.random.default_rng(0).normal(size=(400_000, 3)).astype(np.float32)
    body = written({str(column): matrix[:, column] for column in range(3)})
    assert np.array_equal(read(body, tmp_path), matrix)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "invalid Parquet: "),
        (b"1,2,3\n", "invalid Parquet: "),
        (written({"a": [1], "b": [2]}), "the Parquet file has 2 columns; the first row of all has 3"),
        (written({"a": [1], "b": [2], "c": ["x"]}), "column 'c' has type string; numbers are needed"),
        (written({"a": [1], "b": [2], "c": [[3]]}), "column 'c' has type list"),
        (written({"a": pa.array([], pa.int64()), "b": pa.array([], pa.int64()), "c": pa.array([], pa.int64())}),
         "the Parquet file has no rows"),
        (written({"a": [1.0], "b": [2.0], "c": [1e300]}), "row 1, column 3 is infinite, or too large"),
    ],
    ids=["nothing", "CSV", "too few", "text", "lists", "no rows", "too large a number"],
)  # fmt: skip
def test_a_file_that_is_no_table_of_numbers_is_refused(tmp_path: Path, body: bytes, message: str) -> None:
    """The message has both counts, or names the column."""
    with pytest.raises(BadRequest, match=f"^{re.escape(message)}"):
        read(body, tmp_path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    """At whatever byte it is cut."""
    whole = written(COLUMNS)
    for end in range(0, len(whole) - 1, 11):
        with pytest.raises(BadRequest):
            read(whole[:end], tmp_path)


def test_no_byte_of_a_file_can_end_the_process(tmp_path: Path) -> None:
    """Each byte is changed once; in a footer, Arrow's own view of a column aborts on some, so it is not used."""
    good = written(COLUMNS)
    for at in range(len(good)):
        body = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with contextlib.suppress(BadRequest):
            assert read(body, tmp_path).shape == (3, 3)
