"""What an expression may get: parameters, the execution's own properties, and those that steps will have."""

import re
from collections.abc import Mapping
from typing import Any

from botocore.model import Shape

from deploy import service
from deploy.pipelines.expressions import found, parts_of
from deploy.pipelines.form import Tree
from deploy.pipelines.steps import KINDS
from deploy.service import Later
from deploy.table import SpecError, unknown

EXECUTION = [
    *("PipelineExecutionId", "PipelineExecutionArn", "PipelineName", "PipelineArn"),
    *("StartDateTime", "CurrentDateTime"),
]


def placeholder(values: Tree, steps: Mapping[str, Tree], path: str) -> Any:
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
