"""Formats are read without pickle, within memory, and whatever else comes is a 4xx that says what is wrong."""

import io
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import BadRequest, NotAcceptable, PayloadTooLarge, ServeError
from serve.formats import npy as npz
from serve.formats import values
from serve.handlers.arrays import tensors
from serve.handlers.base import Request
from serve.http import media
from tests.unit.configs import config_of

JSON, CSV, NPY, NPZ, TEXT = media.JSON, media.CSV, media.NPY, media.NPZ, media.TEXT


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header(text: str, body: bytes = b"") -> bytes:
    """A .npy file that says of itself what it likes."""
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + body


def zipped(**members: bytes) -> bytes:
    return packed(members, zipfile.ZIP_DEFLATED)


def packed(members: Mapping[str, bytes], packing: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def sparse(matrix: Any, **changes: Any) -> bytes:
    """What scipy saves, with some of its parts put in place of others."""
    file = io.BytesIO()
    scipy.sparse.save_npz(file, matrix)
    with zipfile.ZipFile(file) as archive:
        members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    return zipped(**members | {name: npy(value) for name, value in changes.items()})


ROWS = scipy.sparse.csr_matrix(np.array([[0, 1.5], [2, 0]]))


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_a_sparse_matrix_is_read(kind: str) -> None:
    """As scipy saves it."""
    found = values.read(sparse(ROWS.asformat(kind)), NPZ)
    assert (found.format, found.toarray().tolist()) == (kind, [[0, 1.5], [2, 0]])


def test_an_npz_of_arrays_is_a_dictionary() -> None:
    """By their names."""
    file = io.BytesIO()
    np.savez_compressed(file, a=np.arange(2), b=np.ones((1, 1)))
    found = values.read(file.getvalue(), NPZ)
    assert {name: each.tolist() for name, each in found.items()} == {"a": [0, 1], "b": [[1.0]]}


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (npy(np.array([None])), NPY, "numbers are needed"),
        (npy(np.array(["a"])), NPY, "numbers are needed"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"), NPY, "does not fit"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), NPY, "does not fit"),
        (header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': (0, {10**30})}}"), NPY, "unsupported shape"),
        (header(f"{{'descr': '<i1', 'fortran_order': False, 'shape': {(1,) * 65}}}", b"1"), NPY, "unsupported shape"),
        (header("__import__('os').abort()"), NPY, "its header cannot be read"),
        (header("{" * 100), NPY, "its header cannot be read"),
        (npy(np.ones(4))[:-1], NPY, "does not fit"),
        (npy(np.ones(4)) * 2, NPY, "does not fit"),
        (zipped(a=npy(np.array([None]))), NPZ, "numbers are needed"),
        (b"PK\x03\x04", NPZ, "not a .npz file"),
        (packed({"a": npy(np.ones(9))}, zipfile.ZIP_LZMA), NPZ, "unsupported compression"),
        (sparse(ROWS, indices=np.array([0, 1 << 20], np.int32)), NPZ, "not a sparse matrix"),
        (sparse(ROWS, indices=np.array([0, -1], np.int32)), NPZ, "not a sparse matrix"),
        (sparse(ROWS, indptr=np.array([0, 1, 1 << 30], np.int32)), NPZ, "not a sparse matrix"),
        (sparse(ROWS, indptr=np.array([0.0, 1, 2])), NPZ, "integers for indices"),
        (sparse(ROWS, shape=np.array([1 << 40, 2])), NPZ, "and indptr for 2"),
        (sparse(ROWS, shape=np.array([2])), NPZ, "it needs shape"),
        (sparse(ROWS, format=np.array(b"bsr")), NPZ, "unsupported format of the sparse"),
        (sparse(ROWS.tocoo(), row=np.array([0, 5], np.int32)), NPZ, "not a sparse matrix"),
        (sparse(ROWS, data=np.ones((2, 1))), NPZ, "one dimension"),
        (b"[" * 100_000, JSON, "nested too deeply"),
        (b"[1" + b"0" * 5_000 + b"]", JSON, "not JSON"),
        (b"1,2\n3", CSV, "row 2 has 1 columns; row 1 has 2"),
        (b"," * 1_000_000 + b"\n1" * 500_000, CSV, "row 2 has 1 columns; row 1 has 1000001"),
        (b"1,2\n3,x", CSV, "row 2, column 2: 'x' is not a number"),
        (b"a,b\n1,2", CSV, "is not a number"),
        (b"\n\n", CSV, "there are no rows"),
        (b"1,\x00\n", CSV, "not a number"),
        (b"\xff", TEXT, "not valid utf-8"),
    ],
)
def test_what_cannot_be_read_is_said(body: bytes, content_type: str, said: str) -> None:
    """Where it is, and what is wrong with it."""
    with pytest.raises(BadRequest) as refused:
        values.read(body, content_type)
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("1;2", [[1, 2]]),
        ("1_0", None),
        ("1,\n,4", [[1, None], [None, 4]]),
        ("1\n\n3", [[1], [None], [3]]),
        ("\ufeff1,2", [[1, 2]]),
        ('"1","2"\n', [[1, 2]]),
        ("1e3, inf", [[1000, np.inf]]),
    ],
)
def test_rows_of_numbers(text: str, rows: list[list[float | None]] | None) -> None:
    """Empty cells are nan."""
    if rows is None:
        with pytest.raises(BadRequest):
            values.read(text.encode(), CSV)
    else:
        assert np.array_equal(values.read(text.encode(), CSV), np.array(rows, float), equal_nan=True)


