"""An endpoint's deletion at a set time: a one-time schedule of EventBridge Scheduler."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from deploy import roles
from deploy.aws import Aws, Request, denied, is_missing, retried, role_unseen
from deploy.progress import Progress


def ensure(aws: Aws, endpoint: str, after: timedelta, progress: Progress) -> datetime:
    """Schedule the endpoint's deletion, or move it; the time of the deletion."""
    when = datetime.now(UTC).replace(microsecond=0) + after
    arn = roles.ensured(aws, role(endpoint, aws.account, aws.region), endpoint, progress)
    fields, client = request(endpoint, when, arn), aws.client("scheduler")
    call = client.update_schedule if there(aws, endpoint) else client.create_schedule
    retried(lambda: call(**fields), role_unseen)
    progress.changed(f"endpoint {endpoint} will be deleted at {when:%Y-%m-%d %H:%M} UTC")
    return when


def role(endpoint: str, account: str, region: str) -> roles.Role:
    """The role under which the scheduler deletes the endpoint."""
    values = {"partition": roles.partition_of(region), "account": account, "region": region, "name": endpoint}
    return roles.rendered("scheduler", role_name(endpoint), values)


def request(endpoint: str, when: datetime, role: str) -> Request:
    """CreateSchedule's and UpdateSchedule's."""
    return {
        "Name": name(endpoint),
        "ScheduleExpression": f"at({when:%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Description": f"Deletes the SageMaker endpoint {endpoint}",
        "Target": {
            # docs.aws.amazon.com/scheduler/latest/UserGuide/managing-targets-universal.html
            "Arn": f"arn:{role.split(':')[1]}:scheduler:::aws-sdk:sagemaker:deleteEndpoint",
            "RoleArn": role,
            "Input": json.dumps({"EndpointName": endpoint}),
        },
    }


def name(endpoint: str) -> str:
    return f"{endpoint}-delete"


def role_name(endpoint: str) -> str:
    return f"{endpoint}-scheduler"


def when(aws: Aws, endpoint: str) -> str | None:
    """The scheduled time of the deletion; None if there is none or AWS denies the question."""
    found = _found(aws, endpoint)
    return str(found["ScheduleExpression"]).removeprefix("at(").rstrip(")") + " UTC" if found else None


def there(aws: Aws, endpoint: str) -> list[str]:
    """The schedule that deletes the endpoint, if it exists."""
    return [f"schedule {name(endpoint)}"] if _found(aws, endpoint) and not is_foreign(aws, endpoint) else []


def is_foreign(aws: Aws, endpoint: str) -> bool:
    """Whether a schedule of this name exists that does something else than delete the endpoint."""
    found = _found(aws, endpoint)
    if found is None:
        return False
    ours = request(endpoint, datetime.now(UTC), found["Target"]["RoleArn"])["Target"]
    return any(found["Target"].get(key) != ours[key] for key in ("Arn", "Input"))


def remove(aws: Aws, endpoint: str, progress: Progress) -> None:
    if there(aws, endpoint):
        aws.client("scheduler").delete_schedule(Name=name(endpoint))
        progress.changed(f"schedule {name(endpoint)} deleted")


def _found(aws: Aws, endpoint: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = aws.client("scheduler").get_schedule(Name=name(endpoint))
    except ClientError as error:
        if is_missing(error) or denied(error):
            return None
        raise
    return found
