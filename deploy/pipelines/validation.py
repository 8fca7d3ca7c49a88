"""A pipeline's definition, checked offline: keys, names, parameters, expressions, and each step's request.

The form: docs.aws.amazon.com/sagemaker/latest/dg/define-pipeline.html; `Arguments` are requests of SageMaker's API.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.model import Shape

from deploy import aws
from deploy.aws import Later
from deploy.errors import SpecError, unknown

Tree = Mapping[str, Any]
TOP = ["Version", "Metadata", "Parameters", "PipelineExperimentConfig", "Steps"]
PARAMETER = ["Name", "Type", "DefaultValue", "EnumValues"]
STEP = ["Name", "Type", "Arguments", "DependsOn", "DisplayName", "Description", "RetryPolicies", "CacheConfig"]
LAMBDA = [*STEP, "FunctionArn", "OutputParameters"]
NAME = re.compile(r"[A-Za-z0-9\-_]{1,64}")
PARAMETER_TYPES: dict[str, type] = {"String": str, "Integer": int, "Float": float, "Boolean": bool}
EXECUTION = [
    *("PipelineExecutionId", "PipelineExecutionArn", "PipelineName", "PipelineArn"),
    *("StartDateTime", "CurrentDateTime"),
]
PART = re.compile(r"\.(\w+)|\[(\d+)\]|\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of step: the operation of its arguments, the operation of its result, and the field with its name."""

    create: str
    describe: str
    name: str | None  # the pipeline sets it


KINDS = {
    "Training": Kind("CreateTrainingJob", "DescribeTrainingJob", "TrainingJobName"),
    "Processing": Kind("CreateProcessingJob", "DescribeProcessingJob", "ProcessingJobName"),
    "Tuning": Kind("CreateHyperParameterTuningJob", "DescribeHyperParameterTuningJob", "HyperParameterTuningJobName"),
    "Transform": Kind("CreateTransformJob", "DescribeTransformJob", "TransformJobName"),
    "Model": Kind("CreateModel", "DescribeModel", "ModelName"),
    "RegisterModel": Kind("CreateModelPackage", "DescribeModelPackage", None),
}
STEP_TYPES = [*KINDS, "Lambda"]


def check(definition: Tree, parameters: Tree | None = None) -> None:
    """Raise SpecError, with its path, for the first error that AWS or an execution would find."""
    _check_keys(definition, TOP, "definition")
    for key in ("Version", "Steps"):
        if key not in definition:
            raise SpecError(f"definition.{key} is missing")
    if definition["Version"] != "2020-12-01":
        raise SpecError(f"definition.Version must be '2020-12-01', not {definition['Version']!r}")
    values = values_of(definition, parameters or {}, offline=True)
    steps = _declared_steps(definition)
    known = partial(_placeholder, values, steps)
    resolved(definition.get("PipelineExperimentConfig", {}), known, "PipelineExperimentConfig")
    for name, step in steps.items():
        path = f"Steps.{name}.Arguments"
        check_arguments(step, resolved(step.get("Arguments", {}), known, path))
    order(definition)


def check_arguments(step: Tree, arguments: Tree) -> None:
    """Raise SpecError for values that AWS would reject in a step's resolved arguments."""
    kind = KINDS.get(step["Type"])
    if kind is None:
        return
    try:
        aws.check_request(kind.create, {**({kind.name: "named-by-the-pipeline"} if kind.name else {}), **arguments})
    except SpecError as error:
        raise SpecError(f"Steps.{step['Name']}.Arguments: {error}") from error


def order(definition: Tree) -> dict[str, set[str]]:
    """The steps that each step waits for, in an order in which they can run. Raises SpecError for a cycle."""
    waits = {
        step["Name"]: {path.split(".")[1] for path in _paths(step.get("Arguments", {})) if path.startswith("Steps.")}
        | set(step.get("DependsOn", ()))
        for step in definition["Steps"]
    }
    done: dict[str, set[str]] = {}
    while len(done) < len(waits):
        ready = [name for name, needs in waits.items() if name not in done and needs <= set(done)]
        if not ready:
            rest = ", ".join(name for name in waits if name not in done)
            raise SpecError(f"Steps: cycle: {rest} wait for one another")
        done |= {name: waits[name] for name in ready}
    return done


# Keys and steps


