"""Named arrays in and out, for models that declare their inputs: ONNX and torch programs.

A request has its arrays by name: `{"inputs": {"name": [[...]], ...}}`, the same without `inputs`, or an npz. For a
model of one input a bare list, CSV or npy is enough. The answer is the array of a model with one output, else an object
of arrays by name. Requests are concatenated by their first dimension into a batch, if the model leaves it open.
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

ROWS_KEYS = ("inputs", "instances", "data")  # the keys of an object that has the rows of a request
WRAPPED = (
    "instances",
)  # of those, the key whose answer is {"predictions": ...} in MLflow, TensorFlow Serving and KServe


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An input that a model declares. An open dimension is None; `shape` is None where the model declares none."""

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
        """Equal for requests that can be concatenated."""
        return tuple((name, each.dtype.str, each.shape[1:]) for name, each in self.arrays.items())


def accepted(request: Request, model: ModelConfig[Any]) -> str:
    """The media type of the answer. Raises NotAcceptable."""
    default = model.default_accept if model.default_accept in values.WRITES else media.JSON
    return media.choose(request.accept, values.WRITES, default)


def body(request: Request) -> Any:
    """The value of a body, as `values.read` returns it; JSON if the request has no type.

    Raises UnsupportedMediaType for a type of which no arrays are made.
    """
    content_type = request.content_type or media.JSON
    if content_type not in values.READS:
        raise UnsupportedMediaType(
            f"unsupported Content-Type: {content_type[:80]!r}", hint=f"send one of: {', '.join(values.READS)}"
        )
    return values.read(request.body, content_type, request.charset)


def read(request: Request, inputs: Sequence[Input], model_field: str) -> dict[str, Array]:
    """The arrays of a request, each with the type and the shape of its input. Raises BadRequest, which has both."""
    named = _named(body(request), [each.name for each in inputs], model_field)
    return {each.name: _fitting(named[each.name], each) for each in inputs}


def _named(found: Any, names: Sequence[str], model_field: str) -> Mapping[str, Any]:
    if isinstance(found, dict):
        found = {name: value for name, value in found.items() if name != model_field or name in names}
        if len(found) == 1 and (only := next(iter(found))) in ROWS_KEYS and only not in names:
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
        if not all(isinstance(each, str) for each in found.ravel()):  # ravel, because `flat` ends at 32 dimensions
            raise BadRequest(f"{what} is not an array of text")
    elif not isinstance(value, np.ndarray):
        found = values.numbers(value, wanted.dtype, what)
    elif np.can_cast(value.dtype, wanted.dtype, "same_kind"):
        with np.errstate(over="ignore"):
            found = value.astype(wanted.dtype, copy=False)
    elif value.dtype.kind == "f" and wanted.dtype.kind in "iu":  # CSV, which is read as float64
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
    """The arrays of all requests of a batch, concatenated."""
    if len(items) == 1:
        return dict(items[0].arrays)
    return {name: np.concatenate([each.arrays[name] for each in items]) for name in items[0].arrays}


def replies(items: Sequence[Item], outputs: Mapping[str, Any]) -> list[Reply | NotAcceptable]:
    """The reply to each request of a batch. Raises InternalError if an output does not have one row per input row."""
    if len(items) == 1:
        return [_reply(items[0], outputs)]
    rows = sum(each.rows for each in items)
    for name, output in outputs.items():
        if np.ndim(output) == 0 or len(output) != rows:
            raise InternalError(f"output {name!r} does not have one row for each of the {rows} rows of the batch")
    answers = []
    start = 0
    for item in items:
        answers.append(_reply(item, {name: output[start : start + item.rows] for name, output in outputs.items()}))
        start += item.rows
    return answers


def _reply(item: Item, outputs: Mapping[str, Any]) -> Reply | NotAcceptable:
    if len(outputs) == 1:
        value = next(iter(outputs.values()))
    elif item.accept == media.JSON:
        value = outputs
    else:
        return NotAcceptable(f"{len(outputs)} outputs cannot be written as {item.accept}", hint=f"ask for {media.JSON}")
    try:
        return Reply(body=values.write(value, item.accept), content_type=item.accept)
    except NotAcceptable as error:
        return error
