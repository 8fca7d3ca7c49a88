"""Thrift's compact protocol, in which Parquet writes its footer and the header of each page: the integers of a struct.

github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md. Whatever Arrow might read in another way is
refused. All raise ValueError or IndexError where the bytes are none of it.
"""

from collections.abc import Callable, Sequence

_STOP, _TRUE, _FALSE, _BYTE, _I64, _DOUBLE, _BINARY, _LIST, _STRUCT = 0, 1, 2, 3, 6, 7, 8, 9, 12
_DEEPEST = 12  # Parquet goes 6 deep
_LAST = 64  # number of a field; Parquet's end at 17

Integers = dict[int, int]


def struct(
    body: bytes,
    at: int,
    path: Sequence[int] = (),
    each: Callable[[Integers], None] | None = None,
    depth: int = 0,
) -> tuple[Integers, int]:
    """The integers of the struct at `at`, by the numbers of their fields, and where it ends.

    `each` gets the integers of every struct that is found by going along `path`, a field a step, through lists too.
    """
    if depth > _DEEPEST:
        raise ValueError("a struct is nested too deeply")
    integers: Integers = {}
    field = 0
    while body[at] != _STOP:
        kind, delta = body[at] & 15, body[at] >> 4
        at += 1
        if delta:
            field += delta
        else:
            number, at = _varint(body, at)
            field = _zigzag(number)
        if not 0 < field <= _LAST:
            raise ValueError("a struct has a field that Parquet has not")
        if _BYTE < kind <= _I64:
            if field in integers:
                raise ValueError("a struct has a field twice")
            number, at = _varint(body, at)
            integers[field] = _zigzag(number)
        elif path and field == path[0]:
            at = _along(body, at, kind, path[1:], each, depth + 1)
        else:
            at = _skip(body, at, kind, depth + 1)
    if each and not path:
        each(integers)
    return integers, at + 1


def _along(
    body: bytes, at: int, kind: int, path: Sequence[int], each: Callable[[Integers], None] | None, depth: int
) -> int:
    count = 1
    if kind == _LIST:
        count, kind, at = _list(body, at)
    if kind != _STRUCT:
        raise ValueError("there is something else where a struct belongs")
    for _ in range(count):
        _, at = struct(body, at, path, each, depth)
    return at


def _skip(body: bytes, at: int, kind: int, depth: int) -> int:
    if kind in (_TRUE, _FALSE):
        return at
    if kind == _BYTE:
        return at + 1
    if kind <= _I64:
        return _varint(body, at)[1]
    if kind == _DOUBLE:
        return at + 8
    if kind == _STRUCT:
        return struct(body, at, depth=depth)[1]
    if kind == _BINARY:
        length, at = _varint(body, at)
        return at + length
    if kind == _LIST:
        if depth > _DEEPEST:
            raise ValueError("a list is nested too deeply")
        count, kind, at = _list(body, at)
        for _ in range(count):
            at = at + 1 if kind in (_TRUE, _FALSE) else _skip(body, at, kind, depth + 1)
        return at
    raise ValueError("there is a type that Parquet has not")  # which has no sets and maps


def _list(body: bytes, at: int) -> tuple[int, int, int]:
    """How many elements, of what kind, and where the first is."""
    count, kind = body[at] >> 4, body[at] & 15
    at += 1
    if count == 15:
        count, at = _varint(body, at)
    if count > len(body) - at:  # each takes a byte at least
        raise ValueError("a list is cut short")
    return count, kind, at


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = body[at + shift // 7]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + shift // 7 + 1
    raise ValueError("there is a number too long")


def _zigzag(number: int) -> int:
    return number >> 1 ^ -(number & 1)
