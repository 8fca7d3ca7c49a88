"""A pipeline's definition, checked before AWS sees it: names, expressions, and each step's request.

The form: docs.aws.amazon.com/sagemaker/latest/dg/define-pipeline.html; `Arguments` are requests of SageMaker's API.
"""

from functools import partial

from deploy import service
from deploy.pipelines.expressions import paths, resolved
from deploy.pipelines.form import TOP, Tree, check_keys
from deploy.pipelines.parameters import values_of
from deploy.pipelines.properties import placeholder
from deploy.pipelines.steps import KINDS, declared
from deploy.table import SpecError


def check(definition: Tree, parameters: Tree | None = None) -> None:
    """Raise SpecError with the path of the first thing that AWS, or a run, would refuse."""
    check_keys(definition, TOP, "definition")
    for key in ("Version", "Steps"):
        if key not in definition:
            raise SpecError(f"definition.{key} is missing")
    if definition["Version"] != "2020-12-01":
        raise SpecError(f"definition.Version must be '2020-12-01', not {definition['Version']!r}")
    values = values_of(definition, parameters or {}, offline=True)
    steps = declared(definition)
    known = partial(placeholder, values, steps)
    resolved(definition.get("PipelineExperimentConfig", {}), known, "PipelineExperimentConfig")
    for name, step in steps.items():
        path = f"Steps.{name}.Arguments"
        check_request(step, resolved(step.get("Arguments", {}), known, path))
    order(definition)


def check_request(step: Tree, arguments: Tree) -> None:
    """Raise SpecError with what AWS would refuse of a step's resolved arguments."""
    kind = KINDS.get(step["Type"])
    if kind is None:
        return
    try:
        service.check(kind.create, {**({kind.name: "named-by-the-pipeline"} if kind.name else {}), **arguments})
    except SpecError as error:
        raise SpecError(f"Steps.{step['Name']}.Arguments: {error}") from error


def order(definition: Tree) -> dict[str, set[str]]:
    """For each step those that must have ended before it, in an order in which they can be run. Raises SpecError."""
    waits = {
        step["Name"]: {path.split(".")[1] for path in paths(step.get("Arguments", {})) if path.startswith("Steps.")}
        | set(step.get("DependsOn", ()))
        for step in definition["Steps"]
    }
    done: dict[str, set[str]] = {}
    while len(done) < len(waits):
        ready = [name for name, needs in waits.items() if name not in done and needs <= set(done)]
        if not ready:
            rest = ", ".join(name for name in waits if name not in done)
            raise SpecError(f"Steps: {rest} wait for one another, so none of them can begin")
        done |= {name: waits[name] for name in ready}
    return done
