"""Models and endpoint configurations: made where they are missing, swept where nothing uses them."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import Aws, is_missing, is_there_already, role_unseen
from deploy.ownership import OWNER, tags
from deploy.progress import Progress
from deploy.requests import Desired

TRIES, PAUSE = 6, 0.5  # for what AWS does not see yet, a role for some 10 s; the pause doubles: 15.5 s in all
Models = dict[str, str]  # name -> role ARN


def ensure(aws: Aws, wanted: Desired, progress: Progress) -> None:
    """What is there under its name is what it says: names are hashes of content."""
    sagemaker = aws.client("sagemaker")
    for name, request in wanted.models.items():
        if _created(partial(sagemaker.create_model, **request)):
            progress.changed(f"model {name} created")
    config = wanted.config
    if _created(partial(sagemaker.create_endpoint_config, **config)):
        progress.changed(f"configuration {config['EndpointConfigName']} created")


def patiently(call: Callable[[], Any], unseen: Callable[[ClientError], bool]) -> Any:
    """The call's answer; it is repeated while AWS does not see what was made a moment ago."""
    for left in reversed(range(TRIES)):
        try:
            return call()
        except ClientError as error:
            if not left or not unseen(error):
                raise
        time.sleep(PAUSE * 2 ** (TRIES - 1 - left))
    raise AssertionError


def configs(aws: Aws, endpoint: str) -> Iterator[str]:
    """All configurations of this endpoint, page by page: named as ours are, and tagged."""
    pages = aws.client("sagemaker").get_paginator("list_endpoint_configs").paginate(NameContains=f"{endpoint}-")
    for page in pages:
        for each in page["EndpointConfigs"]:
            if _ours(aws, endpoint, each["EndpointConfigName"], each["EndpointConfigArn"]):
                yield each["EndpointConfigName"]


def models(aws: Aws, endpoint: str) -> Iterator[str]:
    """The same for models."""
    pages = aws.client("sagemaker").get_paginator("list_models").paginate(NameContains=f"{endpoint}-")
    for page in pages:
        for each in page["Models"]:
            if _ours(aws, endpoint, each["ModelName"], each["ModelArn"]):
                yield each["ModelName"]


def used(aws: Aws, config: str) -> set[str]:
    """The models of a configuration; none where it is gone."""
    try:
        described = aws.client("sagemaker").describe_endpoint_config(EndpointConfigName=config)
    except ClientError as error:
        if is_missing(error):
            return set()
        raise
    return {variant["ModelName"] for variant in described["ProductionVariants"]}


def sweep(aws: Aws, endpoint: str, keep: set[str], progress: Progress) -> None:
    """Delete all configurations and models of an endpoint but those of these names."""
    sagemaker = aws.client("sagemaker")
    for config in [each for each in configs(aws, endpoint) if each not in keep]:
        if gone(partial(sagemaker.delete_endpoint_config, EndpointConfigName=config)):
            progress.changed(f"configuration {config} deleted")
    for model in [each for each in models(aws, endpoint) if each not in keep]:
        if gone(partial(sagemaker.delete_model, ModelName=model)):
            progress.changed(f"model {model} deleted")


def gone(delete: Callable[[], object]) -> bool:
    """Whether it was this call that deleted it: somebody else may be at the same."""
    try:
        delete()
    except ClientError as error:
        if is_missing(error):
            return False
        raise
    return True


def roles_of(aws: Aws, names: list[str]) -> set[str]:
    """The names of the roles that these models run under."""
    found = set()
    for name in names:
        try:
            described: Mapping[str, Any] = aws.client("sagemaker").describe_model(ModelName=name)
        except ClientError as error:
            if not is_missing(error):
                raise
        else:
            found.add(str(described["ExecutionRoleArn"]).rpartition("/")[2])
    return found


def _created(create: Callable[[], object]) -> bool:
    try:
        patiently(create, lambda error: role_unseen(error) or (is_missing(error) and "model data" not in str(error)))
    except ClientError as error:
        if is_there_already(error):
            return False
        raise
    return True


def _ours(aws: Aws, endpoint: str, name: str, arn: str) -> bool:
    if not re.fullmatch(re.escape(endpoint) + "-[0-9a-f]{8}", name):
        return False
    try:
        return tags(aws, arn).get(OWNER) == endpoint
    except ClientError as error:
        if is_missing(error):
            return False
        raise
