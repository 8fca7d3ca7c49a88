"""protobuf's wire format, as far as records of numbers need it: the fields of a message, read and written.

By hand, since a message of three levels needs no compiler and no generated code. What is read is a view of the bytes
given, or an array of the numbers in it: memory stays within a few times the message, however it is cut up.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# What the elements of a repeated field may be: their type in numpy, and the wire type of one that stands by itself.
FLOAT, DOUBLE, INTEGER = ("<f4", _FIXED32), ("<f8", _FIXED64), ("<i8", _VARINT)


class Malformed(Exception):
    """What is wrong with a message."""


def fields(message: memoryview | bytes) -> Iterator[tuple[int, int, memoryview | int]]:
    """The fields of a message, in order: number, wire type, and its bytes or its integer."""
    view = memoryview(message)
    at, size = 0, len(view)
    while at < size:
        tag, at = _varint(view, at)
        wire = tag & 7
        if wire == _BYTES:
            length, at = _varint(view, at)
        elif wire == _VARINT:
            number, at = _varint(view, at)
            yield tag >> 3, wire, number
            continue
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise Malformed("is not a protobuf message")
        if at + length > size:
            raise Malformed("is cut short inside")
        yield tag >> 3, wire, view[at : at + length]
        at += length


def repeated(message: memoryview | bytes, kinds: Mapping[int, tuple[str, int]]) -> dict[int, npt.NDArray[Any]]:
    """The numbers of each of these fields that is there: packed or, as protobuf also allows, one by one."""
    parts: dict[int, list[npt.NDArray[Any]]] = {}
    alone: dict[int, bytearray] = {}
    for number, wire, value in fields(message):
        if number not in kinds:
            continue
        dtype, single = kinds[number]
        if wire == single:
            loose = alone.setdefault(number, bytearray())
            loose += (value & (1 << 63) - 1).to_bytes(8, "little") if isinstance(value, int) else value
        elif isinstance(value, int) or wire != _BYTES:
            raise Malformed("has values that are cut short")
        else:
            before = parts.setdefault(number, [])
            if number in alone:
                before.append(np.frombuffer(alone.pop(number), dtype))
            before.append(_packed(value, dtype))
    for number, loose in alone.items():
        parts.setdefault(number, []).append(np.frombuffer(loose, kinds[number][0]))
    return {number: found[0] if len(found) == 1 else np.concatenate(found) for number, found in parts.items()}


def _packed(value: memoryview, dtype: str) -> npt.NDArray[Any]:
    if dtype == INTEGER[0]:
        return _packed_varints(value)
    if len(value) % np.dtype(dtype).itemsize:
        raise Malformed("has values that are cut short")
    return np.frombuffer(value, dtype)


def _packed_varints(packed: memoryview) -> npt.NDArray[np.int64]:
    found = np.frombuffer(packed, np.uint8)
    if not len(found):
        return np.empty(0, np.int64)
    if found.max() < 0x80:
        return found.astype(np.int64)
    numbers = []
    at = 0
    while at < len(packed):
        number, at = _varint(packed, at)
        numbers.append(number & (1 << 63) - 1)
    return np.array(numbers, np.int64)


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(view[at : at + 10]):  # 64 bits in sevens
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise Malformed("has a number that is cut short")


def delimited(field: int, data: bytes) -> bytes:
    """A field of bytes: text, a message, or packed numbers."""
    return bytes([field << 3 | _BYTES]) + _as_varint(len(data)) + data


def _as_varint(value: int) -> bytes:
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
