"""A pipeline's parameters: what a definition declares, and the values of one run."""

from typing import Any

from deploy.pipelines.form import PARAMETER, Tree, check_keys, name_of
from deploy.service import Later
from deploy.table import SpecError, unknown

TYPES: dict[str, type] = {"String": str, "Integer": int, "Float": float, "Boolean": bool}


def values_of(definition: Tree, given: Tree, *, offline: bool = False) -> dict[str, Any]:
    """Every parameter's value, given or by default. Raises SpecError for unknown, missing or wrong ones.

    Offline those without a value stand for any value of their type.
    """
    declared = _declared(definition)
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


def _declared(definition: Tree) -> dict[str, Tree]:
    declared: dict[str, Tree] = {}
    for number, each in enumerate(definition.get("Parameters", ())):
        where = f"Parameters[{number}]"
        name = name_of(each, where)
        check_keys(each, PARAMETER, where)
        kind = each.get("Type")
        if kind not in TYPES:
            raise SpecError(f"{where}.Type: {unknown(str(kind), list(TYPES), 'type')}")
        if name in declared:
            raise SpecError(f"{where}.Name: two parameters are called {name!r}")
        if "DefaultValue" in each and not _is(each["DefaultValue"], kind):
            raise SpecError(f"{where}.DefaultValue: {each['DefaultValue']!r} is no {kind}")
        declared[name] = each
    return declared


def _any(kind: str) -> Any:
    return Later("any") if kind == "String" else TYPES[kind](1)


def _is(value: Any, kind: str) -> bool:
    wanted = TYPES[kind]
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
        return TYPES[kind](value)
    except (KeyError, ValueError) as error:
        raise SpecError(f"{where}: {value!r} is no {kind}") from error
