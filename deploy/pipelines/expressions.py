"""Expressions in a definition: what they name, and what they come to."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deploy.service import Later
from deploy.table import SpecError

PART = re.compile(r"\.(\w+)|\[(\d+)\]|\['([^']+)'\]")


def paths(value: Any) -> Iterator[str]:
    """All that an expression gets, wherever it stands."""
    if isinstance(value, Mapping):
        if isinstance(value.get("Get"), str):
            yield value["Get"]
        for each in value.values():
            yield from paths(each)
    elif isinstance(value, list):
        for each in value:
            yield from paths(each)


def resolved(value: Any, known: Callable[[str], Any], where: str) -> Any:
    """A value with its expressions replaced; `known` gives the value of a path. Raises SpecError, naming the key."""
    if isinstance(value, list):
        return [resolved(each, known, f"{where}[{number}]") for number, each in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    operator = next((key for key in value if key == "Get" or key.startswith("Std:")), None)
    if operator is None:
        return {key: resolved(each, known, f"{where}.{key}") for key, each in value.items()}
    if len(value) > 1:
        raise SpecError(f"{where}: {operator} stands alone, and not beside {', '.join(set(value) - {operator})}")
    if operator == "Get":
        try:
            return known(value["Get"])
        except SpecError as error:
            raise SpecError(f"{where}: Get {value['Get']!r}: {error}") from error
    if operator == "Std:Join":
        return _joined(value[operator], known, where)
    raise SpecError(f"{where}: {operator} is not known here; Get and Std:Join are")


def found(value: Any, path: str) -> Any:
    """What lies at .Name, [0] or ['name'] below a value; ['name'] of a list is the one so called. Raises SpecError."""
    for part in parts_of(path):
        try:
            if isinstance(value, list) and isinstance(part, str):
                value = next(each for each in value if part in _names(each))
            else:
                value = value[part]
        except (KeyError, IndexError, TypeError, StopIteration) as error:
            raise SpecError(f"there is no {part!r} in it") from error
    return value


def parts_of(path: str) -> list[str | int]:
    parts: list[str | int] = []
    at = 0
    while at < len(path):
        match = PART.match(path, at)
        if match is None:
            raise SpecError(f"cannot be read from {path[at:]!r} on: .Name, [0] and ['name'] are known")
        parts.append(int(match[2]) if match[2] else match[1] or match[3])
        at = match.end()
    return parts


def _names(each: Any) -> list[Any]:
    return [value for key, value in each.items() if key.endswith("Name")] if isinstance(each, Mapping) else []


def _joined(join: Any, known: Callable[[str], Any], where: str) -> str:
    if not isinstance(join, Mapping) or set(join) != {"On", "Values"} or not isinstance(join["Values"], list):
        raise SpecError(f'{where}: Std:Join wants {{"On": "/", "Values": [...]}}, not {join!r}')
    parts = [resolved(each, known, f"{where}.Values[{number}]") for number, each in enumerate(join["Values"])]
    text = str(join["On"]).join(map(str, parts))
    return Later(text) if any(isinstance(each, Later) for each in parts) else text
