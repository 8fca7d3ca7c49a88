"""Executions of a pipeline in AWS: started, and followed step by step."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import Aws, Failed
from deploy.pipelines import Definition, definition
from deploy.pipelines.installation import ensure_group, is_no_pipeline, token
from deploy.pipelines.parameters import values_of
from deploy.pipelines.picture import Shown
from deploy.progress import Progress, looks

ENDED = ("Succeeded", "Failed", "Stopped")


def start(aws: Aws, name: str, given: Mapping[str, str], progress: Progress, *, again: bool = False) -> str:
    """The ARN of an execution; of the one before where definition and parameters are the same, unless `again`.

    Raises SpecError for parameters that will not do, Failed where there is no such pipeline.
    """
    sagemaker = aws.client("sagemaker")
    try:
        text = sagemaker.describe_pipeline(PipelineName=name)["PipelineDefinition"]
    except ClientError as error:
        if is_no_pipeline(error):
            raise _unknown(aws, name) from error
        raise
    made = json.loads(text)
    definition.check(made, given)
    ensure_group(aws, made, values_of(made, given), progress)
    answer = sagemaker.start_pipeline_execution(
        PipelineName=name,
        PipelineParameters=[{"Name": key, "Value": value} for key, value in given.items()],
        ClientRequestToken=token(made, given, str(time.time_ns()) if again else ""),
    )
    return str(answer["PipelineExecutionArn"])


def latest(aws: Aws, name: str) -> str:
    """The ARN of the execution begun last. Raises Failed where there is none."""
    try:
        found = aws.client("sagemaker").list_pipeline_executions(
            PipelineName=name, SortBy="CreationTime", SortOrder="Descending", MaxResults=1
        )["PipelineExecutionSummaries"]
    except ClientError as error:
        if is_no_pipeline(error):
            raise _unknown(aws, name) from error
        raise
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
    columns = [f"{name:<{width}}", f"{step.kind:<13}", f"{step.status:<9}", step.took, step.reason]
    return "  ".join(filter(None, columns)).rstrip()


def outputs(name: str, said: Mapping[str, str]) -> Iterator[str]:
    """What a function answered, a line for each output of its step."""
    return (f"{name}: {key} = {value}" for key, value in said.items() if key != "statusCode")


def _unknown(aws: Aws, name: str) -> Failed:
    return Failed(f"there is no pipeline {name} in {aws.region}: `python -m deploy pipeline {name} upsert`")


def _shown(kind: str, told: Mapping[str, Any]) -> Shown:
    begun, ended = told.get("StartTime"), told.get("EndTime")
    seconds = (ended - begun).total_seconds() if begun and ended else None
    return Shown(kind=kind, status=told.get("StepStatus", ""), seconds=seconds, reason=told.get("FailureReason", ""))
