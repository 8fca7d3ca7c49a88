"""What an endpoint's containers say, from CloudWatch."""

import argparse
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import Aws, Failed, denied, is_missing

RECENT = 15 * 60  # seconds that count as the last words of a container
GROUP = "/aws/sagemaker/Endpoints/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the endpoint")
    parser.add_argument("--since", type=float, default=60, metavar="MINUTES", help="(%(default)s)")
    parser.add_argument("--filter", default="", help="CloudWatch's filter pattern, such as ERROR")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until Ctrl-C")


def show(aws: Aws, name: str, *, since: float, pattern: str = "", follow: bool = False) -> int:
    """Print the lines, oldest first. Raises Failed where there is no log."""
    start = int((time.time() - since * 60) * 1000)
    seen: set[str] = set()
    while True:
        try:
            for event in events(aws, name, start, pattern):
                if event["eventId"] not in seen:
                    seen.add(event["eventId"])
                    print(line(event), flush=True)
                    start = max(start, event["timestamp"])
        except ClientError as error:
            if not is_missing(error):
                raise
            if not follow:
                raise Failed(
                    f"endpoint {name} has no log yet ({GROUP}{name}): it has one once a container has started"
                ) from error
        if not follow:
            return 0
        time.sleep(2)


def last(aws: Aws, name: str, lines: int) -> list[str]:
    """The newest lines of the last minutes; none where there are none, or where one may not look."""
    start = int((time.time() - RECENT) * 1000)
    try:
        return [line(event) for event in events(aws, name, start)][-lines:]
    except ClientError as error:
        if is_missing(error) or denied(error):
            return []
        raise


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
