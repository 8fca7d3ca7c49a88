"""Executions of a pipeline in AWS: start, follow, and show as lines, as a tree, or as a Mermaid diagram."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from deploy.aws import Aws
from deploy.errors import Failed
from deploy.pipelines import validation
from deploy.pipelines.definitions import Definition
from deploy.pipelines.installation import ensure_groups, is_no_pipeline, token
from deploy.pipelines.validation import values_of
from deploy.progress import Progress, elapsed, polls

ENDED = ("Succeeded", "Failed", "Stopped")
MARKS = {"Succeeded": "+", "Failed": "x", "Executing": ">", "Starting": ">", "NotRun": "-"}
COLOURS = {  # fill and line, by state
    "Succeeded": ("#d7f0dd", "#1e7b34"),
    "Failed": ("#fbdcdc", "#b3261e"),
    "Executing": ("#dbe9fb", "#1f5fa8"),
    "Starting": ("#dbe9fb", "#1f5fa8"),
    "Stopping": ("#fdeecb", "#8a6100"),
    "Stopped": ("#fdeecb", "#8a6100"),
    "NotRun": ("#ececec", "#777777"),
}
# Mermaid's escapes. Unescaped, these characters end the label, or are HTML or Markdown in it.
ESCAPES = str.maketrans({c: f"#{ord(c)};" for c in '#"<>&`'} | {"\n": " "})
OFTEN = 0.5  # seconds between two polls of a platform on this machine
LONGEST_REASON = 100  # characters of a failure's reason in a box

Waits = Mapping[str, set[str]]  # step -> the steps before it, in an order in which they can run


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """The state of a step. An empty status: the step has not started."""

    kind: str
    status: str = ""
    seconds: float | None = None
    reason: str = ""

    @property
    def took(self) -> str:
        if self.seconds is None:
            return ""
        return elapsed(self.seconds) if self.seconds >= 10 else f"{self.seconds:.1f} s"

    @property
    def line(self) -> str:
        return ", ".join(filter(None, [self.kind, self.status, self.took]))


def start(aws: Aws, name: str, given: Mapping[str, str], progress: Progress, *, again: bool = False) -> str:
    """The ARN of an execution: a new one, or the earlier one of equal definition and parameters, unless `again`.

    Raises SpecError for invalid parameters, Failed if the pipeline does not exist.
    """
    sagemaker = aws.client("sagemaker")
    try:
        text = sagemaker.describe_pipeline(PipelineName=name)["PipelineDefinition"]
    except ClientError as error:
        if is_no_pipeline(error):
            raise _unknown(aws, name) from error
        raise
    made = json.loads(text)
    validation.check(made, given)
    ensure_groups(aws, made, values_of(made, given), progress)
    started = sagemaker.start_pipeline_execution(
        PipelineName=name,
        PipelineParameters=[{"Name": key, "Value": value} for key, value in given.items()],
        ClientRequestToken=token(made, given, str(time.time_ns()) if again else ""),
    )
    return str(started["PipelineExecutionArn"])


def latest(aws: Aws, name: str) -> str:
    """The ARN of the execution that started last. Raises Failed if there is none."""
    try:
        found = aws.client("sagemaker").list_pipeline_executions(
            PipelineName=name, SortBy="CreationTime", SortOrder="Descending", MaxResults=1
        )["PipelineExecutionSummaries"]
    except ClientError as error:
        if is_no_pipeline(error):
            raise _unknown(aws, name) from error
        raise
    if not found:
        raise Failed(f"pipeline {name} has no execution: start one with `python -m deploy pipeline {name} start`")
    return str(found[0]["PipelineExecutionArn"])


def steps(aws: Aws, execution: str) -> dict[str, Mapping[str, Any]]:
    """The steps that have started, by name, in the order of their start, as ListPipelineExecutionSteps has them."""
    pages = (
        aws.client("sagemaker")
        .get_paginator("list_pipeline_execution_steps")
        .paginate(PipelineExecutionArn=execution, SortOrder="Ascending")
    )
    return {step["StepName"]: step for page in pages for step in page["PipelineExecutionSteps"]}


def states(made: Definition, listed: Mapping[str, Mapping[str, Any]]) -> dict[str, StepState]:
    """The state of every step of a definition, with the steps in the branches of its conditions."""
    return {
        name: _state(placed.step["Type"], listed.get(name, {})) for name, placed in validation.steps_of(made).items()
    }


def defined_for(aws: Aws, execution: str) -> Definition:
    found = aws.client("sagemaker").describe_pipeline_definition_for_execution(PipelineExecutionArn=execution)
    made: Definition = json.loads(found["PipelineDefinition"])
    return made


def follow(aws: Aws, execution: str, progress: Progress, *, often: bool = False) -> dict[str, Mapping[str, Any]]:
    """Print a line for each change until the execution ends; its steps. Raises Failed with all reasons if it failed."""
    sagemaker, made = aws.client("sagemaker"), defined_for(aws, execution)
    before: dict[str, StepState] = {}
    with progress.waiting(execution.rpartition(":")[2]) as show:
        for _ in polls(OFTEN) if often else polls():
            # The status is read before the steps: once it is final, the list of steps is final too.
            described = sagemaker.describe_pipeline_execution(PipelineExecutionArn=execution)
            status, listed = described["PipelineExecutionStatus"], steps(aws, execution)
            now = states(made, listed)
            for line in changes(before, now):
                progress.say(line)
            before = now
            if status in ENDED:
                break
            if not often or progress.terminal:  # on a machine of one's own the changes follow at once
                show(f"{status}, {', '.join(name for name, each in now.items() if each.status == 'Executing')}")
    if status != "Succeeded":
        reasons = [f"{name}: {each.reason}" for name, each in now.items() if each.reason]
        raise Failed("\n  ".join([f"{status}: {described.get('FailureReason', 'AWS gives no reason')}", *reasons]))
    return listed


def changes(before: Mapping[str, StepState], now: Mapping[str, StepState]) -> Iterator[str]:
    """A line for each step whose status has changed."""
    width = max(map(len, now), default=0)
    for name, step in now.items():
        if step.status and (name not in before or before[name].status != step.status):
            yield line(name, step, width)


def line(name: str, step: StepState, width: int) -> str:
    columns = [f"{name:<{width}}", f"{step.kind:<13}", f"{step.status:<9}", step.took, step.reason]
    return "  ".join(filter(None, columns)).rstrip()


def outputs(name: str, values: Mapping[str, str]) -> Iterator[str]:
    """A line for each output of a Lambda step."""
    return (f"{name}: {key} = {value}" for key, value in values.items() if key != "statusCode")


def layers(waits: Waits) -> list[list[str]]:
    """The steps by depth: each one layer after the last of the steps it waits for."""
    depth: dict[str, int] = {}
    for name, before in waits.items():
        depth[name] = 1 + max((depth[each] for each in before), default=-1)
    return [[name for name in depth if depth[name] == level] for level in range(max(depth.values(), default=-1) + 1)]


def direct(waits: Waits) -> dict[str, set[str]]:
    """`waits` without indirect steps: A before C is left out if A is before B and B before C."""
    above: dict[str, set[str]] = {}
    found = {}
    for name, before in waits.items():
        further = set().union(*(above[each] for each in before))
        above[name] = before | further
        found[name] = before - further
    return found


def tree(title: str, waits: Waits, steps: Mapping[str, StepState]) -> str:
    """One line a step, indented by depth, with the steps it waits for."""
    width = max(map(len, waits), default=0)
    before = direct(waits)
    lines = [title]
    levels = layers(waits)
    for depth, level in enumerate(levels):
        for name in level:
            step = steps[name]
            after = f"  after {', '.join(sorted(before[name]))}" if before[name] else ""
            mark = MARKS.get(step.status, "o")
            padding = " " * (2 * (len(levels) - 1 - depth))
            lines.append(f"{'  ' * (depth + 1)}{mark} {name:<{width}}{padding}  {step.line}{after}")
            if step.reason:
                lines.append(f"{'  ' * (depth + 1)}    {step.reason}")
    return "\n".join(lines)


def mermaid(title: str, waits: Waits, steps: Mapping[str, StepState]) -> str:
    """A flowchart: a box for each step, coloured by its state; GitHub and IDEs draw it. mermaid.js.org"""
    ids = {name: f"s{number}" for number, name in enumerate(waits)}  # a name could be a keyword: `end`
    lines = ["---", f"title: {json.dumps(title)}", "---", "flowchart LR"]
    for name, step in ((name, steps[name]) for name in waits):
        reason = step.reason[:LONGEST_REASON] + "…" * (len(step.reason) > LONGEST_REASON)
        label = "<br>".join(part.translate(ESCAPES) for part in (name, step.line, reason) if part)
        lines.append(f'  {ids[name]}["{label}"]' + (f":::{step.status}" if step.status in COLOURS else ""))
    lines += [f"  {ids[one]} --> {ids[name]}" for name, before in direct(waits).items() for one in sorted(before)]
    seen = sorted({step.status for step in steps.values()} & set(COLOURS))
    lines += [f"  classDef {each} fill:{COLOURS[each][0]},stroke:{COLOURS[each][1]},color:#222" for each in seen]
    return "\n".join([*lines, ""])


def write(path: Path, title: str, waits: Waits, steps: Mapping[str, StepState]) -> None:
    """Write the diagram; into FILE.md as a fenced block of Markdown. Raises Failed."""
    text = mermaid(title, waits, steps)
    try:
        path.write_text(f"```mermaid\n{text}```\n" if path.suffix == ".md" else text, encoding="utf-8")
    except OSError as error:
        raise Failed(f"the diagram could not be written to {path}: {error.strerror}") from error


def _unknown(aws: Aws, name: str) -> Failed:
    return Failed(
        f"pipeline {name} not found in {aws.region}: create it with `python -m deploy pipeline {name} upsert`"
    )


def _state(kind: str, listed: Mapping[str, Any]) -> StepState:
    begun, ended = listed.get("StartTime"), listed.get("EndTime")
    seconds = (ended - begun).total_seconds() if begun and ended else None
    reason = listed.get("FailureReason", "")
    return StepState(kind=kind, status=listed.get("StepStatus", ""), seconds=seconds, reason=reason)
