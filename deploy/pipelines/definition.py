"""A pipeline's definition, checked before AWS sees it: names, expressions, and each step's request.

The form: docs.aws.amazon.com/sagemaker/latest/dg/define-pipeline.html; `Arguments` are requests of SageMaker's API.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.model import Shape

from deploy import service
from deploy.pipelines.expressions import found, parts_of, paths, resolved
from deploy.service import Later
from deploy.table import SpecError, unknown

Tree = Mapping[str, Any]


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
TOP = ["Version", "Metadata", "Parameters", "PipelineExperimentConfig", "Steps"]
STEP = ["Name", "Type", "Arguments", "DependsOn", "DisplayName", "Description", "RetryPolicies", "CacheConfig"]
LAMBDA = ["FunctionArn", "OutputParameters"]
PARAMETER_TYPES: dict[str, type] = {"String": str, "Integer": int, "Float": float, "Boolean": bool}
EXECUTION = [
    *("PipelineExecutionId", "PipelineExecutionArn", "PipelineName", "PipelineArn"),
    *("StartDateTime", "CurrentDateTime"),
]
NAME = re.compile(r"[A-Za-z0-9\-_]{1,64}")


def check(definition: Tree, parameters: Tree | None = None) -> None:
    """Raise SpecError with the path of the first thing that AWS, or a run, would refuse."""
    _keys(definition, TOP, "definition")
    for key in ("Version", "Steps"):
        if key not in definition:
            raise SpecError(f"definition.{key} is missing")
    if definition["Version"] != "2020-12-01":
        raise SpecError(f"definition.Version must be '2020-12-01', not {definition['Version']!r}")
    values = values_of(definition, parameters or {}, offline=True)
    steps = _steps(definition)
    known = partial(_placeholder, values, steps)
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


def values_of(definition: Tree, given: Tree, *, offline: bool = False) -> dict[str, Any]:
    """Every parameter's value, given or by default. Raises SpecError for unknown, missing or wrong ones.

    Offline those without a value stand for any value of their type.
    """
    declared = _parameters(definition)
    for name in given:
        if name not in declared:
            raise SpecError(unknown(name, list(declared), "parameter"))
    missing = [name for name, each in declared.items() if name not in given and "DefaultValue" not in each]
    if missing and not offline:
        raise SpecError(f"give {', '.join(missing)}: --param {missing[0]}=...")
    values = {}
    for name, each in declared.items():
        kind = each["Type"]
        value = given.get(name, each.get("DefaultValue", _any(kind)))
        values[name] = _typed(value, kind, f"parameter {name}") if name in given else value
        allowed = each.get("EnumValues")
        if allowed and value not in allowed and not isinstance(value, Later):
            raise SpecError(f"parameter {name}: {unknown(str(value), [str(one) for one in allowed], 'value')}")
    return values


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


def _parameters(definition: Tree) -> dict[str, Tree]:
    declared: dict[str, Tree] = {}
    for number, each in enumerate(definition.get("Parameters", ())):
        where = f"Parameters[{number}]"
        if not isinstance(each, Mapping):
            raise SpecError(f"{where} must be a table, not {each!r}")
        _keys(each, ["Name", "Type", "DefaultValue", "EnumValues"], where)
        name, kind = each.get("Name"), each.get("Type")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise SpecError(f"{where}.Name: {name!r} must be 1 to 64 letters, digits, - and _")
        if kind not in PARAMETER_TYPES:
            raise SpecError(f"{where}.Type: {unknown(str(kind), list(PARAMETER_TYPES), 'type')}")
        if name in declared:
            raise SpecError(f"{where}.Name: two parameters are called {name!r}")
        if "DefaultValue" in each and not _is(each["DefaultValue"], kind):
            raise SpecError(f"{where}.DefaultValue: {each['DefaultValue']!r} is no {kind}")
        declared[name] = each
    return declared


def _steps(definition: Tree) -> dict[str, Tree]:
    if not isinstance(definition["Steps"], list) or not definition["Steps"]:
        raise SpecError("definition.Steps must be a list of at least one step")
    steps: dict[str, Tree] = {}
    for number, step in enumerate(definition["Steps"]):
        where = f"Steps[{number}]"
        if not isinstance(step, Mapping):
            raise SpecError(f"{where} must be a table, not {step!r}")
        name = step.get("Name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise SpecError(f"{where}.Name: {name!r} must be 1 to 64 letters, digits, - and _")
        if step.get("Type") not in TYPES:
            raise SpecError(f"Steps.{name}.Type: {unknown(str(step.get('Type')), TYPES, 'type of step')}")
        if name in steps:
            raise SpecError(f"{where}.Name: two steps are called {name!r}")
        _keys(step, STEP + (LAMBDA if step["Type"] == "Lambda" else []), f"Steps.{name}")
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


def _placeholder(values: Tree, steps: Mapping[str, Tree], path: str) -> Any:
    """A parameter's value; for the rest one of the type that it will have. Raises SpecError where nothing will be."""
    if not isinstance(path, str):
        raise SpecError("it must be a string")
    root, _, rest = path.partition(".")
    if root == "Parameters":
        if rest not in values:
            raise SpecError(unknown(rest, list(values), "parameter"))
        return values[rest]
    if root == "Execution":
        if rest not in EXECUTION:
            raise SpecError(unknown(rest, EXECUTION, "property of an execution"))
        return Later(path)
    if root != "Steps":
        raise SpecError(unknown(root, ["Parameters", "Steps", "Execution"], "root"))
    name = re.match(r"[\w-]*", rest)[0]  # type: ignore[index]  # it matches everything, be it nothing
    if name not in steps:
        raise SpecError(unknown(name, list(steps), "step"))
    return _property(steps[name], rest[len(name) :])


