"""Search: which resources an expression selects, by their properties.

docs.aws.amazon.com/sagemaker/latest/APIReference/API_Search.html, and API_Filter.html for the operators.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from botocore.model import ListShape, MapShape, Shape, StructureShape

from local_test.platform.calls import ValidationError
from local_test.platform.control.answers import service_model

Record = Mapping[str, Any]  # a resource, as its Describe operation shows it, and its Tags
TAG = "Tags."
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "Equals": lambda actual, given: actual == given,
    "NotEquals": lambda actual, given: actual != given,
    "GreaterThan": lambda actual, given: actual > given,
    "GreaterThanOrEqualTo": lambda actual, given: actual >= given,
    "LessThan": lambda actual, given: actual < given,
    "LessThanOrEqualTo": lambda actual, given: actual <= given,
}


def selected(resource: str, records: Sequence[Record], asked: Mapping[str, Any]) -> list[Record]:
    """The records that a Search request selects, in its order. Raises ValidationError for an unknown property."""
    shape = service_model().shape_for("SearchRecord").members[resource]
    expression = asked.get("SearchExpression") or {}
    _check(expression, shape)
    by = asked.get("SortBy") or "LastModifiedTime"
    if asked.get("SortBy"):
        _require(by, shape)
    found = [each for each in records if _holds(expression, each)]
    found.sort(key=lambda each: _sortable(next(iter(_values(each, by)), None)))
    if asked.get("SortOrder") != "Ascending":
        found.reverse()
    return found


def _holds(expression: Mapping[str, Any], record: Record) -> bool:
    conditions = [
        *(_fits(each, record) for each in expression.get("Filters") or ()),
        *(_holds(each, record) for each in expression.get("SubExpressions") or ()),
        *(_nested(each, record) for each in expression.get("NestedFilters") or ()),
    ]
    return any(conditions) if expression.get("Operator") == "Or" and conditions else all(conditions)


def _nested(nested: Mapping[str, Any], record: Record) -> bool:
    """Whether one element of the list has all the properties."""
    name = nested["NestedPropertyName"]
    elements = [each for value in _values(record, name) for each in (value if isinstance(value, list) else [value])]
    return any(
        all(_fits({**each, "Name": each["Name"].removeprefix(f"{name}.")}, element) for each in nested["Filters"])
        for element in elements
    )


def _fits(condition: Mapping[str, Any], record: Record) -> bool:
    values = [each for each in _values(record, condition["Name"]) if each is not None]
    operator, given = condition.get("Operator") or "Equals", condition.get("Value") or ""
    if operator == "Exists":
        return bool(values)
    if operator == "NotExists":
        return not values
    if operator == "In":
        return any(_text(each) in given.split(",") for each in values)
    if operator == "Contains":
        return any(given in _text(each) for each in values)
    if operator == "NotEquals":
        return not any(_compared(COMPARISONS["Equals"], each, given) for each in values)
    return any(_compared(COMPARISONS[operator], each, given) for each in values)


def _compared(holds: Callable[[Any, Any], bool], actual: Any, given: str) -> bool:
    """Compares as what the property is: a number, a time (ISO 8601), otherwise text."""
    try:
        if isinstance(actual, datetime):
            return holds(actual.timestamp(), _moment(given).timestamp())
        if isinstance(actual, int | float) and not isinstance(actual, bool):
            return holds(float(actual), float(given))
    except ValueError:
        raise ValidationError(f"Value {given} cannot be compared with {_text(actual)}.") from None
    return holds(_text(actual), given)


def _moment(given: str) -> datetime:
    at = datetime.fromisoformat(given)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _values(record: Any, name: str) -> list[Any]:
    """The values of a property; several where a list is on its path."""
    if name.startswith(TAG):
        return [each.get("Value", "") for each in record.get("Tags") or () if each["Key"] == name[len(TAG) :]]
    found = [record]
    for part in name.split("."):
        found = [each[part] for value in found for each in _each(value) if isinstance(each, Mapping) and part in each]
    return found


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _sortable(value: Any) -> tuple[bool, bool, Any]:
    """Absent values come first, numbers and times before text."""
    if value is None:
        return False, False, 0.0
    if isinstance(value, datetime):
        value = value.timestamp()
    number = isinstance(value, int | float)
    return True, not number, value if number else str(value)


def _check(expression: Mapping[str, Any], shape: Shape) -> None:
    """Raises ValidationError for a property that the resource does not have, or an operator that does not exist."""
    for each in expression.get("Filters") or ():
        _require(each["Name"], shape)
        _known(each)
    for each in expression.get("SubExpressions") or ():
        _check(each, shape)
    for each in expression.get("NestedFilters") or ():
        name = each["NestedPropertyName"]
        _require(name, shape)
        for nested in each["Filters"]:
            _require(f"{name}.{nested['Name'].removeprefix(f'{name}.')}", shape)
            _known(nested)


def _known(condition: Mapping[str, Any]) -> None:
    known = (*COMPARISONS, "Contains", "Exists", "NotExists", "In")
    if (condition.get("Operator") or "Equals") not in known:
        raise ValidationError(f"Operator {condition['Operator']} must be one of {', '.join(known)}.")


def _require(name: str, shape: Shape) -> None:
    if name.startswith(TAG):
        return
    at: Shape | None = shape
    for part in name.split("."):
        while isinstance(at, ListShape):
            at = at.member
        if isinstance(at, MapShape):
            at = at.value
        elif isinstance(at, StructureShape) and part in at.members:
            at = at.members[part]
        else:
            raise ValidationError(f"Unknown property name: {name}")
