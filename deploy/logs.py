"""What an endpoint's containers say, from CloudWatch."""

import argparse
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import Aws, Failed, denied, is_missing

RECENT = 15 * 60  # seconds that count as the last words of a container
NEWEST = 2  # containers whose last words are told
GROUP = "/aws/sagemaker/Endpoints/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the endpoint")
    parser.add_argument("--since", type=float, default=60, metavar="MINUTES", help="(%(default)s)")
    parser.add_argument("--filter", default="", help="CloudWatch's filter pattern, such as ERROR")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until Ctrl-C")


def show(aws: Aws, name: str, *, since: float, pattern: str = "", follow: bool = False) -> int:
    """Print the lines, oldest first. Raises Failed where there is no log."""
    start = int((time.time() - since * 60) * 1000)
    try:
        for event in _followed(aws, name, start, pattern) if follow else _once(aws, name, start, pattern):
            print(line(event), flush=True)
    except KeyboardInterrupt:
        if not follow:
            raise
    return 0


def _once(aws: Aws, name: str, start: int, pattern: str) -> Iterator[dict[str, Any]]:
    try:
        yield from events(aws, name, start, pattern)
    except ClientError as error:
        if not is_missing(error):
            raise
        raise Failed(
            f"endpoint {name} has no log yet ({GROUP}{name} in {aws.region}): it has one once a container has started. "
            f"Is there such an endpoint? python -m deploy status {name}"
        ) from error


def _followed(aws: Aws, name: str, start: int, pattern: str) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    while True:
        try:
            for event in events(aws, name, start, pattern):
                if event["eventId"] not in seen:
                    seen.add(event["eventId"])
                    yield event
                    start = max(start, event["timestamp"])
        except ClientError as error:
            if not is_missing(error):
                raise
        time.sleep(2)


def last(aws: Aws, name: str, lines: int) -> list[str]:
    """The newest lines of the containers that began last, which is whose fleet has just failed; an older one, in
    service, would bury them under its own. None where there are none, or where one may not look.
    """
    start = int((time.time() - RECENT) * 1000)
    streams: dict[str, deque[str]] = {}  # in the order in which they began
    try:
        for event in events(aws, name, start):
            streams.setdefault(event["logStreamName"], deque(maxlen=lines)).append(line(event))
    except ClientError as error:
        if not (is_missing(error) or denied(error)):
            raise
    return [each for stream in list(streams)[-NEWEST:] for each in streams[stream]]


def events(aws: Aws, name: str, start: int, pattern: str = "") -> Iterator[dict[str, Any]]:
    """From `start` (milliseconds) on, of all streams."""
    pages = aws.client("logs").get_paginator("filter_log_events")
    given = {"filterPattern": pattern} if pattern else {}
    for page in pages.paginate(logGroupName=f"{GROUP}{name}", startTime=start, **given):
        yield from page["events"]


def line(event: dict[str, Any]) -> str:
    """Time, variant and instance, words."""
    at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC).strftime("%H:%M:%S")
    return f"{at} {event['logStreamName']}  {event['message'].rstrip()}"
