"""The parts of the storm that decide: which inputs come, what counts as explained, as flat, as asked at a moment."""

from itertools import islice, pairwise

import pytest

from tests.storm.fleet import working_set
from tests.storm.hostile import Input, inputs, judge
from tests.storm.long_run import MAY_GROW_MB, MAY_OPEN, Growth

ERROR = b'{"code":%d,"type":"%b","message":"%b","model":null,"hint":"","request_id":"r","retryable":false}'


def _error(status: int, kind: bytes, message: bytes = b"m") -> bytes:
    return ERROR % (status, kind, message)


def _answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def test_the_series_of_a_seed_is_always_the_same() -> None:
    """And another seed has another series."""
    first, again, other = (list(islice(inputs(seed, lambda: ["own-0", "trees-0"]), 300)) for seed in (1, 1, 2))
    assert first == again != other
    assert len({each.kind for each in first}) > 9


@pytest.mark.parametrize(
    ("data", "then", "explained"),
    [
        (_answer(200, b"anything"), "read", True),
        (_answer(400, _error(400, b"BadRequestException")), "read", True),
        (_answer(400, b"<html>"), "read", False),
        (_answer(500, _error(500, b"InternalServerException")), "read", False),
        (
            _answer(500, _error(500, b"InternalServerException", b"inference.py raised")),
            "read",
            True,
        ),
        (b"", "read", False),
        (b"", "reset", True),
        (b"SSH-2.0", "read", False),
    ],
)
def test_an_answer_is_explained_or_not(data: bytes, then: str, explained: bool) -> None:
    """An error has the server's own shape, and is no fault of it; silence is the answer to broken input only."""
    assert (judge(Input("x", [b"POST"], then=then), data)[1] == "") is explained


def test_a_process_is_flat_below_both_bounds() -> None:
    """Of memory and of descriptors."""

    def grown(mb: float, files: int) -> Growth:
        return Growth(
            part="host", samples=9, first_mb=10, last_mb=10 + mb, most_mb=99, first_files=5, last_files=5 + files
        )

    assert grown(MAY_GROW_MB, MAY_OPEN).flat
    assert not grown(MAY_GROW_MB + 1, 0).flat
    assert not grown(0, MAY_OPEN + 1).flat


def test_one_model_of_the_working_set_is_replaced_at_a_time() -> None:
    """So that each replacement is a load and an eviction, and all models have their turn."""
    names = [f"m{number}" for number in range(6)]
    sets = [set(working_set(names, call, size=3, every=10)) for call in range(0, 60, 10)]
    assert [len(one & two) for one, two in pairwise(sets)] == [2] * 5
    assert set().union(*sets) == set(names)
    assert working_set(names, 3, size=3, every=10) == working_set(names, 9, size=3, every=10)
