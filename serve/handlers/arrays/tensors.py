"""Named arrays in and out, for models that declare their inputs: ONNX and torch programs.

A request has its arrays by name: `{"inputs": {"name": [[...]], ...}}`, the same without `inputs`, or an npz. For a
model of one input a bare list, CSV or npy is enough. The answer is the array of a model with one output, else an object
of arrays by name. Requests are concatenated by their first dimension into a batch, if the model leaves it open.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from serve.catalog.model_config import ModelConfig
from serve.errors import BadRequest, InternalError, NotAcceptable, UnsupportedMediaType
from serve.formats import frames, npy, values
from serve.formats.frames import Table
from serve.formats.open_inference import Tensor
from serve.formats.values import Array
from serve.handlers.base import Reply, Request
from serve.http import media

WRITES = (*values.WRITES, media.NPZ)
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

    def tensor(self) -> Tensor:
        return Tensor(self.name, self.dtype, sizes(self.shape or (None,)))


def sizes(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape in which -1 stands for each open dimension."""
    return tuple(each if isinstance(each, int) else -1 for each in shape)


class Form(Enum):
    """The form of a JSON answer."""

    PLAIN = "the array, or an object of arrays"
    PREDICTIONS = "the same under predictions"
    MLFLOW = "an object of arrays under predictions, if the outputs have names"
    RECORDS = "an object for each row, by output, under predictions: MLflow's answer to a frame"


@dataclass(slots=True, eq=False)  # compared and hashed by identity
class Item:
    arrays: Mapping[str, Array]
    accept: str
    form: Form = Form.PLAIN

    @property
    def rows(self) -> int:
        return int(next(iter(self.arrays.values())).shape[0])

    def key(self) -> Hashable:
        """Equal for requests that can be concatenated."""
        return tuple((name, each.dtype.str, each.shape[1:]) for name, each in self.arrays.items())


def accepted(request: Request, model: ModelConfig[Any], offers: tuple[str, ...] = values.WRITES) -> str:
    """The media type of the answer. Raises NotAcceptable."""
    return media.choose(request.accept, offers, model.default_accept if model.default_accept in offers else media.JSON)


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


def decoded(request: Request, inputs: Sequence[Input], model: ModelConfig[Any]) -> Item:
    """The arrays of a request, each with the type and the shape of its input. Raises BadRequest, which has both."""
    accept = accepted(request, model, WRITES)
    found, form = _named(body(request), [each.name for each in inputs], model.model_field)
    if form is not Form.RECORDS and frames.is_mlflow(model.directory):
        form = Form.MLFLOW
    arrays = {each.name: _fitting(found[each.name], each) for each in inputs}
    return Item(arrays, accept, form if accept == media.JSON else Form.PLAIN)


def _named(found: Any, names: Sequence[str], model_field: str) -> tuple[Mapping[str, Any], Form]:
    """The values of the inputs by name, and the form of the answer."""
    form = Form.PLAIN
    if not set(names) & {frames.SPLIT, frames.RECORDS} and (frame := frames.frame(found, model_field)) is not None:
        return _of_frame(frame, names), Form.RECORDS
    if isinstance(found, dict):
        found = {name: value for name, value in found.items() if name != model_field or name in names}
        if len(found) == 1 and (only := next(iter(found))) in ROWS_KEYS and only not in names:
            found = found[only]
            form = Form.PREDICTIONS if only in WRAPPED else Form.PLAIN
            if isinstance(found, list) and found and isinstance(found[0], dict):  # a row for each object
                found = frames.records(found, names=names).columns
    if not isinstance(found, dict):
        if len(names) == 1:
            return {names[0]: found}, form
        raise BadRequest(f"the model has {len(names)} inputs: {', '.join(names)}", hint=f'send {{"{names[0]}": ...}}')
    if found.keys() != set(names):
        given = ", ".join(map(str, found))[:200] or "none"
        raise BadRequest(f"inputs given: {given}; the model has: {', '.join(names)}")
    return found, form


def _of_frame(frame: Table | list[Any], names: Sequence[str]) -> Mapping[str, Any]:
    """The rows of a frame for a model of one input, else its columns by name."""
    if len(names) == 1:
        return {names[0]: frame.rows if isinstance(frame, Table) else frame}
    return (frame if isinstance(frame, Table) else frames.by_position(frame, names)).ordered(names).columns


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
    if wanted.shape is not None and len(wanted.shape) == 2 and wanted.shape[1] == 1 and found.ndim == 1:
        found = found.reshape(-1, 1)  # a column of a frame
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


def replies(
    items: Sequence[Item], outputs: Mapping[str, Any], *, numbered: bool = False
) -> list[Reply | NotAcceptable]:
    """The reply to each request of a batch. Raises InternalError if an output does not have one row per input row.

    `numbered`: the outputs have no names of their own, so that records number the columns.
    """
    if len(items) == 1:
        return [_reply(items[0], outputs, numbered)]
    rows = sum(each.rows for each in items)
    for name, output in outputs.items():
        if np.ndim(output) == 0 or len(output) != rows:
            raise InternalError(f"output {name!r} does not have one row for each of the {rows} rows of the batch")
    answers = []
    start = 0
    for item in items:
        part = {name: output[start : start + item.rows] for name, output in outputs.items()}
        answers.append(_reply(item, part, numbered))
        start += item.rows
    return answers


def _reply(item: Item, outputs: Mapping[str, Any], numbered: bool) -> Reply | NotAcceptable:
    value: Any
    if item.accept == media.NPZ:
        return Reply(body=_npz(outputs), content_type=media.NPZ)
    if item.form is Form.RECORDS:
        value = _records(outputs, numbered)
    elif len(outputs) == 1 and (numbered or item.form is not Form.MLFLOW):
        value = next(iter(outputs.values()))
    elif item.accept == media.JSON:
        value = outputs
    else:
        return NotAcceptable(f"{len(outputs)} outputs cannot be written as {item.accept}", hint=f"ask for {media.JSON}")
    try:
        value = value if item.form is Form.PLAIN else {"predictions": value}
        return Reply(body=values.write(value, item.accept), content_type=item.accept)
    except NotAcceptable as error:
        return error


def _npz(outputs: Mapping[str, Any]) -> bytes:
    return npy.packed({name: values.storable(_array(each)) for name, each in outputs.items()})


def _array(output: Any) -> Array:
    """An output as an array: maps, which scikit-learn's converter makes of probabilities, are rows of their values."""
    rows = list(output) if isinstance(output, list) else output
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        return np.array([list(row.values()) for row in rows], np.float32)
    return np.asarray(rows)


def _records(outputs: Mapping[str, Any], numbered: bool) -> list[dict[str, Any]]:
    """An object for each row. A row of several values is a list, or a numbered column each."""
    tables = {name: each.tolist() if hasattr(each, "tolist") else list(each) for name, each in outputs.items()}
    if numbered and len(tables) == 1:
        (rows,) = tables.values()
        lists = [row if isinstance(row, list) else [row] for row in rows]
        return [{str(number): cell for number, cell in enumerate(row)} for row in lists]
    columns = {name: [_only(cell) for cell in rows] for name, rows in tables.items()}
    return [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]


def _only(cell: Any) -> Any:
    return cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
