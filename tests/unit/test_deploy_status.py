"""When an endpoint counts as settled, although AWS shows a requested change late; the log lines of a failure."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from deploy import progress as pace
from deploy import status
from deploy.progress import Progress
from deploy.status import Endpoint, settled, settled_after, stage

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def seen(status: str, config: str, after: int) -> dict[str, Any]:
    modified = BEGAN + timedelta(seconds=after)
    return {"EndpointStatus": status, "EndpointConfigName": config, "LastModifiedTime": modified}


class Polled:
    """An account whose DescribeEndpoint returns these states in turn; None: the endpoint does not exist."""

    def __init__(self, *looks: Endpoint | None) -> None:
        self._looks = list(looks)

    def client(self, _: str) -> "Polled":
        return self

    def describe_endpoint(self, **_: str) -> Endpoint:
        now = self._looks.pop(0)
        if now is None:
            said = {"Code": "ValidationException", "Message": "Could not find endpoint"}
            raise ClientError({"Error": said}, "DescribeEndpoint")
        return now


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FIRST", 0.0)


def test_the_state_before_is_not_taken_for_a_rollback() -> None:
    """The old state is shown twice after UpdateEndpoint, then the update, then its end."""
    old = seen("InService", "a", 0)
    aws = Polled(old, old, seen("Updating", "a", 1), seen("InService", "b", 2))
    now = settled_after(aws, "x", Progress(io.StringIO()), old)  # type: ignore[arg-type]
    assert now == seen("InService", "b", 2)


def test_an_endpoint_that_is_not_visible_yet_is_not_taken_for_deleted() -> None:
    aws = Polled(None, None, seen("Creating", "a", 1), seen("InService", "a", 2))
    assert settled_after(aws, "x", Progress(io.StringIO()), None) == seen("InService", "a", 2)  # type: ignore[arg-type]


def test_a_rollback_is_recognised_by_its_time() -> None:
    """The old configuration with a later time."""
    aws = Polled(seen("RollingBack", "a", 1), seen("InService", "a", 2))
    now = settled_after(aws, "x", Progress(io.StringIO()), seen("InService", "a", 0))  # type: ignore[arg-type]
    assert now == seen("InService", "a", 2)


def test_a_wait_prints_each_new_status() -> None:
    """One line each where lines cannot be overwritten; none if there is nothing to wait for."""
    out = io.StringIO()
    coming = {**seen("Updating", "a", 1), "PendingDeploymentSummary": {"ProductionVariants": [BAKING]}}
    aws = Polled(seen("Updating", "a", 1), coming, coming, seen("InService", "b", 2))
    settled(aws, "x", Progress(out))  # type: ignore[arg-type]
    assert out.getvalue() == "endpoint x: Updating (0 s)\nendpoint x: Updating, Baking (0 s)\n"
    assert stage(coming) == "Updating, Baking"


BAKING = {"VariantStatus": [{"Status": "Baking"}]}


class Logged:
    """An account whose endpoint's log has these events: stream and message."""

    def __init__(self, *events: tuple[str, str]) -> None:
        self._events = events

    def client(self, _: str) -> "Logged":
        return self

    def get_paginator(self, _: str) -> "Logged":
        return self

    def paginate(self, **_: Any) -> list[dict[str, Any]]:
        return [{"events": [{"timestamp": 0, "logStreamName": name, "message": said} for name, said in self._events]}]


def test_the_last_lines_are_those_of_the_containers_that_started_last() -> None:
    """The lines of an older fleet in service do not push them out."""
    old = [("A/old", f"GET {number}") for number in range(1000)]
    aws = Logged(*old[:500], ("A/new-1", "no such setting"), ("A/new-2", "no such setting"), *old[500:])
    said = status.last_lines(aws, "x", 10)  # type: ignore[arg-type]
    assert [line.split("  ", 1)[1] for line in said] == ["no such setting"] * 2
