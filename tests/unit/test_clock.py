"""nginx's clock: when a request arrived, and how much of its time was the upload."""

import time

import pytest

from serve.http.clock import parse_clock


@pytest.mark.parametrize(
    ("value", "receive"),
    [
        pytest.param("1000.500 0.250 ", 0.25, id="the first hop: nginx has only read the body"),
        pytest.param("1000.500 0.250 -", 0.25, id="no earlier hop has a time"),
        pytest.param("1000.500 0.250 0.040", 0.21, id="behind a web worker"),
        pytest.param("1000.500 0.250 0.040 : 0.110", 0.1, id="behind a web worker and a model"),
        pytest.param("1000.500 0.250 0.040, 0.010", 0.2, id="two servers of one hop"),
        pytest.param("1000.500 0.250 0.251", 0.0, id="rounded times are not negative"),
    ],
)
def test_the_upload_is_the_time_before_the_first_hop(value: str, receive: float) -> None:
    """The arrival is the same whatever hops there were."""
    clock = parse_clock(value)
    assert clock is not None
    assert clock.arrived_epoch == 1000.25
    assert clock.receive == pytest.approx(receive)


@pytest.mark.parametrize("value", ["", "1000.5", "x y", "- -"])
def test_a_request_without_a_clock_has_no_arrival(value: str) -> None:
    """nginx sets the header on every request; a direct connection to the socket has none."""
    assert parse_clock(value) is None


def test_an_arrival_is_never_in_the_future() -> None:
    """nginx's clock has been set back, or rounds up."""
    clock = parse_clock(f"{time.time() + 60} 0.000 ")
    assert clock is not None
    assert clock.arrived() <= time.monotonic()
