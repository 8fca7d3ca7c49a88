"""A pipeline's definition, checked offline: keys, names, parameters, expressions, and each step's request.

The form: docs.aws.amazon.com/sagemaker/latest/dg/define-pipeline.html; `Arguments` are requests of SageMaker's API.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.model import Shape

from deploy import aws
from deploy.aws import Later
from deploy.errors import SpecError, unknown
from deploy.pipelines.expressions import contains, found, parts_of, paths, resolved, step_of

Tree = Mapping[str, Any]
TOP = ["Version", "Metadata", "Parameters", "PipelineExperimentConfig", "MlflowConfig", "Steps"]
PARAMETER = ["Name", "Type", "DefaultValue", "EnumValues"]
STEP = ["Name", "Type", "Arguments", "DependsOn", "DisplayName", "Description"]
JOB = [*STEP, "RetryPolicies", "CacheConfig"]
FUNCTION = [*STEP, "CacheConfig", "OutputParameters"]
RETRY = ["ExceptionType", "IntervalSeconds", "BackoffRate", "MaxAttempts", "ExpireAfterMin"]
EXCEPTIONS = [
    *("Step.SERVICE_FAULT", "Step.THROTTLING"),
    *("SageMaker.JOB_INTERNAL_ERROR", "SageMaker.CAPACITY_ERROR", "SageMaker.RESOURCE_LIMIT"),
]
NAME = re.compile(r"[A-Za-z0-9\-_]{1,64}")
PARAMETER_NAME = re.compile(r"[A-Za-z0-9\-_]{1,256}")
PARAMETER_TYPES: dict[str, type] = {"String": str, "Integer": int, "Float": float, "Boolean": bool}
EXECUTION = [
    *("PipelineExecutionId", "PipelineExecutionArn", "PipelineName", "PipelineArn"),
    *("StartDateTime", "CurrentDateTime", "TrainingJobName", "ProcessingJobName"),
]
COMPARISONS = ["Equals", "GreaterThan", "GreaterThanOrEqualTo", "LessThan", "LessThanOrEqualTo"]
CONDITIONS = {  # type -> its keys beside Type
    **dict.fromkeys(COMPARISONS, ("LeftValue", "RightValue")),
    "In": ("QueryValue", "Values"),
    "Not": ("Condition",),
    "Or": ("Conditions",),
}


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
    "EndpointConfig": Kind("CreateEndpointConfig", "DescribeEndpointConfig", "EndpointConfigName"),
    "Endpoint": Kind("CreateEndpoint", "DescribeEndpoint", "EndpointName"),
}
KEYS = {  # type of step -> the keys that it may have
    **dict.fromkeys(KINDS, JOB),
    "Processing": [*JOB, "PropertyFiles"],
    "Lambda": [*FUNCTION, "FunctionArn"],
    "Callback": [*FUNCTION, "SqsQueueUrl"],
    "Condition": STEP,
    "Fail": STEP,
}
# Steps of other services of AWS. A definition may contain them; the emulator refuses to run them.
SERVICES = [
    *("ClarifyCheck", "QualityCheck", "EMR", "EMRServerless", "AutoML", "InferenceComponent", "Lineage"),
    *("BedrockCustomModel", "BedrockCustomModelDeployment", "BedrockModelImport", "BedrockProvisionedModelThroughput"),
]
STEP_TYPES = [*KEYS, *SERVICES]


@dataclass(frozen=True, slots=True)
class Placed:
    """A step, and the branch of a Condition step that contains it, if one does."""

    step: Tree
    condition: str = ""  # the name of the Condition step
    outcome: bool = True  # whether the step is in its IfSteps or in its ElseSteps


def check(definition: Tree, parameters: Tree | None = None) -> None:
    """Raise SpecError, with its path, for the first error that AWS or an execution would find."""
    _check_keys(definition, TOP, "definition")
    for key in ("Version", "Steps"):
        if key not in definition:
            raise SpecError(f"definition.{key} is missing")
    if definition["Version"] != "2020-12-01":
        raise SpecError(f"definition.Version must be '2020-12-01', not {definition['Version']!r}")
    values = values_of(definition, parameters or {}, offline=True)
    steps = {name: placed.step for name, placed in _declared_steps(definition).items()}
    known = partial(_placeholder, values, steps)
    resolved(definition.get("PipelineExperimentConfig") or {}, known, "PipelineExperimentConfig", _unread)
    for name, step in steps.items():
        arguments = resolved(own_arguments(step), known, f"Steps.{name}.Arguments", _unread)
        # A value from a JSON file has an unknown type until the file exists.
        if not contains(step.get("Arguments", {}), "Std:JsonGet"):
            check_arguments(step, arguments)
    order(definition)


def steps_of(definition: Tree) -> dict[str, Placed]:
    """All steps by name, with those in the branches of conditions, each after the Condition step that contains it."""
    return {each.step["Name"]: each for each in _flattened(definition["Steps"], "", True)}


def own_arguments(step: Tree) -> Tree:
    """The arguments without the steps in the branches of a condition."""
    given: Tree = step.get("Arguments") or {}
    return {"Conditions": given.get("Conditions", [])} if step["Type"] == "Condition" else given


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
    waits = {}
    for name, placed in steps_of(definition).items():
        used = {step_of(path) for path in paths(_with_queue(placed.step))} - {""}
        waits[name] = used | set(placed.step.get("DependsOn") or ()) | ({placed.condition} - {""})
    done: dict[str, set[str]] = {}
    while len(done) < len(waits):
        ready = [name for name, needs in waits.items() if name not in done and needs <= set(done)]
        if not ready:
            rest = ", ".join(name for name in waits if name not in done)
            raise SpecError(f"Steps: cycle: {rest} wait for one another")
        done |= {name: waits[name] for name in ready}
    return done


def _with_queue(step: Tree) -> list[Any]:
    """The values of a step that may contain expressions."""
    return [own_arguments(step), step.get("SqsQueueUrl"), step.get("FunctionArn")]


def _flattened(steps: list[Any], condition: str, outcome: bool) -> Iterator[Placed]:
    for step in steps:
        yield Placed(step, condition, outcome)
        if step["Type"] == "Condition":
            branches = step.get("Arguments") or {}
            yield from _flattened(branches.get("IfSteps") or [], step["Name"], True)
            yield from _flattened(branches.get("ElseSteps") or [], step["Name"], False)


def _unread(uri: str) -> Any:
    return Later(uri)


# Keys and steps


def _check_keys(given: Tree, known: list[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise SpecError(f"{where}: {unknown(key, known, 'key')}")


def _name_of(given: Any, where: str, pattern: re.Pattern[str]) -> str:
    """The name of an item of a list. Raises SpecError if the item is no table or has no valid name."""
    if not isinstance(given, Mapping):
        raise SpecError(f"{where} must be a table, not {given!r}")
    name = given.get("Name")
    if not isinstance(name, str) or not pattern.fullmatch(name):
        most = 64 if pattern is NAME else 256
        raise SpecError(f"{where}.Name: {name!r} must be 1 to {most} letters, digits, - and _")
    return name


def _declared_steps(definition: Tree) -> dict[str, Placed]:
    """The steps by name. Raises SpecError for an invalid form."""
    if not isinstance(definition["Steps"], list) or not definition["Steps"]:
        raise SpecError("definition.Steps must be a list of at least one step")
    seen: set[str] = set()
    _check_steps(definition["Steps"], "Steps", seen)
    steps = steps_of(definition)
    for name, placed in steps.items():
        for before in placed.step.get("DependsOn") or ():
            if before not in steps:
                raise SpecError(f"Steps.{name}.DependsOn: {unknown(str(before), list(steps), 'step')}")
            if steps[before].step["Type"] == "Fail":
                raise SpecError(f"Steps.{name}.DependsOn: no step can run after the Fail step {before}")
    return steps


def _check_steps(given: Any, path: str, seen: set[str]) -> None:
    """Raise SpecError for a step of an invalid form, or with a name in `seen`; the names are added to it."""
    if not isinstance(given, list):
        raise SpecError(f"{path} must be a list, not {given!r}")
    for number, step in enumerate(given):
        where = f"{path}[{number}]"
        name = _name_of(step, where, NAME)
        kind = step.get("Type")
        if kind not in STEP_TYPES:
            raise SpecError(f"Steps.{name}.Type: {unknown(str(kind), STEP_TYPES, 'type of step')}")
        if name in seen:
            raise SpecError(f"{where}.Name: two steps have the name {name!r}")
        seen.add(name)
        if kind in KEYS:
            _check_keys(step, KEYS[kind], f"Steps.{name}")
        if not isinstance(step.get("Arguments", {}), Mapping):
            raise SpecError(f"Steps.{name}.Arguments must be a table, not {step['Arguments']!r}")
        if not isinstance(step.get("DependsOn") or [], list):
            raise SpecError(f"Steps.{name}.DependsOn must be a list, not {step['DependsOn']!r}")
        _check_form(step, name)
        if kind == "Condition":
            _check_branches(step, name, seen)


def _check_form(step: Tree, name: str) -> None:
    """Raise SpecError for an invalid value of a key that only some types of step have."""
    for kind, key in (("Lambda", "FunctionArn"), ("Callback", "SqsQueueUrl")):
        if step["Type"] == kind and not isinstance(step.get(key), str | Mapping):
            raise SpecError(f"Steps.{name}.{key} is missing")
    if step["Type"] == "Fail" and "ErrorMessage" not in step.get("Arguments", {}):
        raise SpecError(f"Steps.{name}.Arguments.ErrorMessage is missing")
    for key, wanted in (
        ("OutputParameters", {"OutputName", "OutputType"}),
        ("PropertyFiles", {"PropertyFileName", "OutputName", "FilePath"}),
    ):
        for number, each in enumerate(step.get(key) or ()):
            if not isinstance(each, Mapping) or set(each) != wanted:
                raise SpecError(f"Steps.{name}.{key}[{number}] must have the keys {', '.join(sorted(wanted))}")
    for number, each in enumerate(step.get("OutputParameters") or ()):
        if each["OutputType"] not in PARAMETER_TYPES:
            problem = unknown(str(each["OutputType"]), list(PARAMETER_TYPES), "type")
            raise SpecError(f"Steps.{name}.OutputParameters[{number}].OutputType: {problem}")
    cache = step.get("CacheConfig") or {}
    if cache.get("Enabled") and not duration_parts(str(cache.get("ExpireAfter", "P1D"))):
        raise SpecError(
            f"Steps.{name}.CacheConfig.ExpireAfter: {cache['ExpireAfter']!r} must be a duration, such as PT1H or P30D"
        )
    for number, policy in enumerate(step.get("RetryPolicies") or ()):
        where = f"Steps.{name}.RetryPolicies[{number}]"
        _check_keys(policy, RETRY, where)
        for exception in policy.get("ExceptionType") or ():
            if exception not in EXCEPTIONS:
                raise SpecError(f"{where}.ExceptionType: {unknown(str(exception), EXCEPTIONS, 'exception')}")


# "PT1H" and "P30D"; AWS's pages write "30dT5h" as well, without the P.
DURATION = re.compile(
    r"P?(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", re.IGNORECASE
)


def duration_parts(text: str) -> tuple[int, ...]:
    """Years, months, weeks, days, hours, minutes and seconds of a duration; () if the text is none."""
    match = DURATION.fullmatch(text)
    return tuple(int(each or 0) for each in match.groups()) if match and any(match.groups()) else ()


def _check_branches(step: Tree, name: str, seen: set[str]) -> None:
    arguments = step.get("Arguments") or {}
    _check_keys(arguments, ["Conditions", "IfSteps", "ElseSteps"], f"Steps.{name}.Arguments")
    _check_conditions(arguments.get("Conditions"), f"Steps.{name}.Arguments.Conditions")
    for branch in ("IfSteps", "ElseSteps"):
        _check_steps(arguments.get(branch) or [], f"Steps.{name}.Arguments.{branch}", seen)


def _check_conditions(given: Any, where: str) -> None:
    if not isinstance(given, list) or not given:
        raise SpecError(f"{where} must be a list of at least one condition")
    for number, each in enumerate(given):
        _check_condition(each, f"{where}[{number}]")


def _check_condition(given: Any, where: str) -> None:
    if not isinstance(given, Mapping) or given.get("Type") not in CONDITIONS:
        kind = given.get("Type") if isinstance(given, Mapping) else given
        raise SpecError(f"{where}.Type: {unknown(str(kind), list(CONDITIONS), 'type of condition')}")
    keys = CONDITIONS[given["Type"]]
    _check_keys(given, ["Type", *keys], where)
    missing = [key for key in keys if key not in given]
    if missing:
        raise SpecError(f"{where}.{missing[0]} is missing")
    if given["Type"] == "Not":
        _check_condition(given["Condition"], f"{where}.Condition")
    if given["Type"] == "Or":
        _check_conditions(given["Conditions"], f"{where}.Conditions")


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
    for number, each in enumerate(definition.get("Parameters") or ()):
        where = f"Parameters[{number}]"
        name = _name_of(each, where, PARAMETER_NAME)
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
    parts, kind = parts_of(path), step["Type"]
    if kind in ("Lambda", "Callback"):
        outputs = {each["OutputName"]: each["OutputType"] for each in step.get("OutputParameters") or ()}
        if len(parts) != 2 or parts[0] != "OutputParameters" or parts[1] not in outputs:
            of = " of the function" if kind == "Lambda" else " of the callback"
            raise SpecError(unknown(str(parts[-1] if parts else ""), list(outputs), "output", of))
        return Later(path) if outputs[str(parts[1])] == "String" else PARAMETER_TYPES[outputs[str(parts[1])]](1)
    if kind == "Condition":
        if parts != ["Outcome"]:
            raise SpecError(unknown(".".join(map(str, parts)), ["Outcome"], "property", " of a condition"))
        return Later(path)
    if kind == "Fail":
        raise SpecError("a Fail step has no properties")
    if kind in SERVICES:
        return Later(path)
    if parts and parts[0] == "PropertyFiles":
        files = [each["PropertyFileName"] for each in step.get("PropertyFiles") or ()]
        if len(parts) != 2 or parts[1] not in files:
            raise SpecError(unknown(str(parts[-1]), files, "property file", f" of {step['Name']}"))
        return Later(path)
    return _described(step, parts, path)


def _described(step: Tree, parts: list[str | int], path: str) -> Any:
    """The type of a member of the answer that describes the step's job or model."""
    if step["Type"] == "Tuning" and parts and parts[0] == "TrainingJobSummaries":
        return Later(path)  # of ListTrainingJobsForHyperParameterTuningJob, the best job first
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
