"""The verb `pipeline`: install, start, follow and show pipelines in AWS, or run them on this machine."""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.aws import Aws
from deploy.errors import Failed, SpecError
from deploy.pipelines import definitions, executions, installation, sources, validation
from deploy.pipelines.definitions import Given
from deploy.pipelines.executions import StepState
from deploy.pipelines.installation import Home
from deploy.pipelines.sources import Source
from deploy.progress import Progress

# Stands for the resources of an account in offline checks and diagrams.
NOWHERE = Given(
    role="arn:aws:iam::000000000000:role/pipeline",
    function="arn:aws:lambda:us-east-1:000000000000:function:none",
    home="s3://bucket/pipeline",
    scripts="s3://bucket/scripts",
    data="s3://bucket/data",
)
LOCAL = "local_test.pipelines"  # the module that runs a pipeline on this machine
LOCAL_OPTIONS = ("runtime", "image", "data", "picture")


def run(given: argparse.Namespace, connect: Callable[[str | None], Aws]) -> int:
    """Raises SpecError and Failed."""
    if given.name == "new":
        return _new(Path(given.action))
    if given.local:
        return _run_here(given)
    source = sources.named(given.name)
    parameters = checked(given)
    if given.action == "run" or (given.action == "show" and not given.execution):
        made = source.build(NOWHERE)
        validation.check(made, parameters)
        if given.action == "show":
            return _show(given, source, made, executions.states(made, {}))
        validation.values_of(made, parameters)  # a missing parameter is an error before anything is created
    aws, progress = connect(given.region), Progress()
    if given.action in ("upsert", "run", "roles"):
        if not given.bucket:
            raise SpecError("--bucket is missing: the bucket of the pipeline's data, artifacts and models")
        home = Home(bucket=given.bucket, role=given.role, function_role=given.function_role)
        if given.action == "roles":
            print(json.dumps([role.document for role in installation.roles_of(aws, source.name, home)], indent=2))
            return 0
        installation.upsert(aws, source, home, progress)
        if not progress.changes:
            print("unchanged")
    if given.action == "upsert":
        return 0
    if given.action in ("start", "run"):
        execution = executions.start(aws, source.name, parameters, progress, again=given.again)
        print(execution)
        if given.action == "start":
            return 0
    else:
        execution = given.execution or "last"
        execution = executions.latest(aws, source.name) if execution == "last" else execution
    if given.action == "show":
        return _show(given, source, *_seen(aws, execution))
    if given.action == "steps":
        _, steps = _seen(aws, execution)
        width = max(map(len, steps))
        print("\n".join(executions.line(name, step, width) for name, step in steps.items()))
        return 0
    return _follow(given, source, aws, execution, progress)


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


def follow(aws: Aws, execution: str, progress: Progress, title: str, picture: Path | None, *, often: bool) -> None:
    """Print each change until the execution ends, then the outputs of its functions; draw it. Raises Failed."""
    try:
        listed = executions.follow(aws, execution, progress, often=often)
    finally:
        if picture:
            _draw(picture, title, *_seen(aws, execution))
    for name, step in listed.items():
        found = step.get("Metadata", {}).get("Lambda", {}).get("OutputParameters", ())
        for line in executions.outputs(name, {each["Name"]: each["Value"] for each in found}):
            progress.say(line)


def _new(directory: Path) -> int:
    from deploy.pipelines import project

    for line in project.write(directory):
        print(line)
    return 0


def _run_here(given: argparse.Namespace) -> int:
    """Replaces this process by the command that has the emulator, which is no part of what is installed to deploy."""
    if given.action != "run":
        raise SpecError(f"--local is an option of run: `python -m deploy pipeline {given.name} run --local`")
    if importlib.util.find_spec("local_test") is None:
        raise Failed(
            "run --local needs the emulator: clone this repository, `make platform`, and run the command there"
        )
    words = [part for name, value in given.param for part in ("--param", f"{name}={value}")]
    for option in LOCAL_OPTIONS:
        if getattr(given, option) is not None:
            words += [f"--{option}", str(getattr(given, option))]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", LOCAL, given.name, *words])


def _follow(given: argparse.Namespace, source: Source, aws: Aws, execution: str, progress: Progress) -> int:
    follow(aws, execution, progress, source.name, given.picture, often=False)
    return 0


def _seen(aws: Aws, execution: str) -> tuple[definitions.Definition, Mapping[str, StepState]]:
    """An execution's definition, and the state of its steps."""
    made = executions.defined_for(aws, execution)
    return made, executions.states(made, executions.steps(aws, execution))


def _show(
    given: argparse.Namespace, source: Source, made: definitions.Definition, steps: Mapping[str, StepState]
) -> int:
    print(executions.tree(source.name, validation.order(made), steps))
    if given.picture:
        _draw(given.picture, source.name, made, steps)
    return 0


def _draw(picture: Path, title: str, made: definitions.Definition, steps: Mapping[str, StepState]) -> None:
    executions.write(picture, title, validation.order(made), steps)
    print(f"picture: {picture}")