def _property(step: Tree, path: str) -> Any:
    parts = parts_of(path)
    if step["Type"] == "Lambda":
        outputs = [each["OutputName"] for each in step.get("OutputParameters", ())]
        if len(parts) != 2 or parts[0] != "OutputParameters" or parts[1] not in outputs:
            raise SpecError(unknown(str(parts[-1] if parts else ""), outputs, "output of the function"))
        return Later(path)
    shape: Shape = service.model().operation_model(KINDS[step["Type"]].describe).output_shape
    declared: Any = step.get("Arguments", {})
    for part in parts:
        declared = _below(declared, part)
        if shape.type_name == "structure" and isinstance(part, str):
            if part not in shape.members:
                raise SpecError(unknown(part, list(shape.members), f"property of {shape.name}"))
            shape = shape.members[part]
        elif shape.type_name == "list":
            if isinstance(part, str) and declared is None:
                raise SpecError(f"nothing is called {part!r} in the arguments of {step['Name']}")
            shape = shape.member
        elif shape.type_name == "map":
            shape = shape.value
        else:
            raise SpecError(f"{shape.name} has nothing below it")
    return 1 if shape.type_name in ("integer", "long", "float", "double") else Later(path)


def _below(value: Any, part: str | int) -> Any:
    try:
        return found(value, f"[{part}]" if isinstance(part, int) else f"['{part}']")
    except SpecError:
        return None


def _keys(given: Tree, known: list[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise SpecError(f"{where}: {unknown(key, known, 'key')}")


def _any(kind: str) -> Any:
    return Later("any") if kind == "String" else PARAMETER_TYPES[kind](1)


def _is(value: Any, kind: str) -> bool:
    wanted = PARAMETER_TYPES[kind]
    if kind == "Float" and isinstance(value, int):
        wanted = int
    return isinstance(value, wanted) and (kind == "Boolean") == isinstance(value, bool)


def _typed(value: Any, kind: str, where: str) -> Any:
    """A value as its type; from a command line all are strings."""
    if _is(value, kind):
        return value
    try:
        if kind == "Boolean":
            return {"true": True, "false": False}[str(value).lower()]
        return PARAMETER_TYPES[kind](value)
    except (KeyError, ValueError) as error:
        raise SpecError(f"{where}: {value!r} is no {kind}") from error
