"""A pipeline in AWS: made or updated with all that it needs, started, and followed step by step."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy import pipelines, policies, roles
from deploy.aws import Aws, Failed, is_missing, is_there_already
from deploy.pipelines import Definition, Given, definition, function, split, tuned_model
from deploy.pipelines.picture import Shown
from deploy.policies import Role
from deploy.progress import Progress, elapsed, looks

ENDED = ("Succeeded", "Failed", "Stopped")


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
    ensure_group(aws, made, definition.values_of(made, {}, offline=True), progress)
    _ensure_pipeline(aws, name, made, role, progress)
    return made


def start(aws: Aws, name: str, given: Mapping[str, str], progress: Progress, *, again: bool = False) -> str:
    """The ARN of an execution; of the one before where definition and parameters are the same, unless `again`.

    Raises SpecError for parameters that will not do, Failed where there is no such pipeline.
    """
    sagemaker = aws.client("sagemaker")
    try:
        text = sagemaker.describe_pipeline(PipelineName=name)["PipelineDefinition"]
    except ClientError as error:
        if is_missing(error) or "not found" in str(error).lower():
            raise Failed(
                f"there is no pipeline {name} in {aws.region}: `python -m deploy pipeline {name} upsert`"
            ) from error
        raise
    made = json.loads(text)
    definition.check(made, given)
    ensure_group(aws, made, definition.values_of(made, given), progress)
    answer = sagemaker.start_pipeline_execution(
        PipelineName=name,
        PipelineParameters=[{"Name": key, "Value": value} for key, value in given.items()],
        ClientRequestToken=token(made, given, str(time.time_ns()) if again else ""),
    )
    return str(answer["PipelineExecutionArn"])


def token(made: Definition, given: Mapping[str, str], salt: str = "") -> str:
    """By which AWS knows a start that it has seen: a start that is repeated, or was cut off, starts nothing twice."""
    return hashlib.sha256(json.dumps([made, dict(given), salt], sort_keys=True).encode()).hexdigest()


def latest(aws: Aws, name: str) -> str:
    """The ARN of the execution begun last. Raises Failed where there is none."""
    found = aws.client("sagemaker").list_pipeline_executions(
        PipelineName=name, SortBy="CreationTime", SortOrder="Descending", MaxResults=1
    )["PipelineExecutionSummaries"]
    if not found:
        raise Failed(f"pipeline {name} has not been started: `python -m deploy pipeline {name} start`")
    return str(found[0]["PipelineExecutionArn"])


def steps(aws: Aws, execution: str) -> dict[str, Mapping[str, Any]]:
    """What AWS tells of each step that has begun, in the order in which they did."""
    pages = (
        aws.client("sagemaker")
        .get_paginator("list_pipeline_execution_steps")
        .paginate(PipelineExecutionArn=execution, SortOrder="Ascending")
    )
    return {step["StepName"]: step for page in pages for step in page["PipelineExecutionSteps"]}


def shown(made: Definition, told: Mapping[str, Mapping[str, Any]]) -> dict[str, Shown]:
    """Each step of a definition, with what is told of it."""
    return {step["Name"]: _shown(step["Type"], told.get(step["Name"], {})) for step in made["Steps"]}


def defined_for(aws: Aws, execution: str) -> Definition:
    said = aws.client("sagemaker").describe_pipeline_definition_for_execution(PipelineExecutionArn=execution)
    made: Definition = json.loads(said["PipelineDefinition"])
    return made


def follow(aws: Aws, execution: str, progress: Progress) -> dict[str, Mapping[str, Any]]:
    """Until it has ended, with a line for each change. Raises Failed where it did not succeed, with every reason."""
    sagemaker, made = aws.client("sagemaker"), defined_for(aws, execution)
    before: dict[str, Shown] = {}
    with progress.waiting(execution.rpartition(":")[2]) as show:
        for _ in looks():
            # The status first: what it ended with is then in the list.
            described = sagemaker.describe_pipeline_execution(PipelineExecutionArn=execution)
            status, told = described["PipelineExecutionStatus"], steps(aws, execution)
            now = shown(made, told)
            for line in changes(before, now):
                progress.say(line)
            before = now
            if status in ENDED:
                break
            show(f"{status}, {', '.join(name for name, each in now.items() if each.status == 'Executing')}")
    if status != "Succeeded":
        reasons = [f"{name}: {each.reason}" for name, each in now.items() if each.reason]
        raise Failed("\n  ".join([f"{status}: {described.get('FailureReason', 'AWS gives no reason')}", *reasons]))
    return told


def changes(before: Mapping[str, Shown], now: Mapping[str, Shown]) -> Iterator[str]:
    """A line for each step whose status is another than before."""
    width = max(map(len, now), default=0)
    for name, step in now.items():
        if step.status and (name not in before or before[name].status != step.status):
            yield line(name, step, width)


def line(name: str, step: Shown, width: int) -> str:
    took = (
        "" if step.seconds is None else f"  {elapsed(step.seconds) if step.seconds >= 10 else f'{step.seconds:.1f} s'}"
    )
    reason = f"  {step.reason}" if step.reason else ""
    return f"{name:<{width}}  {step.kind:<13}  {step.status:<9}{took}{reason}"


def _shown(kind: str, told: Mapping[str, Any]) -> Shown:
    begun, ended = told.get("StartTime"), told.get("EndTime")
    seconds = (ended - begun).total_seconds() if begun and ended else None
    return Shown(kind=kind, status=told.get("StepStatus", ""), seconds=seconds, reason=told.get("FailureReason", ""))


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


def _ensure_pipeline(aws: Aws, name: str, made: Definition, role: str, progress: Progress) -> None:
    sagemaker, text = aws.client("sagemaker"), json.dumps(made, indent=1)
    try:
        now = sagemaker.describe_pipeline(PipelineName=name)
    except ClientError as error:
        if not (is_missing(error) or "not found" in str(error).lower()):
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
