"""The steps of a definition: the types there are, and each step's form."""

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.pipelines.form import LAMBDA, STEP, Tree, check_keys, name_of
from deploy.table import SpecError, unknown


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of step: the call that its arguments are, the call that tells what it came to, and who names it."""

    create: str
    describe: str
    name: str | None  # the member that the pipeline fills by itself


KINDS = {
    "Training": Kind("CreateTrainingJob", "DescribeTrainingJob", "TrainingJobName"),
    "Processing": Kind("CreateProcessingJob", "DescribeProcessingJob", "ProcessingJobName"),
    "Tuning": Kind("CreateHyperParameterTuningJob", "DescribeHyperParameterTuningJob", "HyperParameterTuningJobName"),
    "Transform": Kind("CreateTransformJob", "DescribeTransformJob", "TransformJobName"),
    "Model": Kind("CreateModel", "DescribeModel", "ModelName"),
    "RegisterModel": Kind("CreateModelPackage", "DescribeModelPackage", None),
}
TYPES = [*KINDS, "Lambda"]


def declared(definition: Tree) -> dict[str, Tree]:
    """By name. Raises SpecError for what AWS would refuse of their form."""
    if not isinstance(definition["Steps"], list) or not definition["Steps"]:
        raise SpecError("definition.Steps must be a list of at least one step")
    steps: dict[str, Tree] = {}
    for number, step in enumerate(definition["Steps"]):
        where = f"Steps[{number}]"
        name = name_of(step, where)
        if step.get("Type") not in TYPES:
            raise SpecError(f"Steps.{name}.Type: {unknown(str(step.get('Type')), TYPES, 'type of step')}")
        if name in steps:
            raise SpecError(f"{where}.Name: two steps are called {name!r}")
        check_keys(step, LAMBDA if step["Type"] == "Lambda" else STEP, f"Steps.{name}")
        if step["Type"] == "Lambda" and not isinstance(step.get("FunctionArn"), str):
            raise SpecError(f"Steps.{name}.FunctionArn is missing")
        if not isinstance(step.get("Arguments", {}), Mapping):
            raise SpecError(f"Steps.{name}.Arguments must be a table, not {step['Arguments']!r}")
        steps[name] = step
    for name, step in steps.items():
        for before in step.get("DependsOn", ()):
            if before not in steps:
                raise SpecError(f"Steps.{name}.DependsOn: {unknown(str(before), list(steps), 'step')}")
    return steps
