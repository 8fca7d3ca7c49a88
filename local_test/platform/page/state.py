"""From answers of AWS's API to what the page shows. Pure functions."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

Shape = Mapping[str, Any]  # an answer of the API
BRANCHES = {"IfSteps": "true", "ElseSteps": "false"}  # of a Condition step
OF_STEP = re.compile(r"Steps\.([^.\[]+)")
# Any status of an endpoint, a job, an execution or a step that will change without a request.
CHANGING = {
    *("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"),
    *("InProgress", "Stopping", "Executing", "Starting", "Pending"),
}


def as_json(state: Shape) -> bytes:
    """Times become seconds since 1970."""
    return json.dumps(state, default=_plain, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return round(value.timestamp(), 3)
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="replace")
    raise TypeError(f"no JSON for {type(value).__name__}")


def changing(state: Any) -> bool:
    """Whether the state has a status that will change by itself."""
    if isinstance(state, Mapping):
        return any(
            (isinstance(value, str) and value in CHANGING and key.lower().endswith("status")) or changing(value)
            for key, value in state.items()
        )
    return isinstance(state, list) and any(changing(each) for each in state)


def graph(definition: Shape) -> dict[str, list[dict[str, Any]]]:
    """The steps of a pipeline's definition, those inside of conditions too, and the edges between them."""
    steps = list(_steps(definition.get("Steps") or ()))
    names = {step["Name"] for step, _, _ in steps}
    edges = {}
    for step, condition, branch in steps:
        needed = [name for name in _needed(step) if name in names - {step["Name"]}]
        siblings = {each["Name"] for each, parent, side in steps if (parent, side) == (condition, branch)}
        if condition and not siblings & set(needed):
            edges[condition, step["Name"]] = branch
        edges.update({(name, step["Name"]): "" for name in needed if name != condition})
    return {
        "nodes": [
            {
                "name": step["Name"],
                "title": step.get("DisplayName") or step["Name"],
                "type": step.get("Type", ""),
                "step": {key: value for key, value in step.items() if key != "Name"},
            }
            for step, _, _ in steps
        ],
        "edges": [{"from": start, "to": end, "label": label} for (start, end), label in edges.items()],
    }


def _steps(steps: Iterable[Shape], condition: str = "", branch: str = "") -> Iterator[tuple[Shape, str, str]]:
    """Each step with the condition that it belongs to; a condition's own steps are left out of its arguments."""
    for step in steps:
        arguments = step.get("Arguments")
        nested = {key: arguments[key] for key in BRANCHES if key in arguments} if isinstance(arguments, Mapping) else {}
        if nested:
            assert isinstance(arguments, Mapping)
            step = {**step, "Arguments": {key: value for key, value in arguments.items() if key not in nested}}
        yield step, condition, branch
        for key, inner in nested.items():
            yield from _steps(inner, step["Name"], BRANCHES[key])


def _needed(step: Shape) -> list[str]:
    """The steps that a step names in DependsOn or whose properties it reads."""
    found = [str(each).removeprefix("Steps.") for each in step.get("DependsOn") or ()]
    found += [match[1] for each in _gets(step) if (match := OF_STEP.match(each))]
    return list(dict.fromkeys(found))


def _gets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key == "Get" and isinstance(each, str):
                yield each
            else:
                yield from _gets(each)
    elif isinstance(value, list):
        for each in value:
            yield from _gets(each)


def curves(definitions: Sequence[Shape], log: Sequence[Shape]) -> dict[str, list[float]]:
    """The values of each metric in a job's log, by the regular expressions of its metric definitions."""
    found: dict[str, list[float]] = {}
    for each in definitions:
        try:
            expression = re.compile(each["Regex"])
        except re.error:
            continue
        matches = (expression.search(line["message"]) for line in log)
        values = (_number(match[1]) for match in matches if match and expression.groups)
        if numbers := [value for value in values if value is not None]:
            found[each["Name"]] = numbers
    return found


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None  # JSON has neither nan nor inf
