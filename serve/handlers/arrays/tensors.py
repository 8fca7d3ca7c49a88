"""Named arrays in and out, for frameworks whose models say what they take: ONNX and torch programs.

In: `{"inputs": {"name": [[...]], ...}}`, or those without `inputs`, or an npz; for a model of one input a bare list,
CSV or npy too. Out: the array of a model that has one, else an object by name. Requests share a batch, laid one upon
another by their first dimension, where the model leaves that open.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, InternalError, NotAcceptable, UnsupportedMediaType
from serve.formats import values
from serve.formats.values import Array
from serve.handlers.base import Reply, Request
from serve.http import media

READS = (values.JSON, values.CSV, values.NPY, values.NPZ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What a model takes. A dimension is a number, or None where it is open; `shape` None: nobody knows."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


@dataclass(slots=True, eq=False)  # compared and hashed by identity
class Item:
    arrays: Mapping[str, Array]
    accept: str

    @property
    def rows(self) -> int:
        return int(next(iter(self.arrays.values())).shape[0])

    def key(self) -> Hashable:
        """Equal for requests that can be laid one upon another."""
        return tuple((name, each.dtype.str, each.shape[1:]) for name, each in self.arrays.items())


def accepted(request: Request, model: ModelConfig[Any]) -> str:
    default = model.default_accept if model.default_accept in values.WRITES else values.JSON
    return media.choose(request.accept, values.WRITES, default)


def read(request: Request, inputs: Sequence[Input], model_field: str) -> dict[str, Array]:
    """The arrays of a request, each of the type and the shape its input has. Raises BadRequest that names both."""
    content_type = request.content_type or values.JSON
    if content_type not in READS:
        raise UnsupportedMediaType(f"Content-Type {content_type[:80]!r} is not read", hint=f"send {', '.join(READS)}")
    found = values.read(request.body, content_type, request.charset)
    named = _named(found, [each.name for each in inputs], model_field)
    return {each.name: _fitting(named[each.name], each) for each in inputs}


def _named(found: Any, names: Sequence[str], model_field: str) -> Mapping[str, Any]:
    if isinstance(found, dict):
        found = {name: value for name, value in found.items() if name != model_field or name in names}
        if len(found) == 1 and (only := next(iter(found))) in ("inputs", "instances", "data") and only not in names:
            found = found[only]
    if not isinstance(found, dict):
        if len(names) == 1:
            return {names[0]: found}
        raise BadRequest(f"the model has {len(names)} inputs: {', '.join(names)}", hint=f'send {{"{names[0]}": ...}}')
    if found.keys() != set(names):
        given = ", ".join(map(str, found))[:200] or "none"
        raise BadRequest(f"inputs given: {given}; the model has: {', '.join(names)}")
    return found


def _fitting(value: Any, wanted: Input) -> Array:
    what = f"input {wanted.name!r}"
    if wanted.dtype.kind == "O":
        found = np.array(value, object)
        if not all(isinstance(each, str) for each in found.ravel()):  # `flat` ends at 32 dimensions
            raise BadRequest(f"{what} is not an array of text")
    elif not isinstance(value, np.ndarray):
        found = values.numbers(value, wanted.dtype, what)
    elif np.can_cast(value.dtype, wanted.dtype, "same_kind"):
        with np.errstate(over="ignore"):
            found = value.astype(wanted.dtype, copy=False)
    elif value.dtype.kind == "f" and wanted.dtype.kind in "iu":  # CSV, whose numbers have no other type
        found = values.numbers(value, wanted.dtype, what)
    else:
        raise BadRequest(f"{what} is {value.dtype}; the model takes {wanted.dtype}")
    if wanted.shape is not None and not _has_shape(found, wanted.shape):
        shape = ", ".join("any" if each is None else str(each) for each in wanted.shape)
        raise BadRequest(f"{what} has shape {_shown(found.shape)}; the model takes ({shape})")
    return found


def _has_shape(found: Array, wanted: tuple[int | None, ...]) -> bool:
    return found.ndim == len(wanted) and all(each in (None, size) for each, size in zip(wanted, found.shape))


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def stacked(items: Sequence[Item]) -> dict[str, Array]:
    if len(items) == 1:
        return dict(items[0].arrays)
    return {name: np.concatenate([each.arrays[name] for each in items]) for name in items[0].arrays}


def replies(items: Sequence[Item], outputs: Mapping[str, Any]) -> list[Reply | NotAcceptable]:
    """The outputs of a batch, cut up again. Raises InternalError where they are not a row for each that went in."""
    if len(items) == 1:
        return [_reply(items[0], outputs)]
    rows = sum(each.rows for each in items)
    for name, output in outputs.items():
        if np.ndim(output) == 0 or len(output) != rows:
            raise InternalError(f"output {name!r} has not one row for each of the batch's {rows}")
    answers = []
    start = 0
    for item in items:
        answers.append(_reply(item, {name: output[start : start + item.rows] for name, output in outputs.items()}))
        start += item.rows
    return answers


def _reply(item: Item, outputs: Mapping[str, Any]) -> Reply | NotAcceptable:
    if len(outputs) == 1:
        value = next(iter(outputs.values()))
    elif item.accept == values.JSON:
        value = outputs
    else:
        return NotAcceptable(f"{len(outputs)} outputs are not written as {item.accept}", hint=f"ask for {values.JSON}")
    try:
        return Reply(body=values.write(value, item.accept), content_type=item.accept)
    except NotAcceptable as error:
        return error
