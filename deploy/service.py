"""Requests checked against AWS's own service model, offline: names, types, ranges, patterns and known values."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from botocore.loaders import Loader, create_loader
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator

from deploy.table import SpecError, unknown

Request = dict[str, Any]


class Later(str):
    """Stands in a request for what is known only when a pipeline runs: any string will do."""

    __slots__ = ()


@cache
def loader() -> Loader:
    """Reads what botocore knows of AWS's services; SageMaker's description takes half a second, so one for all."""
    return create_loader()


@cache
def model(service: str = "sagemaker") -> ServiceModel:
    return ServiceModel(loader().load_service_model(service, "service-2"), service)


def members(shape: str) -> tuple[str, ...]:
    """The fields of a structure, CreateModelInput for one."""
    return tuple(model().shape_for(shape).members)


def check(operation: str, request: Mapping[str, Any], service: str = "sagemaker") -> None:
    """Raise SpecError with all that AWS would refuse in this request, without asking it."""
    shape = model(service).operation_model(operation).input_shape
    assert shape is not None
    found = ParamValidator().validate(request, shape)
    problems = found.generate_report().splitlines() if found.has_errors() else list(_values(shape, request, ""))
    if problems:
        raise SpecError(f"{operation}: " + "; ".join(problems[:5]))


def _values(shape: Shape, value: Any, path: str) -> Iterator[str]:
    """What botocore's own validator lets pass: enums, patterns and upper limits."""
    if shape.type_name == "structure":
        for name, each in value.items():
            yield from _values(shape.members[name], each, f"{path}.{name}" if path else name)
    elif shape.type_name == "list":
        for number, each in enumerate(value):
            yield from _values(shape.member, each, f"{path}[{number}]")
    elif shape.type_name == "map":
        for name, each in value.items():
            yield from _values(shape.key, name, f"{path} (key)")
            yield from _values(shape.value, each, f"{path}.{name}")
    most, pattern = shape.metadata.get("max"), shape.metadata.get("pattern")
    size = len(value) if isinstance(value, str | list | Mapping) else value
    if most is not None and isinstance(size, int | float) and size > most:
        yield f"{path}: {size} is over the limit of {most}"
    if isinstance(value, str) and not isinstance(value, Later):
        known = getattr(shape, "enum", [])
        if known and value not in known:
            yield f"{path}: {unknown(value, known, 'value')}" if len(known) < 30 else _unlisted(path, value, known)
        elif pattern and not _matches(pattern, value):
            yield f"{path}: {value[:80]!r} does not match {pattern}"


def _matches(pattern: str, value: str) -> bool:
    """Whether it does, as far as Python can tell: patterns are Java's."""
    try:
        return re.fullmatch(pattern, value, re.DOTALL) is not None
    except re.error:
        return True


def _unlisted(path: str, value: str, known: list[str]) -> str:
    said = unknown(value, known, "value").partition("; known")[0]
    stop = "" if said.endswith("?") else "."
    return f"{path}: {said}{stop} If AWS has it by now: pip install --upgrade boto3"
