"""What an endpoint is at, and waiting until it is at rest."""

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError

from deploy import logs
from deploy.aws import Aws, Failed, is_missing
from deploy.configurations import TRIES
from deploy.progress import Progress, looks

Endpoint = Mapping[str, Any]  # DescribeEndpoint's answer
IN_PROGRESS = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


def described(aws: Aws, name: str) -> Endpoint | None:
    """None: there is no such endpoint."""
    try:
        found: Endpoint = aws.client("sagemaker").describe_endpoint(EndpointName=name)
    except ClientError as error:
        if is_missing(error):
            return None
        raise
    return found


def existing(aws: Aws, name: str) -> Endpoint:
    """Raises Failed where there is none."""
    found = described(aws, name)
    if found is None:
        raise Failed(
            f"there is no endpoint {name} in {aws.region}: `python -m deploy up SPEC` makes it; else see --region"
        )
    return found


def settled(aws: Aws, name: str, progress: Progress) -> Endpoint | None:
    """The endpoint once nothing is in progress; None: there is none."""
    return _settled(aws, name, progress, 0, None)


def arrived(aws: Aws, name: str, progress: Progress, before: Endpoint | None) -> Endpoint | None:
    """The same after a change was asked for: for a moment AWS may still show what was before it."""
    return _settled(aws, name, progress, TRIES, before)


def _settled(aws: Aws, name: str, progress: Progress, unseen: int, before: Endpoint | None) -> Endpoint | None:
    """`unseen`: as many looks may show nothing but `before`."""
    with progress.waiting(f"endpoint {name}") as show:
        for _ in looks():
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
    """Its status, and what the coming fleet is at."""
    coming = endpoint.get("PendingDeploymentSummary", {}).get("ProductionVariants", ())
    phases = sorted({each["Status"] for variant in coming for each in variant.get("VariantStatus", ())})
    status = str(endpoint["EndpointStatus"])
    return f"{status}, {', '.join(phases)}" if phases and phases != [status] else status


def delete(aws: Aws, name: str, progress: Progress) -> bool:
    """Returns when it is gone; whether it was there."""
    there = settled(aws, name, progress)
    while there is not None:
        try:
            aws.client("sagemaker").delete_endpoint(EndpointName=name)
        except ClientError as error:
            if is_missing(error):
                break
            if "in-progress" not in str(error):
                raise
        if settled(aws, name, progress) is None:
            break
    return there is not None


def why(aws: Aws, endpoint: Endpoint) -> str:
    """The reason AWS gives, and what the container said last."""
    reason = str(endpoint.get("FailureReason") or "AWS gives no reason")
    said = logs.last(aws, endpoint["EndpointName"], 10)
    return "\n  ".join([reason, *(["its log ends:"] if said else []), *said])
