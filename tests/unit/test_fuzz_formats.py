"""Whatever the bytes, a decoder of rows gives a matrix or a 4xx, in memory that the body's size bounds."""

import io
import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from serve.errors import ServeError
from serve.formats import instances, libsvm, recordio, tables
from serve.handlers.base import Reply, Request
from serve.handlers.xgboost import file_formats, pickles
from serve.handlers.xgboost.handler import XGBoost
from tests.unit.configs import config_of

WIDTH = 3
OLD = Path(__file__).parent / "old_models"
ROWS = np.array([[1, 2.5, np.nan], [-3, 1e-7, 4]], np.float32)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def records() -> bytes:
    dense = b"\x12\x0e\x0a\x0c" + ROWS[0].tobytes()
    sparse = b"\x12\x0d\x0a\x04" + ROWS[0, :1].tobytes() + b"\x12\x02\x02\x00\x1a\x01\x03"
    out = b""
    for tensor in (dense, sparse):
        entry = b"\x0a\x06values\x12" + bytes([len(tensor)]) + tensor
        record = b"\x0a" + bytes([len(entry)]) + entry
        out += struct.pack("<II", 0xCED7230A, len(record)) + record + b"\0" * (-len(record) % 4)
    return out


# name -> decoder, good bodies, pieces worth putting into them
Decoder = Callable[[bytes], Any]
DECODERS: Mapping[str, tuple[Decoder, list[bytes], list[bytes]]] = {
    "csv": (
        lambda body: tables.csv(body, WIDTH),
        [b"1,2.5,\n-3,1e-7,4\n", b"1;2;3\r\n4;5;6\r\n", b"1 2 3\n", b"1,2,3\n" * 2000],
        [b",", b"\n", b'"', b"\xef\xbb\xbf", b"1e999", b"1_0", b"nan", b"infinity", b"\0", b" ", b"0x1"],
    ),
    "libsvm": (
        lambda body: libsvm.read(body, WIDTH),
        [b"1 1:0.5 3:2\n0 2:7\n", b"0:1 2:nan # x\n"],
        [b":", b" ", b"\n", b"#", b"qid:1 ", b"-1:", b"99999999999999999999:1", b"1:1e999", b"\xff"],
    ),
    "json": (
        lambda body: instances.rows(body, WIDTH, "kind"),
        [
            b"[[1,2.5,null],[-3,1e-7,4]]",
            b'{"instances": [{"features": [1, 2, 3]}]}',
            b'{"kind": "x", "instances": [{"data": {"features": {"keys": [2], "shape": [3], "values": [9]}}}]}',
        ],
        [b"[", b"]", b"{", b"}", b'"', b",", b"1e999", b"NaN", b"true", b"null", b"\xff", b"[" * 5000, b"1" * 5000],
    ),
    "jsonlines": (
        lambda body: instances.lines(body, WIDTH, "kind"),
        [b'[1,2,3]\n{"features": [1, 2, null]}\n'],
        [b"\n", b"[", b"]", b"{}", b"null", b"\r"],
    ),
    "npy": (
        lambda body: tables.npy(body, WIDTH),
        [npy(ROWS), npy(ROWS.astype(">f8")), npy(np.asfortranarray(ROWS)), npy(np.zeros((0, 3)))],
        [b"O", b"|O", b"'<f8'", b"999999999999", b"-1", b"(" * 300, b"\xff\xff\xff\xff", b"True", b"9**9**9"],
    ),
    "recordio": (
        lambda body: recordio.read(body, WIDTH),
        [records(), records()[:36], records()[:36] * 3],
        [struct.pack("<I", 0xCED7230A), b"\xff\xff\xff\x1f", b"\xff\xff\xff\xff\x0f", b"\x0a", b"\x12", b"\x80", b"\0"],
    ),
}


