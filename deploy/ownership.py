"""The tag by which all that belongs to an endpoint is found again, and nothing else is touched."""

from collections.abc import Mapping
from typing import Any

from deploy.aws import Aws, Failed
from deploy.spec import Spec

OWNER = "deploy:endpoint"


def asked(spec: Spec) -> list[dict[str, str]]:
    """The tags of all that is made for a spec: its own, and ours."""
    return [{"Key": key, "Value": value} for key, value in {**spec.tags, OWNER: spec.name}.items()]


def tags(aws: Aws, arn: str) -> dict[str, str]:
    pages = aws.client("sagemaker").get_paginator("list_tags").paginate(ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}


def must_be_ours(aws: Aws, endpoint: Mapping[str, Any]) -> None:
    """Raises Failed for one (DescribeEndpoint's answer) that something else made."""
    name = endpoint["EndpointName"]
    if tags(aws, endpoint["EndpointArn"]).get(OWNER) != name:
        raise Failed(
            f"there is an endpoint {name} that was not made by `python -m deploy`: choose another name, or hand it "
            f"over: aws sagemaker add-tags --resource-arn {endpoint['EndpointArn']} --tags Key={OWNER},Value={name}"
        )
