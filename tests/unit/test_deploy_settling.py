"""When an endpoint counts as settled, where AWS shows late what was asked of it."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from deploy import progress as pace
from deploy.progress import Progress
from deploy.settling import Endpoint, arrived, settled, stage

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def seen(status: str, config: str, after: int) -> dict[str, Any]:
    modified = BEGAN + timedelta(seconds=after)
    return {"EndpointStatus": status, "EndpointConfigName": config, "LastModifiedTime": modified}


class Shown:
    """An account whose DescribeEndpoint shows these, one after another; None is what is not there."""

    def __init__(self, *looks: Endpoint | None) -> None:
        self._looks = list(looks)

    def client(self, _: str) -> "Shown":
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


def test_what_was_before_is_not_taken_for_a_rollback() -> None:
    """The old state is shown twice after UpdateEndpoint, then the update, then its end."""
    old = seen("InService", "a", 0)
    aws = Shown(old, old, seen("Updating", "a", 1), seen("InService", "b", 2))
    now = arrived(aws, "x", Progress(io.StringIO()), old)  # type: ignore[arg-type]
    assert now == seen("InService", "b", 2)


def test_what_is_not_seen_yet_is_not_taken_for_deleted() -> None:
    aws = Shown(None, None, seen("Creating", "a", 1), seen("InService", "a", 2))
    assert arrived(aws, "x", Progress(io.StringIO()), None) == seen("InService", "a", 2)  # type: ignore[arg-type]


def test_a_rollback_is_seen_by_its_time() -> None:
    """The old configuration again, but later."""
    aws = Shown(seen("RollingBack", "a", 1), seen("InService", "a", 2))
    now = arrived(aws, "x", Progress(io.StringIO()), seen("InService", "a", 0))  # type: ignore[arg-type]
    assert now == seen("InService", "a", 2)


def test_a_wait_is_told_with_each_new_status() -> None:
    """A line each where none can be overwritten; nothing where there was nothing to wait for."""
    out = io.StringIO()
    coming = {**seen("Updating", "a", 1), "PendingDeploymentSummary": {"ProductionVariants": [BAKING]}}
    aws = Shown(seen("Updating", "a", 1), coming, coming, seen("InService", "b", 2))
    settled(aws, "x", Progress(out))  # type: ignore[arg-type]
    assert out.getvalue() == "endpoint x: Updating (0 s)\nendpoint x: Updating, Baking (0 s)\n"
    assert stage(coming) == "Updating, Baking"


BAKING = {"VariantStatus": [{"Status": "Baking"}]}
