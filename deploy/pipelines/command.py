"""The verb `pipeline`: install, start, follow and show pipelines in AWS."""

import argparse
import json
from collections.abc import Callable, Mapping

from deploy.aws import Aws
from deploy.errors import SpecError
from deploy.pipelines import definitions, executions, installation, validation
from deploy.pipelines.definitions import Given
from deploy.pipelines.executions import StepState
from deploy.pipelines.installation import Home
from deploy.progress import Progress

# Stands for the resources of an account in offline checks and diagrams.
NOWHERE = Given(
    role="arn:aws:iam::000000000000:role/pipeline",
    function="arn:aws:lambda:us-east-1:000000000000:function:none",
    home="s3://bucket/pipeline",
    scripts="s3://bucket/scripts",
)


def run(given: argparse.Namespace, connect: Callable[[str | None], Aws]) -> int:
    """Raises SpecError and Failed."""
    parameters = checked(given)
    if given.action == "run" or (given.action == "show" and not given.execution):
        made = definitions.defined(given.name, NOWHERE)
        validation.check(made, parameters)
        if given.action == "show":
            return _show(given, made, executions.states(made, {}))
        validation.values_of(made, parameters)  # a missing parameter is an error before anything is created
    aws, progress = connect(given.region), Progress()
    if given.action in ("upsert", "run", "roles"):
        if not given.bucket:
            raise SpecError("--bucket is missing: the bucket of the pipeline's data, artifacts and models")
        home = Home(bucket=given.bucket, role=given.role, function_role=given.function_role)
        if given.action == "roles":
            print(json.dumps([role.document for role in installation.roles_of(aws, given.name, home)], indent=2))
            return 0
        installation.upsert(aws, given.name, home, progress)
        if not progress.changes:
            print("unchanged")
    if given.action == "upsert":
        return 0
    if given.action in ("start", "run"):
        execution = executions.start(aws, given.name, parameters, progress, again=given.again)
        print(execution)
        if given.action == "start":
            return 0
    else:
        execution = given.execution or "last"
        execution = executions.latest(aws, given.name) if execution == "last" else execution
    if given.action == "show":
        return _show(given, *_seen(aws, execution))
    if given.action == "steps":
        _, steps = _seen(aws, execution)
        width = max(map(len, steps))
        print("\n".join(executions.line(name, step, width) for name, step in steps.items()))
        return 0
    return _follow(given, aws, execution, progress)


def checked(given: argparse.Namespace) -> dict[str, str]:
    """The parameters, prefixes as the definitions join them. Raises SpecError for a --picture without a directory."""
    if given.picture and not given.picture.parent.is_dir():
        raise SpecError(f"--picture {given.picture}: directory {given.picture.parent} not found")
    parameters = dict(given.param)
    if "Output" in parameters:
        parameters["Output"] = parameters["Output"].rstrip("/")
    if "ModelPrefix" in parameters:
        parameters["ModelPrefix"] = parameters["ModelPrefix"].rstrip("/") + "/"
    return parameters


def _follow(given: argparse.Namespace, aws: Aws, execution: str, progress: Progress) -> int:
    try:
        listed = executions.follow(aws, execution, progress)
    finally:
        if given.picture:
            _draw(given, *_seen(aws, execution))
    for name, step in listed.items():
        found = step.get("Metadata", {}).get("Lambda", {}).get("OutputParameters", ())
        for line in executions.outputs(name, {each["Name"]: each["Value"] for each in found}):
            print(line)
    return 0


def _seen(aws: Aws, execution: str) -> tuple[definitions.Definition, Mapping[str, StepState]]:
    """An execution's definition, and the state of its steps."""
    made = executions.defined_for(aws, execution)
    return made, executions.states(made, executions.steps(aws, execution))


def _show(given: argparse.Namespace, made: definitions.Definition, steps: Mapping[str, StepState]) -> int:
    print(executions.tree(given.name, validation.order(made), steps))
    _draw(given, made, steps)
    return 0


def _draw(given: argparse.Namespace, made: definitions.Definition, steps: Mapping[str, StepState]) -> None:
    if given.picture:
        executions.write(given.picture, given.name, validation.order(made), steps)
        print(f"picture: {given.picture}")