@st.composite
def spoiled(draw: st.DrawFn, good: list[bytes], pieces: list[bytes]) -> bytes:
    """A good body after some of what happens to bytes: cut, doubled, overwritten, put together from two."""
    body = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        end = draw(st.integers(at, min(len(body), at + 16)))
        body = draw(
            st.sampled_from(
                [
                    body[:at],
                    body[at:],
                    body[:end] + body[at:],
                    body + body,
                    body[:at] + body[end:],
                    body[:at] + draw(st.sampled_from(pieces)) + body[end:],
                    body[:at] + draw(st.binary(max_size=8)) + body[end:],
                    body[:at] + draw(st.sampled_from(good))[at:],
                ]
            )
        )
    return body


def outcome(decode: Callable[[bytes], Any], body: bytes, refusals: type[Exception] = ServeError) -> Any:
    """What is made of the body, or the error that refuses it."""
    try:
        return decode(body)
    except refusals as error:
        return error


def is_callers_fault(found: Any) -> bool:
    return isinstance(found, ServeError) and 400 <= found.status < 500 and bool(found.message)


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
def test_fuzzed_rows_are_read_or_refused(name: str, data: st.DataObject) -> None:
    """A float32 matrix as wide as the model and without infinities, or a 4xx with words for the caller."""
    decode, good, pieces = DECODERS[name]
    body = data.draw(spoiled(good, pieces) | st.binary(max_size=64))
    tracemalloc.start()
    found = outcome(decode, body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (4 << 20) + 100 * len(body)
    if not is_callers_fault(found):
        cells = found.data if isinstance(found, csr_matrix) else found
        assert (found.shape[1], cells.dtype) == (WIDTH, np.float32)
        assert found.shape[0] > 0
        assert not np.isinf(cells).any()


ANY = st.one_of(*(spoiled(good, pieces) for _, good, pieces in DECODERS.values()))
KINDS = ("", "text/csv", "text/libsvm", *(f"application/{each}" for each in (
    "json", "jsonlines", "x-npy", "x-recordio-protobuf", "x-parquet")))  # fmt: skip


@given(body=ANY, kind=st.sampled_from(KINDS))
def test_a_fuzzed_request_is_answered_or_refused(trees: XGBoost, body: bytes, kind: str) -> None:
    """Under any Content-Type, the wrong one too; what is decoded can be predicted."""
    item = outcome(lambda body: trees.decode(Request(body=body, content_type=kind)), body)
    if not is_callers_fault(item):
        (reply,) = trees.predict([item])
        assert isinstance(reply, Reply)
        assert reply.status == (200 if body else 204)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> XGBoost:
    directory = tmp_path_factory.mktemp("trees")
    rows = np.random.default_rng(0).normal(size=(40, WIDTH)).astype(np.float32)
    booster = xgboost.train({"nthread": 1, "max_depth": 2}, xgboost.DMatrix(rows, rows[:, 0]), 2)
    booster.save_model(directory / "model.ubj")
    return XGBoost(config_of(XGBoost, name="trees", directory=directory))


OLD_MODELS = [(OLD / name).read_bytes() for name in ("logistic-1.7.6.model", "gblinear-1.7.6.model")]
PICKLES = [(OLD / "logistic-1.7.6.pkl").read_bytes()]
BINARY_JSON = [b"{i\x07learner[$U#i\x03abcU\x01}", b"{i\x01aSi\x02xyi\x01b[#i\x02TF}"]
COUNTS = [
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
    b"\0" * 8,
    b"binf",
    b"\x80\x04",
    b"\x8c",
    b"R",
    b".",
    b"{",
    b"[",
    b"#",
    b"$",
]


@given(body=spoiled(OLD_MODELS, COUNTS))
def test_a_fuzzed_old_model_is_read_or_refused(body: bytes) -> None:
    """Nothing is given to the library that is not whole."""
    assert str(outcome(file_formats.as_json, body, file_formats.OldBinaryError))


@given(body=spoiled(PICKLES, COUNTS))
def test_a_fuzzed_pickle_is_taken_apart_or_refused(body: bytes) -> None:
    """As far as the bytes of its booster."""
    assert str(outcome(pickles.raw, body, pickles.Refused))


@given(body=spoiled(BINARY_JSON, COUNTS))
def test_fuzzed_binary_json_is_whole_or_refused(body: bytes) -> None:
    """However it is nested, whatever it counts."""
    found = outcome(file_formats.check, body, ValueError)
    assert found is None or str(found)
