"""The state of an endpoint: described, waited for, reported, and its containers' log from CloudWatch."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from deploy import scaling, schedule
from deploy.aws import TRIES, Aws, denied, is_missing
from deploy.errors import Failed
from deploy.progress import Progress, polls

Endpoint = Mapping[str, Any]  # DescribeEndpoint's response
IN_PROGRESS = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
RECENT = 15 * 60  # seconds of the log in which a failed container's last lines are searched
NEWEST = 2  # containers whose last lines are shown
GROUP = "/aws/sagemaker/Endpoints/"


def described(aws: Aws, name: str) -> Endpoint | None:
    """The endpoint, or None if it does not exist."""
    try:
        found: Endpoint = aws.client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return found


def existing(aws: Aws, name: str) -> Endpoint:
    """The endpoint. Raises Failed if it does not exist."""
    found = described(aws, name)
    if found is None:
        raise Failed(
            f"endpoint {name} not found in {aws.region}: create it with `python -m deploy up SPEC`, or check --region"
        )
    return found


def settled(aws: Aws, name: str, progress: Progress) -> Endpoint | None:
    """The endpoint once no change is in progress, or None if it does not exist."""
    return _settled(aws, name, progress, 0, None)


def settled_after(aws: Aws, name: str, progress: Progress, before: Endpoint | None) -> Endpoint | None:
    """The endpoint once a requested change has ended. For a moment AWS may still show its state before."""
    return _settled(aws, name, progress, TRIES, before)


def _settled(aws: Aws, name: str, progress: Progress, unseen: int, before: Endpoint | None) -> Endpoint | None:
    """`unseen`: the number of polls that may show the state before."""
    with progress.waiting(f"endpoint {name}") as show:
        for _ in polls():
            now = described(aws, name)
            if unseen and (now is None or (before and now["LastModifiedTime"] == before["LastModifiedTime"])):
                unseen -= 1
                continue
            if now is None or now["EndpointStatus"] not in IN_PROGRESS:
                return now
            unseen = 0
            show(stage(now))
    raise AssertionError


def stage(endpoint: Endpoint) -> str:
    """The status, with the phases of the coming fleet."""
    coming = endpoint.get("PendingDeploymentSummary", {}).get("ProductionVariants", ())
    phases = sorted({each["Status"] for variant in coming for each in variant.get("VariantStatus", ())})
    status = str(endpoint["EndpointStatus"])
    return f"{status}, {', '.join(phases)}" if phases and phases != [status] else status


def why(aws: Aws, endpoint: Endpoint) -> str:
    """The reason that AWS gives for a failure, and the last lines of the container's log."""
    reason = str(endpoint.get("FailureReason") or "AWS gives no reason")
    lines = last_lines(aws, endpoint["EndpointName"], 10)
    return "\n  ".join([reason, *(["last lines of its log:"] if lines else []), *lines])


# The report


def report(aws: Aws, name: str) -> dict[str, Any]:
    """The endpoint's state as data. Raises Failed if it does not exist."""
    now = existing(aws, name)
    scales = {variant: _range(target) for variant, target in scaling.registered(aws, name).items()}
    return {
        "endpoint": name,
        "status": stage(now),
        "reason": now.get("FailureReason"),
        "config": now["EndpointConfigName"],
        "changed": f"{now['LastModifiedTime']:%Y-%m-%d %H:%M:%S}",
        "deleted_at": schedule.when(aws, name),
        "variants": [_variant(each, aws, now, scales) for each in now.get("ProductionVariants", ())],
    }


def _variant(variant: Any, aws: Aws, endpoint: Any, scales: dict[str, str]) -> dict[str, Any]:
    name = variant["VariantName"]
    state = {
        "variant": name,
        "instances": variant.get("CurrentInstanceCount"),
        "wanted": variant.get("DesiredInstanceCount"),
        "weight": variant.get("CurrentWeight"),
        "scaling": scales.get(name, "fixed"),
        "image": next(
            (each.get("ResolvedImage", each.get("SpecifiedImage")) for each in variant.get("DeployedImages", ())), None
        ),
    }
    return {**state, **_configured(aws, endpoint["EndpointConfigName"], name)}


