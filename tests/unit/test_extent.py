"""Rows and cells of one request have a limit, which every reader checks before it allocates memory for them."""

import io
import math
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scipy.sparse

from serve.errors import BadRequest, PayloadTooLarge
from serve.formats import frames, instances, libsvm, npy, open_inference, recordio, tables, values
from serve.handlers.base import Request
from serve.handlers.huggingface import bodies
from serve.http import extent, media
from serve.http.body import csv_rows, decode_json
from serve.runner.records import Lines

ROWS, CELLS = 100, 400


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    extent.limit(ROWS, CELLS)
    yield
    extent.limit(math.inf, math.inf)


def _npy(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(shape, np.uint8))
    return file.getvalue()


def _stated(shape: str) -> bytes:
    """A npy file whose header has this shape, and no data."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _csr(rows: int) -> bytes:
    file = io.BytesIO()
    scipy.sparse.save_npz(file, scipy.sparse.csr_matrix((rows, 10**9)))
    return file.getvalue()


def _recordio(rows: int, width: int, *, alike: bool = True) -> bytes:
    written = []
    for row in range(rows):
        data = np.ones(width, "<f4" if alike or row % 2 else "<f8")
        field = 2 if data.itemsize == 4 else 3
        tensor = recordio.delimited(field, recordio.delimited(1, data.tobytes()))
        message = recordio.delimited(1, recordio.delimited(1, b"values") + recordio.delimited(2, tensor))
        written.append(struct.pack("<II", 0xCED7230A, len(message)) + message + b"\0" * (-len(message) % 4))
    return b"".join(written)


def _inference(shape: str, data: str = "[]") -> bytes:
    return b'{"inputs": [{"name": "a", "shape": %b, "datatype": "FP32", "data": %b}]}' % (shape.encode(), data.encode())


def _binary(kind: str, shape: list[int], data: bytes) -> tuple[bytes, str]:
    head = (
        f'{{"inputs": [{{"name": "a", "shape": {shape}, "datatype": "{kind}", '
        f'"parameters": {{"binary_data_size": {len(data)}}}}}]}}'
    ).encode()
    return head + data, str(len(head))


def _lines(count: int) -> Request:
    return Request(body=b"{}\n" * count, content_type=media.JSON_LINES)


Reader = Callable[[], object]

TOO_MANY: dict[str, tuple[Reader, str]] = {
    "rows of CSV": (lambda: tables.csv(b"1,2\n" * 101, 2), "SERVE_MAX_ROWS"),
    "rows of CSV of one column": (lambda: tables.csv(b"1\n" * 101, 1), "SERVE_MAX_ROWS"),
    "cells of CSV": (lambda: tables.csv(b"1,2,3,4,5\n" * 81, 5), "SERVE_MAX_CELLS"),
    "cells of CSV of any width": (lambda: tables.csv_doubles(b"," * 401), "SERVE_MAX_CELLS"),
    "cells of CSV with a semicolon": (lambda: tables.csv(b"1;2;3;4;5\n" * 81, 5), "SERVE_MAX_CELLS"),
    "rows of CSV of texts": (lambda: csv_rows("a\n" * 101), "SERVE_MAX_ROWS"),
    "cells of CSV of texts": (lambda: csv_rows("a,b,c,d,e\n" * 81), "SERVE_MAX_CELLS"),
    "rows of CSV with a header": (lambda: frames.from_csv("x\n" + "a\n" * 101, ["x"]), "SERVE_MAX_ROWS"),
    "rows of libsvm": (lambda: libsvm.read(b"0 1:1\n" * 101, 9), "SERVE_MAX_ROWS"),
    "cells of libsvm": (lambda: libsvm.read(b"0 1:1 2:1 3:1 4:1 5:1\n" * 81, 9), "SERVE_MAX_CELLS"),
    "rows of libsvm of any width": (lambda: libsvm.as_xgboost(b"0 1:1\n" * 101), "SERVE_MAX_ROWS"),
    "rows of npy": (lambda: npy.array(_npy((101, 1))), "SERVE_MAX_ROWS"),
    "cells of npy": (lambda: npy.array(_npy((20, 21))), "SERVE_MAX_CELLS"),
    "rows of npy without columns": (lambda: npy.array(_npy((101, 0))), "SERVE_MAX_ROWS"),
    "lists of an empty npy": (lambda: npy.array(_npy((50, 50, 0))), "SERVE_MAX_CELLS"),
    "a shape of 8,000 digits": (lambda: npy.array(_stated("(" + f"{10**4000}," * 2 + "0)")), "SERVE_MAX_ROWS"),
    "cells of npz": (lambda: npy.read(_npz(a=np.zeros(300), b=np.zeros(300))), "SERVE_MAX_CELLS"),
    "rows of a sparse matrix": (lambda: npy.read(_csr(101)), "SERVE_MAX_ROWS"),
    "records": (lambda: recordio.read(_recordio(101, 1), 1), "SERVE_MAX_ROWS"),
    "cells of records": (lambda: recordio.read(_recordio(81, 5), 5), "SERVE_MAX_CELLS"),
    "records of several types": (lambda: recordio.read(_recordio(101, 1, alike=False), 1), "SERVE_MAX_ROWS"),
    "cells of several types": (lambda: recordio.read(_recordio(81, 5, alike=False), 5), "SERVE_MAX_CELLS"),
    "rows of JSON": (lambda: instances.rows(b"[" + b"[1]," * 101 + b"[1]]", 1, "m"), "SERVE_MAX_ROWS"),
    "lists of JSON": (lambda: decode_json(b"[" + b"[]," * 200 + b"[]]"), "SERVE_MAX_ROWS"),
    "objects of JSON": (lambda: decode_json(b"[" + b"{}," * 200 + b"{}]"), "SERVE_MAX_ROWS"),
    "values of JSON": (lambda: decode_json(b"[" + b"1," * 400 + b"1]"), "SERVE_MAX_CELLS"),
    "values of JSON in UTF-16": (lambda: decode_json(("[" + "1," * 400 + "1]").encode("utf-16"), "utf-16"), "CELLS"),
    "values of JSON beside text": (lambda: decode_json(b'{"a\\"b": [' + b"1," * 400 + b"1]}"), "SERVE_MAX_CELLS"),
    "values of a row of JSON": (lambda: instances.rows(b"[" + b"1," * 400 + b"1]", 401, "m"), "SERVE_MAX_CELLS"),
    "rows of JSON Lines": (lambda: instances.lines(b"[1]\n" * 101, 1, "m"), "SERVE_MAX_ROWS"),
    "records of JSON Lines": (lambda: Lines(_lines(101), media.JSON, "", BadRequest("")), "SERVE_MAX_ROWS"),
    "texts": (lambda: bodies.texts(["a"] * 101), "SERVE_MAX_ROWS"),
    "rows of an inference": (lambda: open_inference.parse(_inference("[101, 0]"), ""), "SERVE_MAX_ROWS"),
    "lists of an inference": (lambda: open_inference.parse(_inference("[20, 1000000000000, 0]"), ""), "CELLS"),
    "cells of an inference": (lambda: open_inference.parse(_inference("[401]"), ""), "SERVE_MAX_CELLS"),
    "binary rows": (lambda: open_inference.parse(*_binary("INT8", [101, 1], bytes(101))), "SERVE_MAX_ROWS"),
    "binary cells": (lambda: open_inference.parse(*_binary("INT8", [401], bytes(401))), "SERVE_MAX_CELLS"),
    "binary texts": (lambda: open_inference.parse(*_binary("BYTES", [401], bytes(4 * 401))), "SERVE_MAX_CELLS"),
    "cells of any reader": (lambda: values.read(b"[" + b"1," * 400 + b"1]", media.JSON), "SERVE_MAX_CELLS"),
}


@pytest.mark.parametrize("what", TOO_MANY)
def test_more_than_the_limit_is_413_with_the_figures(what: str) -> None:
    """The message has the number found, the limit and the setting that raises it."""
    read, setting = TOO_MANY[what]
    with pytest.raises(PayloadTooLarge) as refused:
        read()
    assert refused.value.status == 413
    assert setting in refused.value.message
    assert setting in refused.value.hint
    assert "the limit is" in refused.value.message
    assert any(character.isdigit() for character in refused.value.message)


FITS: dict[str, Reader] = {
    "CSV": lambda: tables.csv(b"1,2,3,4\n" * 100, 4),
    "CSV without a last line break": lambda: tables.csv(b"\n".join([b"1,2,3,4"] * 100), 4),
    "CSV of texts, with commas and line breaks in a cell": lambda: csv_rows('"' + ",\n" * 500 + '",b\n'),
    "libsvm": lambda: libsvm.read(b"\n".join([b"0 1:1 2:1 3:1 4:1"] * 100), 9),
    "npy": lambda: npy.array(_npy((100, 4))),
    "npy of one row": lambda: npy.array(_npy((400,))),
    "npz": lambda: npy.read(_npz(a=np.zeros(200), b=np.zeros(200))),
    "records": lambda: recordio.read(_recordio(100, 4), 4),
    "records of several types": lambda: recordio.read(_recordio(100, 4, alike=False), 4),
    "JSON": lambda: instances.rows(b"[" + b",".join([b"[1,2]"] * 100) + b"]", 2, "m"),
    "JSON of text with commas and brackets": lambda: decode_json(b'{"inputs": "' + b'[{,\\",' * 1000 + b'"}'),
    "an inference": lambda: open_inference.parse(_inference("[100, 1]", str([1.0] * 100)), ""),
    "a binary inference": lambda: open_inference.parse(*_binary("BYTES", [100], struct.pack("<I", 0) * 100)),
}


@pytest.mark.parametrize("what", FITS)
def test_as_much_as_the_limit_is_read(what: str) -> None:
    """Exactly the limit; commas, brackets and line breaks inside of texts are not counted."""
    assert FITS[what]() is not None


def test_a_process_that_sets_no_limits_has_none() -> None:
    """Training reads its files with the same functions."""
    code = "from serve.formats import tables; print(len(tables.csv(b'1\\n' * 3_000_000, 1)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"3000000\n"


def test_binary_texts_must_be_as_many_as_the_shape_states() -> None:
    """The lengths in the data do not decide how many are read."""
    with pytest.raises(BadRequest, match="9 elements; its shape"):
        open_inference.parse(*_binary("BYTES", [8], struct.pack("<I", 0) * 400))
    with pytest.raises(BadRequest, match="too few"):
        open_inference.parse(*_binary("BYTES", [8], struct.pack("<I", 0) * 4))


def test_a_shape_of_many_dimensions_is_400() -> None:
    with pytest.raises(BadRequest, match="unsupported shape"):
        open_inference.parse(_inference(str([1] * 100), "[1]"), "")


ATTACKS = {
    "lists of an inference": """open_inference.parse(
        b'{"inputs": [{"name": "a", "shape": [1000000, 1000000, 0], "datatype": "FP32", "data": []}]}', "")""",
    "lists of JSON": "decode_json(b'[' + b'[],' * 8_000_000 + b'[]]')",
    "cells of a CSV of texts": "csv_rows('ab,' * 8_000_000)",
    "cells between quotes that quote nothing": "csv_rows('x\"' + 'ab,' * 8_000_000 + 'y\"')",
    "rows of CSV": "tables.csv(b'1\\n' * 12_000_000, 1)",
    "rows of libsvm": "libsvm.read(b'0\\n' * 12_000_000, 1)",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_refusal_takes_no_memory(attack: str) -> None:
    """Bodies of 24 MB, whose rows would take hundreds of MB: the peak is that of the body, of its text and 40 MB."""
    code = f"""
import resource
from serve.errors import PayloadTooLarge
from serve.formats import libsvm, open_inference, tables
from serve.http import extent
from serve.http.body import csv_rows, decode_json
extent.limit(100_000, 1_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    {ATTACKS[attack]}
except PayloadTooLarge:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(ran.stdout) >> 10 < 24 + 24 + 40