def test_lists_may_be_as_deep_as_numpys_arrays(tmp_path: Path) -> None:
    """More than its flat iterator can do."""
    assert values.values(values.read(b"[" * 40 + b"1" + b"]" * 40, JSON)).ndim == 40
    asked = Request(body=b"[" * 40 + b'"a"' + b"]" * 40, content_type=JSON)
    with pytest.raises(BadRequest, match="has shape"):
        tensors.decoded(
            asked, [tensors.Input(name="x", dtype=np.dtype(object), shape=(None,))], config_of("onnx", tmp_path)
        )


def test_a_table_takes_room_for_the_cells_it_has() -> None:
    """8 bytes each, and not an object for every one."""
    body = b",\n" + b"1,1\n" * 100_000
    tracemalloc.start()
    assert values.read(body, CSV).shape == (100_001, 2)
    assert tracemalloc.get_traced_memory()[1] < 16_000_000
    tracemalloc.stop()


def test_a_bomb_is_not_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MB of nothing are a few kB of zip."""
    monkeypatch.setattr(npz, "_UNFOLDED", 10_000_000)
    bomb = zipped(a=npy(np.zeros(2_000_000)))
    tracemalloc.start()
    with pytest.raises(PayloadTooLarge, match="has 16000128 bytes after decompression"):
        values.read(bomb, NPZ)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["csc", "coo"])
def test_a_sparse_matrix_of_more_rows_than_its_indices_show_is_refused(kind: str) -> None:
    """Whoever asks it for its rows, as models do, would have 8 bytes made for each."""
    with pytest.raises(PayloadTooLarge, match="has 1000000000000 rows, the limit is 33554432"):
        values.read(sparse(ROWS.asformat(kind), shape=np.array([10**12, 2])), NPZ)


def test_one_long_text_does_not_widen_a_million_cells() -> None:
    """As numpy's arrays of text would."""
    tracemalloc.start()
    found = values.values(["a" * 100_000, *["b"] * 100_000])
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert found.dtype == object


@pytest.mark.parametrize(
    ("value", "dtype", "found"),
    [
        ([1, 2.5], "float32", [1.0, 2.5]),
        ([[1], [2]], "int64", [[1], [2]]),
        ([(1 << 62) + 1], "int64", [(1 << 62) + 1]),
        ([True], "bool", [True]),
        ([1.5], "int64", None),
        ([300], "uint8", None),
        ([1], "bool", None),
        ([[1], [2, 3]], "float32", None),
        ([{}], "float32", None),
        (["a"], "int64", None),
        ([None], "int64", None),
    ],
)
def test_numbers_are_of_the_type_wanted_or_refused(value: Any, dtype: str, found: Any) -> None:
    """Nothing is cut, wrapped or guessed."""
    if found is None:
        with pytest.raises(BadRequest, match="is not an array of"):
            values.numbers(value, dtype)
    else:
        assert values.numbers(value, dtype).tolist() == found