def _configured(aws: Aws, config: str, variant: str) -> dict[str, Any]:
    """Instance type and models, from the configuration and the model; empty if AWS denies or lacks them."""
    sagemaker = aws.client("sagemaker")
    try:
        variants = sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
        found = next(each for each in variants if each["VariantName"] == variant)
        container = sagemaker.describe_model(ModelName=found["ModelName"]).get("PrimaryContainer", {})
    except (ClientError, StopIteration) as error:
        if isinstance(error, ClientError) and not (is_missing(error) or denied(error)):
            raise
        return {}
    source = container.get("ModelDataSource", {}).get("S3DataSource", {}).get("S3Uri")
    return {
        "instance": found.get("InstanceType", "serverless"),
        "model": found["ModelName"],
        "models": container.get("ModelDataUrl") or source,
        "multi_model": container.get("Mode") == "MultiModel",
    }


def _range(target: Any) -> str:
    return f"{target['MinCapacity']}-{target['MaxCapacity']}"


def text(report: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    head = [(key, report[key]) for key in ("endpoint", "status", "reason", "config", "changed")]
    if report["deleted_at"]:
        head.append(("deleted at", report["deleted_at"]))
    lines = [f"{key:<11} {value}" for key, value in head if value]
    rows = [["variant", "instance", "now/wanted", "weight", "scaling"]]
    for each in report["variants"]:
        weight = "" if each["weight"] is None else f"{each['weight']:g}"
        counts = "" if each["instances"] is None else f"{each['instances']}/{each['wanted']}"
        rows.append([each["variant"], each.get("instance", ""), counts, weight, each["scaling"]])
    head_row, *table = _table(rows)
    lines += ["", head_row]
    for row, each in zip(table, report["variants"], strict=True):
        name, at, digest = str(each["image"] or "").rpartition("/")[2].partition("@sha256:")
        beside = (("models", each.get("models")), ("image", name + at + digest[:12]))
        lines += [row, *(f"  {key:<6} {value}" for key, value in beside if value)]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


# The log


def show_log(aws: Aws, name: str, *, since: float, pattern: str = "", follow: bool = False) -> int:
    """Print the log's lines of the last `since` minutes, oldest first. Raises Failed if there is no log."""
    start = int((time.time() - since * 60) * 1000)
    try:
        for event in _followed(aws, name, start, pattern) if follow else _once(aws, name, start, pattern):
            print(log_line(event), flush=True)
    except KeyboardInterrupt:
        if not follow:
            raise
    return 0


def _once(aws: Aws, name: str, start: int, pattern: str) -> Iterator[dict[str, Any]]:
    try:
        yield from log_events(aws, name, start, pattern)
    except ClientError as error:
        if not is_missing(error):
            raise
        raise Failed(
            f"endpoint {name} has no log ({GROUP}{name} in {aws.region}): AWS creates it when a container starts. "
            f"Check the endpoint: python -m deploy status {name}"
        ) from error


def _followed(aws: Aws, name: str, start: int, pattern: str) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    while True:
        try:
            for event in log_events(aws, name, start, pattern):
                if event["eventId"] not in seen:
                    seen.add(event["eventId"])
                    yield event
                    start = max(start, event["timestamp"])
        except ClientError as error:
            if not is_missing(error):
                raise
        time.sleep(2)


def last_lines(aws: Aws, name: str, lines: int) -> list[str]:
    """The last lines of the containers that started last: their fleet is the one that failed.

    The lines of an older fleet in service would push these out. Empty if there is no log or AWS denies it.
    """
    start = int((time.time() - RECENT) * 1000)
    streams: dict[str, deque[str]] = {}  # in the order of their start
    try:
        for event in log_events(aws, name, start):
            streams.setdefault(event["logStreamName"], deque(maxlen=lines)).append(log_line(event))
    except ClientError as error:
        if not (is_missing(error) or denied(error)):
            raise
    return [each for stream in list(streams)[-NEWEST:] for each in streams[stream]]


def log_events(aws: Aws, name: str, start: int, pattern: str = "") -> Iterator[dict[str, Any]]:
    """The events of all streams from `start` (milliseconds since 1970) on."""
    pages = aws.client("logs").get_paginator("filter_log_events")
    given = {"filterPattern": pattern} if pattern else {}
    for page in pages.paginate(logGroupName=f"{GROUP}{name}", startTime=start, **given):
        yield from page["events"]


def log_line(event: dict[str, Any]) -> str:
    """Time, variant and instance, message."""
    at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC).strftime("%H:%M:%S")
    return f"{at} {event['logStreamName']}  {event['message'].rstrip()}"
