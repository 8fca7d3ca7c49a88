"""A pipeline in AWS and all that it needs: roles, function, script and model group, made or brought up to date."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy import pipelines, policies, roles
from deploy.aws import Aws, is_missing, is_there_already
from deploy.pipelines import Definition, Given, definition, function, split, tuned_model
from deploy.pipelines.parameters import values_of
from deploy.policies import Role
from deploy.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where a pipeline lives: its bucket, and roles that are there already."""

    bucket: str
    role: str | None = None  # ARN, of the jobs and the endpoint; none: NAME-pipeline, made and kept by us
    function_role: str | None = None  # ARN, of the function; none: NAME-function


def upsert(aws: Aws, name: str, room: Room, progress: Progress) -> Definition:
    """The pipeline, its roles, its function's code, its script and its model group are as they are here."""
    home, function_name = f"s3://{room.bucket}/{name}", f"{name}-function"
    role, function_role = _ensured_roles(aws, name, room, progress)
    arn = f"arn:{policies.partition_of(aws.region)}:lambda:{aws.region}:{aws.account}:function:{function_name}"
    key = f"{name}/scripts/{_hash(split.__file__)}"
    given = Given(role=role, function=arn, home=home, scripts=f"s3://{room.bucket}/{key}")
    made = pipelines.defined(name, given)
    definition.check(made)
    kinds = {step["Type"] for step in made["Steps"]}
    if "Lambda" in kinds:
        function.ensured(aws, function_name, function_role, progress)
    if "Processing" in kinds:
        aws.client("s3").upload_file(split.__file__, room.bucket, f"{key}/{tuned_model.SCRIPT}")
    ensure_group(aws, made, values_of(made, {}, offline=True), progress)
    _ensure_pipeline(aws, name, made, role, progress)
    return made


def ensure_group(aws: Aws, made: Definition, values: Mapping[str, Any], progress: Progress) -> None:
    """Packages are versions in a group, and a pipeline does not make that by itself."""
    if not any(step["Type"] == "RegisterModel" for step in made["Steps"]):
        return
    group = values["ModelGroup"]
    try:
        aws.client("sagemaker").create_model_package_group(ModelPackageGroupName=group)
    except ClientError as error:
        if not is_there_already(error):
            raise
    else:
        progress.changed(f"model package group {group} created")


def roles_of(aws: Aws, name: str, room: Room) -> tuple[Role, Role, Role]:
    """Of the jobs and the endpoint; of the function; and what whoever runs these commands must be allowed."""
    partition = policies.partition_of(aws.region)
    values: dict[str, str | list[str]] = {
        "partition": partition,
        "region": aws.region,
        "account": aws.account,
        "buckets": [f"arn:{partition}:s3:::{room.bucket}"],
        "objects": [f"arn:{partition}:s3:::{room.bucket}/*"],
        "function": f"arn:{partition}:lambda:{aws.region}:{aws.account}:function:{name}-function",
        "role": room.role.partition(":role/")[2] if room.role else f"{name}-pipeline",
        "function_role": room.function_role.partition(":role/")[2] if room.function_role else f"{name}-function",
    }
    return (
        policies.rendered("pipeline", f"{name}-pipeline", values),
        policies.rendered("function", f"{name}-function", values),
        policies.rendered("pipeline_user", "(whoever runs python -m deploy pipeline)", values),
    )


def _ensured_roles(aws: Aws, name: str, room: Room, progress: Progress) -> tuple[str, str]:
    """Their ARNs. Raises Failed where one is needed and may not be made."""
    jobs, functions, _ = roles_of(aws, name, room)
    return (
        room.role or roles.ensured(aws, jobs, name, progress),
        room.function_role or roles.ensured(aws, functions, name, progress),
    )


def token(made: Definition, given: Mapping[str, str], salt: str = "") -> str:
    """By which AWS knows a start that it has seen: a start that is repeated, or was cut off, starts nothing twice."""
    return hashlib.sha256(json.dumps([made, dict(given), salt], sort_keys=True).encode()).hexdigest()


def is_no_pipeline(error: ClientError) -> bool:
    """AWS has none of that name."""
    return is_missing(error) or "not found" in str(error).lower()


def _ensure_pipeline(aws: Aws, name: str, made: Definition, role: str, progress: Progress) -> None:
    sagemaker, text = aws.client("sagemaker"), json.dumps(made, indent=1)
    try:
        now = sagemaker.describe_pipeline(PipelineName=name)
    except ClientError as error:
        if not is_no_pipeline(error):
            raise
        sagemaker.create_pipeline(
            PipelineName=name, PipelineDefinition=text, RoleArn=role, ClientRequestToken=token(made, {"Role": role})
        )
        progress.changed(f"pipeline {name} created")
        return
    if json.loads(now["PipelineDefinition"]) != made or now["RoleArn"] != role:
        sagemaker.update_pipeline(PipelineName=name, PipelineDefinition=text, RoleArn=role)
        progress.changed(f"pipeline {name} updated")


def _hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
