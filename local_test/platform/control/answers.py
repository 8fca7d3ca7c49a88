"""Answers of the control plane, in the form that AWS gives them."""

import json
from functools import cache
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StructureShape


def described(operation: str, body: str | bytes) -> str | bytes:
    """The body of a Describe operation without empty structures, which moto returns for members that were not given.

    SageMaker leaves them out, and version 3 of the SDK refuses `"VpcConfig": {}`. Empty lists and maps stay.
    """
    if not operation.startswith("Describe"):
        return body
    return json.dumps(_pruned(json.loads(body), service_model().operation_model(operation).output_shape))


def _pruned(value: Any, shape: Shape | None) -> Any:
    if isinstance(shape, StructureShape) and isinstance(value, dict):
        members = {name: _pruned(each, shape.members.get(name)) for name, each in value.items()}
        return {name: each for name, each in members.items() if not _empty(each, shape.members.get(name))}
    if isinstance(shape, ListShape) and isinstance(value, list):
        return [_pruned(each, shape.member) for each in value]
    if isinstance(shape, MapShape) and isinstance(value, dict):
        return {name: _pruned(each, shape.value) for name, each in value.items()}
    return value


def _empty(value: Any, shape: Shape | None) -> bool:
    return value is None or (isinstance(shape, StructureShape) and value == {})


@cache
def service_model() -> ServiceModel:
    """SageMaker's API, as botocore has it."""
    return botocore.session.get_session().get_service_model("sagemaker")
