"""The form of a definition: the keys that AWS knows, and what names look like."""

import re
from collections.abc import Mapping
from typing import Any

from deploy.table import SpecError, unknown

Tree = Mapping[str, Any]
TOP = ["Version", "Metadata", "Parameters", "PipelineExperimentConfig", "Steps"]
PARAMETER = ["Name", "Type", "DefaultValue", "EnumValues"]
STEP = ["Name", "Type", "Arguments", "DependsOn", "DisplayName", "Description", "RetryPolicies", "CacheConfig"]
LAMBDA = [*STEP, "FunctionArn", "OutputParameters"]
NAME = re.compile(r"[A-Za-z0-9\-_]{1,64}")


def check_keys(given: Tree, known: list[str], where: str) -> None:
    """Raises SpecError for a key that is not known."""
    for key in given:
        if key not in known:
            raise SpecError(f"{where}: {unknown(key, known, 'key')}")


def name_of(given: Any, where: str) -> str:
    """The name of a table of a list. Raises SpecError where it is none, or has none that AWS would take."""
    if not isinstance(given, Mapping):
        raise SpecError(f"{where} must be a table, not {given!r}")
    name = given.get("Name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SpecError(f"{where}.Name: {name!r} must be 1 to 64 letters, digits, - and _")
    return name
