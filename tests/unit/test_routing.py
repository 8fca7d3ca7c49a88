"""Which model gets a request, and which error explains that it could not be answered: the pure parts."""

import pytest

from serve.errors import (
    BadRequest,
    InternalError,
    ModelFailed,
    NotAcceptable,
    RunnerDied,
    ServeError,
    TooLate,
    Unavailable,
)
from serve.http.addresses import peek, socket_name
from serve.http.media import choose, content_type
from serve.web.host_client import BrokenConnection
from serve.web.invocations import UpstreamAttempt, broken, in_attributes


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model_type": "gpt2", "inputs": "x"}', "gpt2"),
        (b'{"inputs": {"model_type": "nested"}}', None),
        (b'{"inputs": "\\"model_type\\": \\"quoted\\"", "model_type": "bart"}', "bart"),
        (b'{"model_type": null}', None),
        (b"[[1, 2]]", None),
        (b"3", None),
    ],
)
def test_the_field_is_found_at_the_top_and_only_there(body: bytes, name: str | None) -> None:
    """Wherever it stands, whatever else there is."""
    assert peek("model_type")(body) == name


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b'{"model_type": 3}', b'{"a":' * 10_000, b"", b"{} x"])
def test_what_is_not_json_is_a_bad_request(body: bytes) -> None:
    """With the position, and without an exception of the parser's."""
    with pytest.raises(BadRequest):
        peek("model_type")(body)


def test_custom_attributes_may_name_the_model() -> None:
    """Beside whatever else callers put there."""
    assert in_attributes("trace=7,model_type=gpt2", "model_type") == "gpt2"
    assert in_attributes("model_type=gpt2; b=1", "model_type") == "gpt2"
    assert in_attributes("my_model_type=gpt2", "model_type") is None
    assert in_attributes("", "model_type") is None


def test_socket_names_are_short_and_apart() -> None:
    """A path to a socket has 107 bytes; no name can pass for the id of another."""
    assert socket_name("abalone-1") == "abalone-1.sock"
    names = ["x" * 65, "x" * 300, "a b", "ä", ".hidden", "~" + "0" * 16, "-a"]
    short = {socket_name(name) for name in names}
    assert len(short) == len(names)
    assert all(len(each) <= 70 and each.startswith("~") for each in short)


OFFERS = ("text/csv", "application/json")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "text/csv"),
        ("*/*", "text/csv"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("text/csv;q=0.1, application/json;q=0.9", "application/json"),
        ("image/png, */*;q=0.1", "text/csv"),
    ],
)
def test_accept_chooses_what_it_likes_best(accept: str, expected: str) -> None:
    """With weights and wildcards."""
    assert choose(accept, OFFERS, "text/csv") == expected


def test_accept_that_names_nothing_we_write_is_406() -> None:
    """Naming what there is."""
    with pytest.raises(NotAcceptable) as refused:
        choose("image/png", OFFERS, "text/csv")
    assert "application/json" in refused.value.hint


def test_content_type_has_parameters() -> None:
    """`text/csv; charset=utf-8` is text/csv."""
    assert content_type("Text/CSV; charset=latin-1") == ("text/csv", "latin-1")
    assert content_type("") == ("", "utf-8")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, None, id="a first request"),
        pytest.param({"Tried": "502", "Socket": "m.sock", "Connected": "0.001"}, (True, False), id="it broke off"),
        pytest.param({"Tried": "502", "Socket": "m.sock", "Connected": "-"}, (False, False), id="the queue is full"),
        pytest.param({"Tried": "504", "Socket": "m.sock", "Connected": "0.000"}, (True, True), id="a timeout"),
        pytest.param(
            {"Tried": "200 : 504", "Socket": "m.sock", "Connected": "0.000 : -"},
            (False, True),
            id="the last hop counts, not the web worker before it",
        ),
        pytest.param({"Tried": "200 : 502", "Socket": "m.sock", "Connected": ""}, (False, False), id="no connect time"),
    ],
)
def test_nginx_describes_its_last_attempt(headers: dict[str, str], expected: tuple[bool, bool] | None) -> None:
    """In lists of one value for each hop."""
    attempt = UpstreamAttempt.parse({f"X-Serve-{name}": value for name, value in headers.items()})
    assert expected == (attempt and (attempt.connected, attempt.timed_out))
    assert attempt is None or (attempt.socket, attempt.arrived_epoch) == ("m.sock", None)


def test_the_arrival_is_now_less_the_time_spent() -> None:
    """In seconds since 1970, as nginx stamps it."""
    attempt = UpstreamAttempt.parse({"X-Serve-Tried": "504", "X-Serve-Clock": "1000.500 0.250"})
    assert attempt is not None
    assert attempt.arrived_epoch == 1000.25


TIMED_OUT = UpstreamAttempt(socket="m.sock", connected=True, timed_out=True, arrived_epoch=1.0)
BROKE_OFF = UpstreamAttempt(socket="m.sock", connected=True, timed_out=False, arrived_epoch=1.0)


@pytest.mark.parametrize(
    ("attempt", "found", "kind", "says"),
    [
        pytest.param(BROKE_OFF, {"error": RunnerDied("x")}, RunnerDied, "x", id="the host knows a crash"),
        pytest.param(BROKE_OFF, {"error": None}, InternalError, "without an answer", id="nothing is known"),
        pytest.param(BROKE_OFF, {"error": None, "state": "loading"}, Unavailable, "loading", id="it is loading again"),
        pytest.param(TIMED_OUT, {"error": None}, TooLate, "no answer within 9 s", id="work took too long"),
        pytest.param(
            TIMED_OUT, {"error": None, "may_have_begun": False}, TooLate, "did not begin within 9 s", id="it was queued"
        ),
        pytest.param(
            TIMED_OUT,
            {"error": RunnerDied("x"), "may_have_begun": False},
            TooLate,
            "did not begin within 9 s",
            id="the crash was of the request before it",
        ),
        pytest.param(
            TIMED_OUT, {"error": RunnerDied("x")}, RunnerDied, "x", id="the crash may be of this very request"
        ),
        pytest.param(
            TIMED_OUT,
            {"error": ModelFailed("x"), "may_have_begun": False},
            ModelFailed,
            "x",
            id="a model that keeps failing",
        ),
        pytest.param(
            TIMED_OUT,
            {"error": None, "may_have_begun": False, "state": "loading"},
            Unavailable,
            "still loading",
            id="it waited for a load",
        ),
    ],
)
def test_the_error_for_a_request_without_an_answer(
    attempt: UpstreamAttempt, found: dict[str, object], kind: type[ServeError], says: str
) -> None:
    """From nginx's attempt and from what the host knows; a request that has not begun is retryable."""
    error = broken(attempt, BrokenConnection(**found), "m", 9.0)  # type: ignore[arg-type]
    assert type(error) is kind
    assert says in error.message
    assert error.retryable == (kind is not InternalError)