def test_what_cannot_be_written_is_a_406() -> None:
    """Never a pickle, and no Python notation in a table."""
    for value, accept in (([None, "a"], NPY), ({"a": 1}, CSV), ([{"a": 1}, {"b": 1}], CSV), ([{"a": 1}, 2], CSV)):
        with pytest.raises(NotAcceptable):
            values.write(np.array(value, object) if accept == NPY else value, accept)
    assert values.write([{"a": 1, "b": "x,y"}, {"a": 2, "b": "z"}], CSV) == b'a,b\n1,"x,y"\n2,z\n'


SEEDS: dict[str, list[bytes]] = {
    JSON: [b'{"inputs": [[1, 2.5, null], ["a", true]]}', b"[1e400, -0]"],
    CSV: [b'1,2,3\n4,,"6"\n', b"a,b\n"],
    NPY: [npy(np.arange(6).reshape(2, 3)), npy(np.array([None]))],
    NPZ: [sparse(ROWS), sparse(ROWS.tocoo()), zipped(a=npy(np.ones(3)))],
}


@st.composite
def damaged(draw: Callable[..., Any]) -> tuple[bytes, str]:
    """A good body cut, doubled, with bytes changed or put in; or bytes of any kind."""
    content_type = draw(st.sampled_from(list(SEEDS)))
    body = bytearray(draw(st.one_of(st.sampled_from(SEEDS[content_type]), st.binary(max_size=200))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(body)))
        how = draw(st.sampled_from(("cut", "put", "change", "double")))
        if how == "cut":
            del body[at:]
        elif how == "put":
            body[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif how == "change" and at < len(body):
            body[at] = draw(st.integers(0, 255))
        elif how == "double":
            body += body[:at]
    return bytes(body), content_type


@settings(max_examples=600, deadline=None)
@given(damaged())
def test_damaged_bodies_are_read_or_refused(given_body: tuple[bytes, str]) -> None:
    """Nothing but a 4xx; and what is read can be used without a crash."""
    body, content_type = given_body
    status = 400
    try:
        found = values.read(body, content_type)
        if scipy.sparse.issparse(found):
            found.sum()
        values.values(found if content_type == JSON else 0)
    except ServeError as error:
        status = int(error.status)
    assert 400 <= status < 500


class Odd:
    """An object without a form in JSON or CSV."""


class Returned(Odd):
    def tolist(self) -> Any:
        return self


class Endless(Odd):
    def tolist(self) -> Any:
        return Endless()


def itself() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


NO_JSON = [
    *(Odd(), Odd, len, object(), range(3), {1, 2}.__iter__(), iter(()), zip(), map(str, ()), 1j),
    *({}.keys(), {}.items(), open, sys, Returned(), Endless(), np.complex64(1), np.array([Odd()]), np.clongdouble(1)),
    *(itself(), [itself()], {"a": Odd()}, {(1, 2): 3}, slice(1), type, NotImplemented, io.BytesIO()),
]


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize("value", NO_JSON, ids=lambda value: type(value).__name__)
def test_what_is_no_json_is_named(value: Any) -> None:
    """A TypeError, as from the toolkits' json.dumps, for every kind of object; never a RecursionError."""
    with pytest.raises(TypeError):
        values.write(value, JSON)
    with pytest.raises(TypeError):
        values.chunk(value if not isinstance(value, str) else [value])


@pytest.mark.parametrize("value", [np.longdouble(0.5), np.array([0.5], np.longdouble)[0], np.float16(0.5)])
def test_a_number_of_any_width_is_json(value: Any) -> None:
    """A longdouble of numpy is its own `tolist`."""
    assert values.write({"a": value}, JSON) == b'{"a":0.5}'


@pytest.mark.parametrize("value", [Odd(), [Odd()], [[1, Odd()]], [{"a": Odd()}]])
def test_an_object_without_a_text_is_no_cell(value: Any) -> None:
    """Rather than its address in memory."""
    with pytest.raises(TypeError, match="Odd cannot be written"):
        values.write(value, CSV)
