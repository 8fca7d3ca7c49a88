"""The expressions in a definition: Get, Std:Join and Std:JsonGet, and the paths that they contain.

docs.aws.amazon.com/sagemaker/latest/dg/define-pipeline.html; the forms are the ones that the SageMaker SDK writes.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deploy.aws import Later
from deploy.errors import SpecError

Known = Callable[[str], Any]  # the value of a path such as Parameters.Name or Steps.Train.ModelArtifacts
Load = Callable[[str], Any]  # the content of the JSON file at an S3 URI
OPERATORS = ("Get", "Std:Join", "Std:JsonGet")
PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|\['([^']*)'\]|\[\"([^\"]*)\"\]")


def resolved(value: Any, known: Known, where: str, load: Load) -> Any:
    """A value with its expressions replaced. Raises SpecError, which begins with the key of the expression."""
    if isinstance(value, list):
        return [resolved(each, known, f"{where}[{number}]", load) for number, each in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    operator = operator_of(value)
    if operator is None:
        return {key: resolved(each, known, f"{where}.{key}", load) for key, each in value.items()}
    if len(value) > 1:
        raise SpecError(f"{where}: {operator} must be the only key, found also {', '.join(set(value) - {operator})}")
    if operator == "Get":
        try:
            return known(value["Get"])
        except SpecError as error:
            raise SpecError(f"{where}: Get {value['Get']!r}: {error}") from error
    if operator == "Std:Join":
        return _joined(value[operator], known, where, load)
    if operator == "Std:JsonGet":
        return _from_json(value[operator], known, where, load)
    raise SpecError(f"{where}: unsupported operator {operator}; supported: {', '.join(OPERATORS)}")


def operator_of(value: Mapping[str, Any]) -> str | None:
    """The operator of an expression; None for a table of values."""
    return next((key for key in value if key == "Get" or key.startswith("Std:")), None)


def paths(value: Any) -> Iterator[str]:
    """The paths of all Get expressions in a value."""
    if isinstance(value, Mapping):
        if isinstance(value.get("Get"), str):
            yield value["Get"]
        for each in value.values():
            yield from paths(each)
    elif isinstance(value, list):
        for each in value:
            yield from paths(each)


def contains(value: Any, operator: str) -> bool:
    """Whether a value contains an expression with this operator."""
    if isinstance(value, Mapping):
        return operator in value or any(contains(each, operator) for each in value.values())
    return isinstance(value, list) and any(contains(each, operator) for each in value)


def step_of(path: str) -> str:
    """The step of a path Steps.NAME...; "" for any other path."""
    match = re.match(r"Steps\.([\w-]+)", path)
    return match[1] if match else ""


def found(value: Any, path: str) -> Any:
    """The value at .Name, [0] or ['name']; in a list, ['name'] is the item of that name. Raises SpecError."""
    for part in parts_of(path):
        try:
            if isinstance(value, list) and isinstance(part, str):
                value = next(each for each in value if part in _names(each))
            else:
                value = value[part]
        except (KeyError, IndexError, TypeError, StopIteration) as error:
            raise SpecError(f"{part!r} not found") from error
    return value


def parts_of(path: str) -> list[str | int]:
    """The names and numbers in a path. The first name needs no dot before it; `$` is the document itself."""
    parts: list[str | int] = []
    at = 1 if path.startswith("$") else 0
    while at < len(path):
        match = PART.match(path, at)
        if match is None or (match[1] and at > 0 and path[at] != "."):
            raise SpecError(f"invalid path at {path[at:]!r}; supported: .Name, [0] and ['name']")
        parts.append(int(match[2]) if match[2] else next(each for each in match.groups() if each is not None))
        at = match.end()
    return parts


def _names(each: Any) -> list[Any]:
    return [value for key, value in each.items() if key.endswith("Name")] if isinstance(each, Mapping) else []


def _joined(join: Any, known: Known, where: str, load: Load) -> str:
    if not isinstance(join, Mapping) or set(join) != {"On", "Values"} or not isinstance(join["Values"], list):
        raise SpecError(f'{where}: Std:Join must be {{"On": "/", "Values": [...]}}, not {join!r}')
    parts = [resolved(each, known, f"{where}.Values[{number}]", load) for number, each in enumerate(join["Values"])]
    text = str(join["On"]).join(map(str, parts))
    return Later(text) if any(isinstance(each, Later) for each in parts) else text


def _from_json(get: Any, known: Known, where: str, load: Load) -> Any:
    """The value in a property file of a processing step, or in a JSON file at an S3 URI."""
    sources = {"PropertyFile", "S3Uri"} & set(get) if isinstance(get, Mapping) else set()
    if len(sources) != 1 or set(get) != {*sources, "Path"} or not isinstance(get["Path"], str):
        raise SpecError(f'{where}: Std:JsonGet must be {{"PropertyFile": {{"Get": ...}}, "Path": "a.b"}}, not {get!r}')
    source = sources.pop()
    uri = resolved(get[source], known, f"{where}.{source}", load)
    parts_of(get["Path"])  # an invalid path is an error before the file exists
    if isinstance(uri, Later):
        return Later(get["Path"])
    try:
        return found(load(uri), get["Path"])
    except SpecError as error:
        raise SpecError(f"{where}: Std:JsonGet {get['Path']!r} in {uri}: {error}") from error
