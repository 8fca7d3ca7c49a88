"""The model of a request on the Flask lane, and the error for a request that a model did not answer."""

import pytest

from serve.errors import ModelFailed, RunnerDied, ServeError, TooLate, Unavailable
from serve.http.clock import Clock
from serve.web.host_client import BrokenConnection
from serve.web.invocations import UpstreamAttempt, broken, in_attributes


def test_custom_attributes_may_name_the_model() -> None:
    """Beside other attributes."""
    assert in_attributes("trace=7,model_type=gpt2", "model_type") == "gpt2"
    assert in_attributes("model_type=gpt2; b=1", "model_type") == "gpt2"
    assert in_attributes("my_model_type=gpt2", "model_type") is None
    assert in_attributes("", "model_type") is None


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
    assert attempt is None or (attempt.socket, attempt.clock) == ("m.sock", None)


def test_the_arrival_is_now_less_the_time_spent() -> None:
    """In seconds since 1970, as nginx stamps it."""
    attempt = UpstreamAttempt.parse({"X-Serve-Tried": "504", "X-Serve-Clock": "1000.500 0.250 "})
    assert attempt is not None
    assert attempt.clock == (1000.25, 0.25)


TIMED_OUT = UpstreamAttempt(socket="m.sock", connected=True, timed_out=True, clock=Clock(1.0, 0.0))
BROKE_OFF = UpstreamAttempt(socket="m.sock", connected=True, timed_out=False, clock=Clock(1.0, 0.0))


@pytest.mark.parametrize(
    ("attempt", "found", "kind", "says"),
    [
        pytest.param(BROKE_OFF, {"error": RunnerDied("x")}, RunnerDied, "x", id="the host knows a crash"),
        pytest.param(BROKE_OFF, {"error": None}, RunnerDied, "without an answer", id="nothing is known"),
        pytest.param(
            BROKE_OFF,
            {"error": None, "may_have_begun": False},
            RunnerDied,
            "before it began this request",
            id="it waited in a process that was killed",
        ),
        pytest.param(BROKE_OFF, {"error": None, "load_step": "x"}, Unavailable, "loading: x", id="it is loading again"),
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
            {"error": None, "may_have_begun": False, "load_step": "it waits for memory", "load": 8.0},
            Unavailable,
            "still loading: it waits for memory; the request has waited 8.0 s, and the limit of a request is 9 s",
            id="it waited for a load",
        ),
        pytest.param(
            TIMED_OUT,
            {"error": None, "may_have_begun": False, "load": 7.0},
            TooLate,
            "earlier requests are at work; the load of the model took 7.0 s of them",
            id="it was queued behind a load",
        ),
        pytest.param(
            TIMED_OUT,
            {"error": None, "load": 7.0},
            TooLate,
            "no answer within 9 s (SAGEMAKER_MODEL_SERVER_TIMEOUT); the load of the model took 7.0 s",
            id="its work began late, because of a load",
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
    assert error.retryable
