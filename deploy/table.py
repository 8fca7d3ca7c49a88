"""TOML tables read into dataclasses: every key known, every value of its type, and words that say which is not."""

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class SpecError(Exception):
    """What a person has written cannot be meant; the message says where, what and what is allowed."""


def read(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """A `cls` from a table whose keys are its fields; `key` in a field's metadata is the name in the file.

    Raises SpecError.
    """
    fields = {each.metadata.get("key", each.name): each for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise SpecError(unknown(key, list(fields), f"key in [{where}]" if where else "key"))
    hints = get_type_hints(cls)
    values = {}
    for key, field in fields.items():
        path = f"{where}.{key}" if where else key
        if key in table:
            values[field.name] = _checked(table[key], hints[field.name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SpecError(f"{path} is missing")
    return cls(**values)


def unknown(name: str, known: Sequence[str], what: str) -> str:
    """The message for a name that is none of the known ones."""
    close = difflib.get_close_matches(name, known, 1)
    return f"no {what} is called {name!r}; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}")


_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", Mapping: "a table"}


def _checked(value: Any, hint: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # X | None: a key that may be left out
        return _checked(value, next(each for each in arguments if each is not types.NoneType), path)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise SpecError(f"{path} must be a table, not {value!r}")
        return read(hint, value, path)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list):
            raise SpecError(f"{path} must be a list, not {value!r}")
        return tuple(_checked(each, arguments[0], f"{path}[{number}]") for number, each in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise SpecError(f"{path} must be a table, not {value!r}")
        return {key: _checked(each, arguments[1], f"{path}.{key}") for key, each in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise SpecError(f"{path} must be {_NAMES.get(hint, hint)}, not {value!r}")
    return value
