"""RecordIO protobuf is read as AWS's built-in algorithms write it, and written as they read it."""

import re
import struct
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from serve.errors import BadRequest
from serve.formats import recordio

NAN = float("nan")


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(values: Any, keys: Sequence[int] | None = None, shape: Sequence[int] = (), kind: str = "<f4") -> bytes:
    """A Value of AWS's Record schema."""
    inner = field(1, b"".join(map(varint, values)) if kind == "varint" else np.array(values, kind).tobytes())
    inner += field(2, b"".join(map(varint, keys))) if keys is not None else b""
    inner += field(3, b"".join(map(varint, shape))) if shape else b""
    return field({"<f4": 2, "<f8": 3, "varint": 7}[kind], inner)


def message(value: bytes, name: bytes = b"values") -> bytes:
    return field(1, field(1, name) + field(2, value))


def framed(payload: bytes, kind: int = 0) -> bytes:
    padding = b"\0" * (-len(payload) % 4)
    return struct.pack("<II", 0xCED7230A, kind << 29 | len(payload)) + payload + padding


LABEL = field(2, field(1, b"values") + field(2, tensor([7.0])))


@pytest.mark.parametrize(
    ("payload", "row"),
    [
        (message(tensor([1, 2.5, 3])), [1, 2.5, 3]),
        (message(tensor([1, 2.5, 3], kind="<f8")), [1, 2.5, 3]),
        (message(tensor([1, 2, 300], kind="varint")), [1, 2, 300]),
        (message(tensor([1, 2, 3], shape=[3])), [1, 2, 3]),
        (message(tensor([1, 2, 3], shape=[1, 3])), [1, 2, 3]),
        (message(tensor([9], keys=[2], shape=[3])), [NAN, NAN, 9]),
        (message(tensor([9, 8], keys=[2, 0])), [8, NAN, 9]),
        (message(tensor([], shape=[3])), [NAN, NAN, NAN]),
        (message(tensor([1, NAN, 3])), [1, NAN, 3]),
        (message(tensor([1, 2, 3]), b"other"), [1, 2, 3]),
        (message(tensor([1, 2, 3])) + LABEL, [1, 2, 3]),
        (LABEL + message(tensor([1, 2, 3])) + field(3, b"a uid"), [1, 2, 3]),
        (message(field(2, b"".join(varint(13) + struct.pack("<f", each) for each in (1, 2, 3)))), [1, 2, 3]),
    ],
)
def test_a_record_is_a_row(payload: bytes, row: list[float]) -> None:
    """Dense and sparse, of any of the numbers, packed and not; labels and uids are passed over."""
    found = recordio.read(framed(payload) * 2, 3)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array([row, row], np.float32), equal_nan=True)


def test_many_records_alike_are_read_as_one_by_one() -> None:
    """Also where the last of them, or one in their midst, is not quite like the first."""
    rows = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    frames = [framed(message(tensor(row)) + LABEL) for row in rows]
    assert np.array_equal(recordio.read(b"".join(frames), 3), rows)
    for number in (250, 499):
        for other in (message(tensor(rows[number], kind="<f8")), message(tensor(rows[number])) + LABEL[:-4] + b"abcd"):
            changed = [*frames[:number], framed(other), *frames[number + 1 :]]
            assert np.array_equal(recordio.read(b"".join(changed), 3), rows)
    with pytest.raises(BadRequest, match=r"^row 500, column 2 is infinite"):
        recordio.read(b"".join(frames[:-1]) + framed(message(tensor([1, np.inf, 3])) + LABEL), 3)
    with pytest.raises(BadRequest, match=r"^record 250 has features that are not a tensor of numbers"):
        recordio.read(b"".join(frames[:249]) + frames[0].replace(b"\x12\x0e\x0a", b"\x22\x0e\x0a"), 3)


def test_a_record_may_come_in_parts() -> None:
    """RecordIO takes the magic number out of a payload and cuts there."""
    magic = struct.pack("<f", struct.unpack("<f", struct.pack("<I", 0xCED7230A))[0])
    payload = message(tensor(np.frombuffer(struct.pack("<f", 1) + magic + struct.pack("<f", 3), "<f4")))
    at = payload.index(magic)
    body = framed(payload[:at], 1) + framed(payload[at + 4 :], 3)
    assert recordio.read(body, 3)[0, 1] == np.frombuffer(magic, "<f4")[0]


