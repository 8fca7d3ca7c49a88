"""Errors: one shape, short, the same on both sides of a process boundary."""

import json

import pytest

from serve import errors
from serve.errors import ModelNotFound, QueueFull


def test_the_keys_aws_servers_use_come_first() -> None:
    """code, type, message, then the server's own keys."""
    parsed = json.loads(errors.body(ModelNotFound("no such model", hint="look", model="x"), "id-1"))
    assert list(parsed) == ["code", "type", "message", "model", "hint", "request_id", "retryable"]
    assert (parsed["code"], parsed["type"], parsed["request_id"]) == (404, "ModelNotFoundException", "id-1")


@pytest.mark.parametrize("text", ["x" * 9000, "é" * 9000, "\x01" * 9000, '"' * 9000, "𝄞" * 9000])
def test_a_long_message_is_cut_and_stays_json(text: str) -> None:
    """InvokeEndpoint shows 2,048 characters; the end of a text is cut, never a key."""
    body = errors.body(ModelNotFound(text, hint=text, model=text), "id")
    parsed = json.loads(body)
    assert len(body) <= errors.MAX_BODY
    assert parsed["message"].startswith(text[:5])
    assert parsed["request_id"] == "id"


def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    """Clients do not parse an HTTP date or a fraction."""
    assert errors.headers(QueueFull("", retry_after=0.2)) == {"Retry-After": "1"}
    assert errors.headers(QueueFull("", retry_after=7.6)) == {"Retry-After": "8"}
    assert errors.headers(QueueFull("")) == {}


def test_an_error_crosses_processes_completely() -> None:
    """The web worker raises the error of the host."""
    there = errors.from_wire(
        json.loads(json.dumps(errors.to_wire(QueueFull("full", hint="h", model="m", retry_after=2))))
    )
    assert type(there) is QueueFull
    assert (there.message, there.hint, there.model, there.retry_after) == ("full", "h", "m", 2)