def _check_keys(given: Tree, known: list[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise SpecError(f"{where}: {unknown(key, known, 'key')}")


def _name_of(given: Any, where: str) -> str:
    """The name of an item of a list. Raises SpecError if the item is no table or has no valid name."""
    if not isinstance(given, Mapping):
        raise SpecError(f"{where} must be a table, not {given!r}")
    name = given.get("Name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SpecError(f"{where}.Name: {name!r} must be 1 to 64 letters, digits, - and _")
    return name


def _declared_steps(definition: Tree) -> dict[str, Tree]:
    """The steps by name. Raises SpecError for an invalid form."""
    if not isinstance(definition["Steps"], list) or not definition["Steps"]:
        raise SpecError("definition.Steps must be a list of at least one step")
    steps: dict[str, Tree] = {}
    for number, step in enumerate(definition["Steps"]):
        where = f"Steps[{number}]"
        name = _name_of(step, where)
        if step.get("Type") not in STEP_TYPES:
            raise SpecError(f"Steps.{name}.Type: {unknown(str(step.get('Type')), STEP_TYPES, 'type of step')}")
        if name in steps:
            raise SpecError(f"{where}.Name: two steps have the name {name!r}")
        _check_keys(step, LAMBDA if step["Type"] == "Lambda" else STEP, f"Steps.{name}")
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


# Parameters


def values_of(definition: Tree, given: Tree, *, offline: bool = False) -> dict[str, Any]:
    """The value of every parameter, given or by default. Raises SpecError for unknown, missing or invalid values.

    Offline, a parameter without a value has a placeholder of its type.
    """
    declared = _declared_parameters(definition)
    for name in given:
        if name not in declared:
            raise SpecError(unknown(name, list(declared), "parameter"))
    missing = [name for name, each in declared.items() if name not in given and "DefaultValue" not in each]
    if missing and not offline:
        raise SpecError(f"missing parameters: {', '.join(missing)}: give --param {missing[0]}=...")
    values = {}
    for name, each in declared.items():
        kind = each["Type"]
        value = given.get(name, each.get("DefaultValue", _any(kind)))
        values[name] = _typed(value, kind, f"parameter {name}") if name in given else value
        allowed = each.get("EnumValues")
        if allowed and value not in allowed and not isinstance(value, Later):
            raise SpecError(f"parameter {name}: {unknown(str(value), [str(one) for one in allowed], 'value')}")
    return values


def _declared_parameters(definition: Tree) -> dict[str, Tree]:
    declared: dict[str, Tree] = {}
    for number, each in enumerate(definition.get("Parameters", ())):
        where = f"Parameters[{number}]"
        name = _name_of(each, where)
        _check_keys(each, PARAMETER, where)
        kind = each.get("Type")
        if kind not in PARAMETER_TYPES:
            raise SpecError(f"{where}.Type: {unknown(str(kind), list(PARAMETER_TYPES), 'type')}")
        if name in declared:
            raise SpecError(f"{where}.Name: two parameters have the name {name!r}")
        if "DefaultValue" in each and not _is(each["DefaultValue"], kind):
            raise SpecError(f"{where}.DefaultValue: {each['DefaultValue']!r} is not of type {kind}")
        declared[name] = each
    return declared


def _any(kind: str) -> Any:
    return Later("any") if kind == "String" else PARAMETER_TYPES[kind](1)


def _is(value: Any, kind: str) -> bool:
    wanted = PARAMETER_TYPES[kind]
    if kind == "Float" and isinstance(value, int):
        wanted = int
    return isinstance(value, wanted) and (kind == "Boolean") == isinstance(value, bool)


def _typed(value: Any, kind: str, where: str) -> Any:
    """The value as its type; values of a command line are strings."""
    if _is(value, kind):
        return value
    try:
        if kind == "Boolean":
            return {"true": True, "false": False}[str(value).lower()]
        return PARAMETER_TYPES[kind](value)
    except (KeyError, ValueError) as error:
        raise SpecError(f"{where}: {value!r} is not of type {kind}") from error


# Expressions


def resolved(value: Any, known: Callable[[str], Any], where: str) -> Any:
    """A value with its expressions replaced; `known` returns the value of a path. Raises SpecError with the key."""
    if isinstance(value, list):
        return [resolved(each, known, f"{where}[{number}]") for number, each in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    operator = next((key for key in value if key == "Get" or key.startswith("Std:")), None)
    if operator is None:
        return {key: resolved(each, known, f"{where}.{key}") for key, each in value.items()}
    if len(value) > 1:
        raise SpecError(f"{where}: {operator} must be the only key, found also {', '.join(set(value) - {operator})}")
    if operator == "Get":
        try:
            return known(value["Get"])
        except SpecError as error:
            raise SpecError(f"{where}: Get {value['Get']!r}: {error}") from error
    if operator == "Std:Join":
        return _joined(value[operator], known, where)
    raise SpecError(f"{where}: unsupported operator {operator}; supported: Get, Std:Join")


def found(value: Any, path: str) -> Any:
    """The value at .Name, [0] or ['name']; in a list, ['name'] is the item of that name. Raises SpecError."""
    for part in _parts_of(path):
        try:
            if isinstance(value, list) and isinstance(part, str):
                value = next(each for each in value if part in _names(each))
            else:
                value = value[part]
        except (KeyError, IndexError, TypeError, StopIteration) as error:
            raise SpecError(f"{part!r} not found") from error
    return value


def _paths(value: Any) -> Iterator[str]:
    """The paths of all Get expressions in a value."""
    if isinstance(value, Mapping):
        if isinstance(value.get("Get"), str):
            yield value["Get"]
        for each in value.values():
            yield from _paths(each)
    elif isinstance(value, list):
        for each in value:
            yield from _paths(each)


def _parts_of(path: str) -> list[str | int]:
    parts: list[str | int] = []
    at = 0
    while at < len(path):
        match = PART.match(path, at)
        if match is None:
            raise SpecError(f"invalid path at {path[at:]!r}; supported: .Name, [0] and ['name']")
        parts.append(int(match[2]) if match[2] else match[1] or match[3])
        at = match.end()
    return parts


def _names(each: Any) -> list[Any]:
    return [value for key, value in each.items() if key.endswith("Name")] if isinstance(each, Mapping) else []


def _joined(join: Any, known: Callable[[str], Any], where: str) -> str:
    if not isinstance(join, Mapping) or set(join) != {"On", "Values"} or not isinstance(join["Values"], list):
        raise SpecError(f'{where}: Std:Join must be {{"On": "/", "Values": [...]}}, not {join!r}')
    parts = [resolved(each, known, f"{where}.Values[{number}]") for number, each in enumerate(join["Values"])]
    text = str(join["On"]).join(map(str, parts))
    return Later(text) if any(isinstance(each, Later) for each in parts) else text


def _placeholder(values: Tree, steps: Mapping[str, Tree], path: str) -> Any:
    """A parameter's value; for other paths a value of the type they will have. Raises SpecError for an unknown path."""
    if not isinstance(path, str):
        raise SpecError("the path must be a string")
    root, _, rest = path.partition(".")
    if root == "Parameters":
        if rest not in values:
            raise SpecError(unknown(rest, list(values), "parameter"))
        return values[rest]
    if root == "Execution":
        if rest not in EXECUTION:
            raise SpecError(unknown(rest, EXECUTION, "property", " of an execution"))
        return Later(path)
    if root != "Steps":
        raise SpecError(unknown(root, ["Parameters", "Steps", "Execution"], "root"))
    name = re.match(r"[\w-]*", rest)[0]  # type: ignore[index]  # the pattern matches every string
    if name not in steps:
        raise SpecError(unknown(name, list(steps), "step"))
    return _property(steps[name], rest[len(name) :])


def _property(step: Tree, path: str) -> Any:
    parts = _parts_of(path)
    if step["Type"] == "Lambda":
        outputs = [each["OutputName"] for each in step.get("OutputParameters", ())]
        if len(parts) != 2 or parts[0] != "OutputParameters" or parts[1] not in outputs:
            raise SpecError(unknown(str(parts[-1] if parts else ""), outputs, "output", " of the function"))
        return Later(path)
    shape: Shape = aws.service_model().operation_model(KINDS[step["Type"]].describe).output_shape
    declared: Any = step.get("Arguments", {})
    for part in parts:
        declared = _below(declared, part)
        if shape.type_name == "structure" and isinstance(part, str):
            if part not in shape.members:
                raise SpecError(unknown(part, list(shape.members), "property", f" of {shape.name}"))
            shape = shape.members[part]
        elif shape.type_name == "list":
            if isinstance(part, str) and declared is None:
                raise SpecError(f"{part!r} not found in the arguments of {step['Name']}")
            shape = shape.member
        elif shape.type_name == "map":
            shape = shape.value
        else:
            raise SpecError(f"{shape.name} has no properties")
    return 1 if shape.type_name in ("integer", "long", "float", "double") else Later(path)


def _below(value: Any, part: str | int) -> Any:
    try:
        return found(value, f"[{part}]" if isinstance(part, int) else f"['{part}']")
    except SpecError:
        return None
