"""Bodies of the Open Inference Protocol, version 2: tensors by name, as JSON or with Triton's binary extension.

https://github.com/kserve/open-inference-protocol (REST), and for the extension
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from serve.errors import BadRequest, NotAcceptable
from serve.http import extent, media
from serve.http.body import decode_json

Array = npt.NDArray[Any]

HEADER = "Inference-Header-Content-Length"  # bytes of JSON before the binary data, in requests and answers
_TYPES: dict[str, npt.DTypeLike] = {
    "BOOL": np.bool_,
    **{f"{sign.upper()}INT{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": np.float32,  # numpy has no bfloat16: its values fit into 32 bits
    "BYTES": object,
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items() if name != "BF16"}
_JSON_TYPES: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float, type(None))}


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: Any = msgspec.UNSET
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] | None = None


_DECODER = msgspec.json.Decoder(_Body)


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a model declares of an input or an output; -1 is an open dimension."""

    name: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]

    def shown(self) -> dict[str, Any]:
        """As the metadata of a model has it."""
        return {"name": self.name, "datatype": datatype(np.dtype(self.dtype)), "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class Inference:
    """One request: its tensors, and which outputs the answer has in which form."""

    id: str
    tensors: Mapping[str, Array]  # text is an array of str objects
    parameters: Mapping[str, Any]
    outputs: Mapping[str, bool] | None  # by name, whether its data is binary; None: all outputs
    binary: bool  # for outputs that are not named
    columns: bool = field(default=False)  # each tensor is a column of a frame: content_type "pd" of MLServer

    def written(self, model: str, found: Mapping[str, Array]) -> tuple[bytes, str, dict[str, str]]:
        """The answer: body, content type and headers. Raises BadRequest for an output that the model does not have."""
        chosen = dict.fromkeys(found, self.binary) if self.outputs is None else self.outputs
        if unknown := chosen.keys() - found.keys():
            raise BadRequest(
                f"unknown output {min(unknown)[:100]!r}", hint=f"the outputs are: {', '.join(found)[:400]}"
            )
        shown, pieces = [], []
        for name, binary in chosen.items():
            array = found[name]
            entry: dict[str, Any] = {"name": name, "datatype": datatype(array.dtype), "shape": list(array.shape)}
            if binary:
                pieces.append(_packed(array))
                entry["parameters"] = {"binary_data_size": len(pieces[-1])}
            else:
                entry["data"] = array.ravel().tolist()
            shown.append(entry)
        body = msgspec.json.encode({"model_name": model, "model_version": "1", "id": self.id, "outputs": shown})
        if not pieces:
            return body, media.JSON, {}
        return b"".join((body, *pieces)), media.BYTES, {HEADER: str(len(body))}


def parse(body: bytes, header: str) -> Inference:
    """A request. `header`: the value of HEADER, or "" for a body of JSON alone. Raises BadRequest."""
    size = len(body)
    if header:
        if not header.isascii() or not header.isdecimal() or int(header) > len(body):
            raise BadRequest(f"{HEADER} must be a number of bytes, at most the {len(body)} of the body")
        size = int(header)
    try:
        asked = decode_json(body[:size], decoder=_DECODER)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body is not an inference request: {error}") from error
    rest = memoryview(body)[size:]
    tensors: dict[str, Array] = {}
    for each in asked.inputs:
        if each.name in tensors:
            raise BadRequest(f"two inputs have the name {each.name[:100]!r}")
        tensors[each.name], used = _tensor(each, rest)
        rest = rest[used:]
    if not tensors:
        raise BadRequest("inputs is empty")
    if len(rest):
        raise BadRequest(
            f"{len(rest)} bytes follow the data of the last input", hint="check binary_data_size and shape"
        )
    for output in asked.outputs or ():
        if output.parameters.get("classification"):
            raise BadRequest("the classification extension is unsupported", hint="ask for the output's own data")
    binary = asked.parameters.get("binary_data_output") is True
    outputs = {each.name: each.parameters.get("binary_data", binary) is True for each in asked.outputs or ()}
    kinds = {each.parameters.get("content_type") for each in asked.inputs} | {asked.parameters.get("content_type")}
    return Inference(asked.id, tensors, asked.parameters, outputs or None, binary, "pd" in kinds)


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a type of numpy. Raises NotAcceptable for a type that it does not have."""
    if dtype.kind in "OUS":
        return "BYTES"
    name = _NAMES.get(dtype.newbyteorder("="))
    if name is None:
        raise NotAcceptable(f"a tensor of {dtype} cannot be written in the Open Inference Protocol")
    return name


def from_json(value: Any) -> Array:
    """A JSON answer as a tensor: regular lists of numbers as they are, anything else one text for each entry."""
    array = _numbers(value)
    if array is not None:
        return array
    entries = value if isinstance(value, list) else [value]
    texts = [each if isinstance(each, str) else msgspec.json.encode(each).decode() for each in entries]
    return np.array(texts, object)


def _numbers(value: Any) -> Array | None:
    if not isinstance(value, list):
        return np.array([value]) if type(value) in (bool, int, float) else None
    try:
        found = np.array(value)
    except (ValueError, OverflowError):  # lists of different lengths
        return None
    return found if found.dtype.kind in "biuf" and found.ndim else None


def _tensor(asked: _Input, rest: memoryview) -> tuple[Array, int]:
    """The array of an input, and how many bytes of `rest` it takes."""
    what = f"input {asked.name[:100]!r}"
    if asked.datatype not in _TYPES:
        raise BadRequest(
            f"{what} has the unknown datatype {asked.datatype[:40]!r}", hint=f"one of: {', '.join(_TYPES)}"
        )
    if any(size < 0 for size in asked.shape):
        raise BadRequest(f"{what} has the shape {asked.shape}: sizes must not be negative")
    extent.check_shape(asked.shape)
    count = math.prod(asked.shape)
    size = asked.parameters.get("binary_data_size")
    if (size is None) == (asked.data is msgspec.UNSET):
        raise BadRequest(f"{what} needs either data or the parameter binary_data_size")
    if size is None:
        flat = _from_list(asked.data, asked.datatype, what)
    elif not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
        raise BadRequest(f"{what}: binary_data_size is {size!r}; {len(rest)} bytes of binary data are left")
    else:
        flat = _from_bytes(rest[:size], asked.datatype, what, count)
    if len(flat) != count:
        raise BadRequest(f"{what} has {len(flat)} elements; its shape {asked.shape} has {count}")
    try:
        return flat.reshape(asked.shape), size or 0
    except ValueError as error:  # more dimensions than numpy has
        raise BadRequest(f"{what} has an unsupported shape: {error}") from error


def _from_list(data: Any, name: str, what: str) -> Array:
    flat = data
    while isinstance(flat, list) and flat and isinstance(flat[0], list):
        if not all(isinstance(each, list) for each in flat):
            raise BadRequest(f"{what}: data has lists beside single values")
        flat = [each for row in flat for each in row]
    if not isinstance(flat, list):
        raise BadRequest(f"{what}: data must be a list")
    dtype = np.dtype(_TYPES[name])
    allowed = _JSON_TYPES.get(dtype.kind, (str,))
    for each in flat:
        if type(each) not in allowed:
            raise BadRequest(f"{what}: data has a {type(each).__name__}, where {name} is needed")
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, np.float64).astype(dtype) if dtype.kind == "f" else np.array(flat, dtype)
    except OverflowError as error:
        raise BadRequest(f"{what}: data has a number that {name} cannot hold") from error


def _from_bytes(data: memoryview, name: str, what: str, count: int) -> Array:
    if name == "BYTES":
        if len(data) < 4 * count:
            raise BadRequest(f"{what}: {len(data)} bytes are too few for {count} texts, each behind its length")
        try:
            return np.array(list(itertools.islice(_texts(data), count + 1)), object)
        except (struct.error, UnicodeDecodeError) as error:
            raise BadRequest(
                f"{what}: the binary data is not texts in UTF-8, each behind its length: {error}"
            ) from error
    dtype = np.dtype(np.uint16) if name == "BF16" else np.dtype(_TYPES[name])
    if len(data) % dtype.itemsize:
        raise BadRequest(f"{what}: {len(data)} bytes are not whole elements of {name}")
    found = np.frombuffer(data, dtype.newbyteorder("<"))
    if name == "BF16":
        wide: Array = (found.astype(np.uint32) << 16).view(np.float32)
        return wide
    if name == "BOOL":
        truths: Array = np.frombuffer(data, np.uint8) != 0
        return truths
    copy: Array = found.copy()  # writable, and aligned
    return copy


def _texts(data: memoryview) -> Iterator[str]:
    start = 0
    while start < len(data):
        (size,) = struct.unpack_from("<I", data, start)
        start += 4 + size
        if start > len(data):
            raise struct.error(f"a text of {size} bytes is cut")
        yield bytes(data[start - size : start]).decode()


def _packed(array: Array) -> bytes:
    if datatype(array.dtype) != "BYTES":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [str(each).encode() for each in array.ravel()]
    return b"".join(struct.pack("<I", len(each)) + each for each in texts)
