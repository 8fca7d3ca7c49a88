"""The verb `pipeline`: train, register and deploy by SageMaker Pipelines, or on this machine."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from deploy import pipelines
from deploy.aws import Aws, Failed
from deploy.pipelines import Given, definition, executions, installation, picture
from deploy.pipelines.installation import Room
from deploy.pipelines.parameters import values_of
from deploy.progress import Progress
from deploy.table import SpecError

VERBS = {
    "upsert": "make it in AWS, or bring it up to date: roles, function, script, model group, definition",
    "start": "an execution; the same definition and parameters again are the same execution, but for --again",
    "follow": "the last execution, or --execution, until it ends",
    "steps": "what each step has come to so far",
    "roles": "the two that upsert makes, and what you must be allowed yourself, as JSON for an administrator",
    "show": "a tree, and with --svg a picture; of an execution with --execution",
    "run": "upsert, start and follow; with --local all on this machine",
}
# For offline pictures, what an account would fill in.
NOWHERE = Given(
    role="arn:aws:iam::000000000000:role/pipeline",
    function="arn:aws:lambda:us-east-1:000000000000:function:none",
    home="s3://bucket/pipeline",
    scripts="s3://bucket/scripts",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(f"{verb:<8} {what}" for verb, what in VERBS.items())
    parser.add_argument("name", choices=list(pipelines.PIPELINES))
    parser.add_argument("action", choices=list(VERBS), help="see below")
    parser.add_argument("--param", action="append", default=[], type=_parameter, metavar="NAME=VALUE")
    parser.add_argument("--bucket", help="upsert: where all is kept, and all that its roles may read and write")
    parser.add_argument("--role", help="upsert: ARN of a role for the jobs and the endpoint; else one is made")
    parser.add_argument("--function-role", help="upsert: ARN of a role for the function; else one is made")
    parser.add_argument("--again", action="store_true", help="start: though nothing has changed")
    parser.add_argument("--execution", help="follow, steps, show: its ARN, or `last`")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write a picture, steps coloured by their state")
    parser.add_argument("--region", help="else AWS_DEFAULT_REGION")
    parser.add_argument("--local", action="store_true", help="run: here, without an AWS account")
    parser.add_argument(
        "--runtime", choices=("auto", "docker", "process"), default="auto", help="--local: what runs jobs"
    )
    parser.add_argument("--image", default="sagemaker-serve", help="--local: for Docker (%(default)s, of `make image`)")
    parser.add_argument("--data", type=Path, help="--local: CSV, the label first; else Abalone")


def run(given: argparse.Namespace) -> int:
    """Raises SpecError and Failed."""
    parameters = _tidy(dict(given.param))
    if given.svg and not given.svg.parent.is_dir():
        raise SpecError(f"--svg {given.svg}: there is no directory {given.svg.parent}")
    if given.action == "run" or (given.action == "show" and not given.execution):
        made = pipelines.defined(given.name, NOWHERE)
        definition.check(made, parameters)
        if given.action == "show":
            return _show(given, made, executions.shown(made, {}))
        if given.local:
            return _here(given, parameters)
        values_of(made, parameters)  # none is missing: told before anything is made
    aws, progress = Aws(given.region), Progress()
    if given.action in ("upsert", "run", "roles"):
        if not given.bucket:
            raise SpecError("give --bucket: where the pipeline keeps its data, artifacts and models")
        room = Room(bucket=given.bucket, role=given.role, function_role=given.function_role)
        if given.action == "roles":
            print(json.dumps([role.said for role in installation.roles_of(aws, given.name, room)], indent=2))
            return 0
        installation.upsert(aws, given.name, room, progress)
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
    try:
        told = executions.follow(aws, execution, progress)
    finally:
        if given.svg:
            _draw(given, *_seen(aws, execution))
    for name, step in told.items():
        said = step.get("Metadata", {}).get("Lambda", {}).get("OutputParameters", ())
        for line in executions.outputs(name, {each["Name"]: each["Value"] for each in said}):
            print(line)
    return 0


def _seen(aws: Aws, execution: str) -> tuple[pipelines.Definition, Mapping[str, picture.Shown]]:
    """An execution's definition, and what its steps have come to."""
    made = executions.defined_for(aws, execution)
    return made, executions.shown(made, executions.steps(aws, execution))


def _show(given: argparse.Namespace, made: pipelines.Definition, steps: Mapping[str, picture.Shown]) -> int:
    print(picture.tree(given.name, definition.order(made), steps))
    _draw(given, made, steps)
    return 0


def _draw(given: argparse.Namespace, made: pipelines.Definition, steps: Mapping[str, picture.Shown]) -> None:
    if given.svg:
        picture.write(given.svg, given.name, definition.order(made), steps)
        print(f"picture: {given.svg}")


def _here(given: argparse.Namespace, parameters: Mapping[str, str]) -> int:
    try:
        from local_test.pipelines import local
    except ModuleNotFoundError as error:
        raise Failed(f"--local needs {error.name}: `make platform` installs it, Ctrl-C ends it again") from error
    return local.run(given.name, parameters, given)


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _tidy(parameters: dict[str, str]) -> dict[str, str]:
    """Prefixes as the definitions join them: Output without a slash at its end, ModelPrefix with one."""
    if "Output" in parameters:
        parameters["Output"] = parameters["Output"].rstrip("/")
    if "ModelPrefix" in parameters:
        parameters["ModelPrefix"] = parameters["ModelPrefix"].rstrip("/") + "/"
    return parameters