def test_many_short_rows_of_a_wide_model_stay_sparse() -> None:
    """Or a few bytes would fill the memory."""
    body = framed(message(tensor([9], keys=[2], shape=[100_000]))) * 1000
    found: Any = recordio.read(body, 100_000)
    assert (found.shape, found.nnz) == ((1000, 100_000), 1000)
    assert set(found.indices.tolist()) == {2}


GOOD = framed(message(tensor([1, 2, 3])))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"1,2,3\n", "record 1 does not begin with RecordIO's magic number"),
        (GOOD + b"\0" * 4, "record 2 does not begin with RecordIO's magic number"),
        (GOOD[:6], "record 1 is truncated"),
        (GOOD[:-4], "record 1 is truncated"),
        (GOOD + struct.pack("<II", 0xCED7230A, 0x1FFFFFFF), "record 2 is truncated"),
        (framed(b"x", 3), "record 1 has parts in the wrong order"),
        (framed(b"x", 1), "record 1 is truncated"),
        (framed(message(tensor([1, 2]))), "row 1 has 2 columns; the model has 3 features"),
        (GOOD + framed(message(tensor([1] * 4))), "row 2 has 4 columns; the model has 3 features"),
        (framed(message(tensor([1], keys=[3], shape=[4]))), "row 1 has 4 columns; the model has 3 features"),
        (framed(message(tensor([1], keys=[3]))), "record 1 needs as many keys as values, each from 0 to 2"),
        (framed(message(tensor([1, 2], keys=[1]))), "record 1 needs as many keys as values, each from 0 to 2"),
        (framed(message(tensor([1], keys=[(1 << 64) - 1]))), "record 1 needs as many keys as values, each from 0 to 2"),
        (framed(message(tensor([1, 2, 3], shape=[3, 1]))), "record 1 has features of more than one row"),
        (framed(LABEL), "record 1 has no features called 'values'"),
        (framed(b""), "record 1 has no features called 'values'"),
        (framed(message(field(9, b"bytes"))), "record 1 has features that are not a tensor of numbers"),
        (framed(message(field(2, field(1, b"12345")))), "record 1 has truncated values"),
        (framed(b"\x0a\xff\xff\xff\xff\x0f"), "record 1 has a truncated field"),
        (framed(b"\xff" * 12), "record 1 has a truncated number"),
        (framed(b"\x0f"), "record 1 is not a protobuf message"),
        (framed(message(tensor([1, 2, float("inf")]))), "row 1, column 3 is infinite, or too large"),
        (framed(message(tensor([1, 2, 1e300], kind="<f8"))), "row 1, column 3 is infinite, or too large"),
    ],
)
def test_what_is_wrong_with_a_record_is_told(body: bytes, said: str) -> None:
    """Which record, and what; nothing is allocated for a length that is only claimed."""
    with pytest.raises(BadRequest, match=f"^{re.escape(said)}"):
        recordio.read(body, 3)


def test_scores_are_written_as_labels() -> None:
    """A record a row, a float32 tensor a name: byte for byte the message that protobuf makes of it."""
    columns = {"score": np.array([[0.5], [2]], np.float32), "all": np.array([[1, 2], [3, 4]], np.float32)}
    wanted = b"".join(
        framed(b"".join(field(2, field(1, name) + field(2, tensor(values))) for name, values in row))
        for row in ([(b"score", [0.5]), (b"all", [1, 2])], [(b"score", [2]), (b"all", [3, 4])])
    )
    assert recordio.write(columns) == wanted


@pytest.mark.parametrize(
    "payload",
    [
        message(field(2, (varint(13) + struct.pack("<f", 1)) * 20_000)),
        message(tensor([1, 2, 3]) + field(2, b"") * 30_000),
        b"".join(field(1, field(1, b"%x" % number)) for number in range(10_000)),
        field(1, b"".join(varint(number << 3) + b"\0" for number in range(1, 250_000))),
    ],
    ids=["values one by one", "many tensors", "many names", "many fields"],
)
def test_a_record_cut_into_bits_takes_no_more_memory_than_a_few_times_its_bytes(payload: bytes) -> None:
    """Where each bit of it would be an object of its own it would be 60 times."""
    body = framed(payload)
    tracemalloc.start()
    with pytest.raises(BadRequest):
        recordio.read(body, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * len(body)
