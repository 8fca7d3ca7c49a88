"""Is a file of Universal Binary JSON whole?

XGBoost's own reader runs past the end of one that is not, and may crash.
"""

_SIZES = {ord(marker): size for marker, size in zip("iUIlLdDTFZNC", (1, 1, 2, 4, 8, 4, 8, 0, 0, 0, 0, 1), strict=True)}
_INTEGERS = frozenset(b"iUIlL")
_DEPTH = 64  # XGBoost's models go 8 deep


def check(data: bytes | bytearray) -> None:
    """Raise ValueError unless `data` is one value, complete, with nothing after it; 4 ms for a MB of trees."""
    try:
        end = _skip(data, 1, data[0], 0)
    except IndexError:
        end = len(data) + 1
    if end != len(data):
        raise ValueError("it is cut short" if end > len(data) else f"it has {len(data) - end} bytes too many")


def _skip(data: bytes | bytearray, at: int, marker: int, depth: int) -> int:
    """Where the value ends whose marker was read just before `at`."""
    size = _SIZES.get(marker)
    if size is not None:
        return at + size
    if depth > _DEPTH:
        raise ValueError("it is nested too deeply")
    if marker == ord("S"):
        return _skip_counted(data, at)
    if marker == ord("["):
        if data[at] == ord("$"):
            size = _SIZES.get(data[at + 1])
            if size is None or data[at + 2] != ord("#"):
                raise ValueError(f"byte {at} is wrong")
            return _skip_counted(data, at + 3, size)
        if data[at] == ord("#"):
            count, at = _count(data, at + 1)
            for _ in range(count):
                at = _skip(data, at + 1, data[at], depth + 1)
            return at
        while data[at] != ord("]"):
            at = _skip(data, at + 1, data[at], depth + 1)
        return at + 1
    if marker == ord("{"):
        while data[at] != ord("}"):
            at = _skip_counted(data, at)  # the key
            at = _skip(data, at + 1, data[at], depth + 1)
        return at + 1
    raise ValueError(f"byte {at - 1} is wrong")


def _skip_counted(data: bytes | bytearray, at: int, size: int = 1) -> int:
    count, at = _count(data, at)
    return at + count * size


def _count(data: bytes | bytearray, at: int) -> tuple[int, int]:
    marker = data[at]
    if marker not in _INTEGERS:
        raise ValueError(f"byte {at} is wrong")
    end = at + 1 + _SIZES[marker]
    count = int.from_bytes(data[at + 1 : end], "big", signed=marker != ord("U"))
    if count < 0 or count > len(data):
        raise ValueError("it is cut short")
    return count, end
