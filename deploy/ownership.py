"""The owner of each object that `up` would create or change: asked before the first one is created."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from deploy import plan, roles, schedule
from deploy.aws import Aws, denied, is_missing
from deploy.errors import Failed
from deploy.plan import OWNER, Desired
from deploy.spec import Spec


def tags_of(aws: Aws, arn: str) -> dict[str, str]:
    """The tags of an object of SageMaker."""
    pages = aws.client("sagemaker").get_paginator("list_tags").paginate(ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}


def must_be_ours(aws: Aws, endpoint: Mapping[str, Any]) -> None:
    """Raise Failed for an endpoint without the owner's tag, unless it was deleted meanwhile."""
    name = endpoint["EndpointName"]
    try:
        owner = tags_of(aws, endpoint["EndpointArn"]).get(OWNER)
    except ClientError as error:
        if is_missing(error):
            return
        raise
    if owner != name:
        raise Failed(
            f"endpoint {name} was not created by `python -m deploy`: choose another name, or add the owner's tag: "
            f"aws sagemaker add-tags --resource-arn {endpoint['EndpointArn']} --tags Key={OWNER},Value={name}"
        )


def refuse_foreign(spec: Spec, aws: Aws, wanted: Desired, *, scheduled: bool) -> None:
    """Raise Failed if an object beside the endpoint has a name that `up` needs, and does not belong to the endpoint.

    `scheduled`: with the schedule that deletes the endpoint.
    """
    found = [
        *_foreign_roles(spec, aws, scheduled),
        *_foreign_models(spec, aws, wanted),
        *_foreign_alarms(spec, aws),
        *([f"schedule {schedule.name(spec.name)}"] if scheduled and schedule.is_foreign(aws, spec.name) else []),
    ]
    if found:
        raise Failed(
            f"endpoint {spec.name}: objects of its names exist that were not created by `python -m deploy` for it: "
            f"{', '.join(found)}. Choose another name for the endpoint, or delete them; nothing was changed"
        )


def _foreign_roles(spec: Spec, aws: Aws, scheduled: bool) -> Iterator[str]:
    # A role that the spec names may be an administrator's: it only gets a policy of the endpoint.
    names = [roles.role_name(spec)] if spec.role is None else []
    for name in [*names, *([schedule.role_name(spec.name)] if scheduled else [])]:
        found = roles.existing(aws, name)
        if found is not None and not roles.made_by_us(found):
            yield f"role {name}"


def _foreign_models(spec: Spec, aws: Aws, wanted: Desired) -> Iterator[str]:
    client, config = aws.client("sagemaker"), wanted.config["EndpointConfigName"]
    asked = [
        *((f"model {name}", "ModelArn", partial(client.describe_model, ModelName=name)) for name in wanted.models),
        (
            f"configuration {config}",
            "EndpointConfigArn",
            partial(client.describe_endpoint_config, EndpointConfigName=config),
        ),
    ]
    for shown, key, describe in asked:
        try:
            owner = tags_of(aws, describe()[key]).get(OWNER)
        except ClientError as error:
            if not is_missing(error):
                raise
        else:
            if owner != spec.name:
                yield shown


def _foreign_alarms(spec: Spec, aws: Aws) -> Iterator[str]:
    names = [each["AlarmName"] for each in plan.all_alarm_requests(spec)]
    client = aws.client("cloudwatch")
    for start in range(0, len(names), 100):  # DescribeAlarms takes at most 100 names
        for alarm in client.describe_alarms(AlarmNames=names[start : start + 100])["MetricAlarms"]:
            watched = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
            if watched.get("EndpointName") != spec.name or _owner_of(client, alarm["AlarmArn"]) not in (
                spec.name,
                None,
            ):
                yield f"alarm {alarm['AlarmName']}"


def _owner_of(client: Any, alarm: str) -> str | None:
    """The owner's tag of an alarm; None if CloudWatch denies the question, "" without the tag."""
    try:
        tags = client.list_tags_for_resource(ResourceARN=alarm)["Tags"]
    except ClientError as error:
        if denied(error):
            return None
        raise
    return str(next((each["Value"] for each in tags if each["Key"] == OWNER), ""))
