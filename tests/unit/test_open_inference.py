"""The Open Inference Protocol: tensors of every type in both forms, and an inference on every handler."""

import contextlib
import io
import json
import struct
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import skops.io
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.http._utils import _get_inference_request
from tritonclient.utils import np_to_triton_dtype

from serve.catalog.kinds import HANDLERS
from serve.errors import BadRequest, ServeError
from serve.formats import open_inference
from serve.handlers.arrays.onnx import Onnx
from serve.handlers.base import Reply, Request
from serve.http import media
from serve.http.addresses import INFER, METADATA
from serve.runner.jobs import Batches
from serve.runner.open_inference import OpenInference
from serve.runner.records import Records
from tests.unit import test_arrays, test_frames
from tests.unit.configs import config_of
from tests.unit.every_handler import MODELS, answered, made

ARRAYS: dict[str, Any] = {
    "BOOL": np.array([[True, False, True], [False, False, True]]),
    "INT8": np.array([-128, 0, 127], np.int8),
    "INT16": np.array([[-32768], [32767]], np.int16),
    "INT32": np.array([-(2**31), 2**31 - 1], np.int32),
    "INT64": np.array([-(2**63), 2**63 - 1], np.int64),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([0, 65535], np.uint16),
    "UINT32": np.array([0, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 2**64 - 1], np.uint64),
    "FP16": np.array([0.1, -2.5, 65504], np.float16),
    "FP32": np.array([[0.1, -2.5e38, np.nan]], np.float32),
    "FP64": np.array([[[0.1], [1e300]]], np.float64),
    "BYTES": np.array([["", "é, 中文"], ["a\0b", '"x"']], object),
}


class Asked:
    """The connection's side of a job."""

    def __init__(self, engine: OpenInference, request: Request) -> None:
        self.request = request
        self.item = engine.decode(request)
        self.begun_monotonic = 0.0
        self.waited: Any = _Waited()
        self.outcome: Reply | ServeError | None = None
        engine.join(self)
        give_up = time.monotonic() + 60
        while self.outcome is None:
            assert time.monotonic() < give_up
            engine.step()

    def begin(self, now: float) -> None:
        assert not self.begun_monotonic
        self.begun_monotonic = now

    def reply(self, reply: Reply) -> None:
        assert self.outcome is None
        self.outcome = reply

    def fail(self, error: ServeError) -> None:
        assert self.outcome is None
        self.outcome = error

    def start(self, content_type: str) -> None:
        raise AssertionError

    def send(self, chunk: bytes) -> None:
        raise AssertionError

    def finish(self) -> None:
        raise AssertionError


class _Waited:
    arrived = 0.0
    decode = 0.0

    def for_model(self, now: float) -> float:
        return 0.0


def engine_of(name: str, handler: Any, directory: Path) -> OpenInference:
    inner: Any = handler if hasattr(handler, "step") else Batches(handler, 8)
    return OpenInference(Records(inner, getattr(handler, "records", ()), ""), handler, config_of(name, directory))


def asked(engine: OpenInference, body: bytes, header: int | None = None) -> Reply | ServeError:
    headers = {} if header is None else {open_inference.HEADER.lower(): str(header)}
    kind = media.JSON if header is None else media.BYTES
    try:
        outcome = Asked(engine, Request(body=body, content_type=kind, path=INFER, headers=headers)).outcome
    except ServeError as error:
        return error
    assert outcome is not None
    return outcome


def triton(
    engine: OpenInference, arrays: dict[str, Any], *, binary: bool, outputs: list[Any] | None = None
) -> InferResult:
    """The result that Triton's own client makes of an inference with these arrays."""
    inputs = []
    for name, array in arrays.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    if outputs is None and not binary:
        outputs = []
    body, size = _get_inference_request(inputs, "7", outputs, 0, False, False, 0, None, None)
    if not binary and not outputs:
        body = json.dumps(json.loads(body) | {"parameters": {}}).encode()
    reply = asked(engine, body, size)
    assert isinstance(reply, Reply), reply
    assert isinstance(reply.body, bytes)
    header = reply.headers.get(open_inference.HEADER)
    result = InferResult.from_response_body(reply.body, header_length=int(header) if header else None)
    assert result.get_response()["id"] == "7"
    return result


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ARRAYS)
@pytest.mark.peer("open-inference-protocol")
def test_tensors_of_every_type_pass_both_ways(datatype: str, binary: bool) -> None:
    """What Triton's client sends is read as it was, and what is written Triton's client reads, bit for bit."""
    array = ARRAYS[datatype]
    if not binary and datatype in ("FP16", "FP32"):
        array = np.where(np.isfinite(array), array, array.dtype.type(0))  # JSON has no nan, and the client no FP16
    inputs = [InferInput("x", list(array.shape), datatype)]
    if not binary and datatype == "FP16":
        body = json.dumps(
            {"inputs": [{"name": "x", "shape": list(array.shape), "datatype": "FP16", "data": array.tolist()}]}
        ).encode()
        size = None
    else:
        inputs[0].set_data_from_numpy(array, binary_data=binary)
        body, size = _get_inference_request(inputs, "", None, 0, False, False, 0, None, None)
    parsed = open_inference.parse(body, "" if size is None else str(size))
    found = parsed.tensors["x"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes() if datatype != "BYTES" else found.tolist() == array.tolist()

    for form in (True, False):
        inference = open_inference.Inference("", {}, {}, {"y": form}, False)
        written, _, headers = inference.written("m", {"y": found})
        header = headers.get(open_inference.HEADER)
        result = InferResult.from_response_body(written, header_length=int(header) if header else None)
        assert result.get_output("y")["datatype"] == datatype
        back = result.as_numpy("y")
        if datatype == "BYTES":
            back = np.array([each.decode() if isinstance(each, bytes) else each for each in back.ravel()], object)
            assert back.tolist() == array.ravel().tolist()
        else:
            assert np.array_equal(back, array, equal_nan=datatype.startswith("FP"))


@pytest.mark.peer("open-inference-protocol")
def test_bfloat16_is_read_from_binary_data() -> None:
    """numpy has no such type: the values fit into 32 bits."""
    array = np.array([1.5, -0.25, 3e38], ml_dtypes.bfloat16)
    tensor = InferInput("x", [3], "BF16")
    tensor.set_data_from_numpy(array)
    body, size = _get_inference_request([tensor], "", None, 0, False, False, 0, None, None)
    found = open_inference.parse(body, str(size)).tensors["x"]
    assert found.dtype == np.float32
    assert np.array_equal(found, array.astype(np.float32))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.peer("open-inference-protocol")
def test_arrays_of_named_models_are_inferred(binary: bool, tmp_path: Path) -> None:
    """An ONNX model of two inputs gets them by name; the answer has all outputs, or those asked for."""
    test_arrays.onnx_model(tmp_path / "m", two=True)
    handler = Onnx(config_of("onnx", tmp_path / "m"))
    engine = engine_of("onnx", handler, tmp_path / "m")
    x, z = np.ones((2, 3), np.float32), np.full((2, 3), 0.1, np.float32)
    result = triton(engine, {"z": z, "x": x}, binary=binary)
    assert np.array_equal(result.as_numpy("y"), x + z)
    assert np.array_equal(result.as_numpy("n"), z)
    assert result.as_numpy("y").dtype == np.float32
    chosen = triton(
        engine, {"z": z, "x": x}, binary=binary, outputs=[InferRequestedOutput("n", binary_data=not binary)]
    )
    assert chosen.as_numpy("y") is None
    assert np.array_equal(chosen.as_numpy("n"), z)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.peer("open-inference-protocol")
def test_tables_are_inferred(binary: bool, tmp_path: Path) -> None:
    """One tensor of rows to XGBoost, scikit-learn and torch gives the values that the handler answers by npy."""
    for name, width in (("xgboost", 4), ("sklearn", 2), ("torch", 2), ("onnx", 2)):
        handler = made(name, tmp_path / name)
        engine = engine_of(name, handler, tmp_path / name)
        rows = np.arange(2 * width).reshape(2, width).astype(np.float32)
        result = triton(engine, {"anything": rows}, binary=binary)
        (output,) = result.get_response()["outputs"]
        plain = answered(handler, Request(body=test_arrays.npy(rows), content_type=media.NPY, accept=media.NPY))
        assert isinstance(plain, Reply)
        assert isinstance(plain.body, bytes)
        expected = np.load(io.BytesIO(plain.body))
        assert np.array_equal(result.as_numpy(output["name"]), expected)
        assert result.as_numpy(output["name"]).dtype == expected.dtype


@pytest.mark.peer("open-inference-protocol")
def test_columns_of_a_frame_are_tensors_by_name(tmp_path: Path) -> None:
    """A pipeline with a ColumnTransformer gets a tensor for each column, of numbers, text and truth values."""
    estimator = test_frames._pipeline(["age", "annual income"])
    skops.io.dump(estimator, tmp_path / "model.skops")
    handler = test_frames.served(tmp_path, method="predict")
    engine = engine_of("sklearn", handler, tmp_path)
    arrays = {
        "member": np.array([True, False]),
        "city": np.array(["Rome", "Oslo"], object),
        "age": np.array([33, 70], np.int64),
        "annual income": np.array([[4.25], [0.5]], np.float32),
    }
    for binary in (True, False):
        found = triton(engine, arrays, binary=binary).as_numpy("predict")
        expected = estimator.predict(pd.DataFrame({name: each.ravel() for name, each in arrays.items()}))
        assert [each.decode() if isinstance(each, bytes) else each for each in found] == list(expected)


@pytest.mark.parametrize("name", [name for name in HANDLERS if name not in ("onnx", "xgboost", "sklearn", "torch")])
@pytest.mark.peer("open-inference-protocol")
def test_text_is_inferred_by_every_other_handler(name: str, tmp_path: Path) -> None:
    """Texts are a tensor of BYTES, parameters are the model's, and each entry of the answer is one element."""
    handler = made(name, tmp_path / "m")
    engine = engine_of(name, handler, tmp_path / "m")
    given = json.loads(MODELS[name][1])
    inputs = given["inputs"] if isinstance(given, dict) else given
    fields = inputs if isinstance(inputs, dict) else {"inputs": inputs}
    tensors = [
        {"name": key, "shape": [1] if isinstance(each, str) else [1, 2], "datatype": "BYTES", "data": [each]}
        if isinstance(each, str)
        else {"name": key, "shape": [1, 2], "datatype": "INT64", "data": each}
        for key, each in fields.items()
    ]
    body = {"id": "a", "inputs": tensors, "parameters": given.get("parameters", {}) if isinstance(given, dict) else {}}

    reply = asked(engine, json.dumps(body).encode())

    assert isinstance(reply, Reply), reply
    assert isinstance(reply.body, bytes)
    (output,) = json.loads(reply.body)["outputs"]
    plain_body = given if not isinstance(given, dict) else given | {"inputs": [inputs]}
    plain = answered(handler, Request(body=json.dumps(plain_body).encode(), content_type=media.JSON))
    assert isinstance(plain, Reply)
    assert isinstance(plain.body, bytes)
    expected = json.loads(plain.body)
    expected = expected if isinstance(expected, list) else [expected]
    if output["datatype"] == "BYTES":
        assert [json.loads(each) if each[:1] in "[{" else each for each in output["data"]] == expected
    else:
        assert np.array_equal(np.array(output["data"]).reshape(output["shape"]), np.array(expected))


X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


@pytest.mark.parametrize(
    ("body", "header", "said"),
    [
        (b"", "", "the body is empty"),
        (b"[]", "", "not an inference request"),
        (b'{"inputs": []}', "", "inputs is empty"),
        (b'{"inputs": {}}', "", "not an inference request"),
        ({"inputs": [X, X]}, "", "two inputs have the name 'x'"),
        ({"inputs": [X | {"shape": [3]}]}, "", "has 2 elements; its shape [3] has 3"),
        ({"inputs": [X | {"shape": [-1, -2]}]}, "", "sizes must not be negative"),
        ({"inputs": [X | {"shape": [2**62, 2**62]}]}, "", "has 2 elements"),
        ({"inputs": [X | {"shape": [0.5]}]}, "", "not an inference request"),
        ({"inputs": [X | {"datatype": "FP8"}]}, "", "unknown datatype 'FP8'"),
        ({"inputs": [X | {"data": ["1", "2"]}]}, "", "data has a str, where FP32 is needed"),
        ({"inputs": [X | {"data": [[1], 2]}]}, "", "lists beside single values"),
        ({"inputs": [X | {"data": 3}]}, "", "data must be a list"),
        ({"inputs": [X | {"datatype": "INT8", "data": [1, 128]}]}, "", "a number that INT8 cannot hold"),
        ({"inputs": [X | {"datatype": "UINT64", "data": [1, -1]}]}, "", "a number that UINT64 cannot hold"),
        ({"inputs": [X | {"datatype": "INT64", "data": [1, 1.5]}]}, "", "data has a float, where INT64 is needed"),
        ({"inputs": [X | {"datatype": "INT64", "data": [1, True]}]}, "", "data has a bool, where INT64 is needed"),
        ({"inputs": [X | {"datatype": "BOOL", "data": [1, 0]}]}, "", "data has a int, where BOOL is needed"),
        ({"inputs": [X | {"datatype": "BYTES", "data": [1, 0]}]}, "", "data has a int, where BYTES is needed"),
        ({"inputs": [X | {"parameters": {"binary_data_size": 8}}]}, "", "needs either data or the parameter"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}, "", "needs either data or the parameter"),
        ({"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}, "", "classification"),
        ({"inputs": [X]}, "9999", "must be a number of bytes, at most"),
        ({"inputs": [X]}, "-1", "must be a number of bytes"),
        ({"inputs": [X]}, "x", "must be a number of bytes"),
    ],
)  # fmt: skip
@pytest.mark.peer("open-inference-protocol")
def test_an_invalid_inference_is_refused_with_the_input_at_fault(body: Any, header: str, said: str) -> None:
    """Before any memory is allocated for its shape."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequest) as refused:
        open_inference.parse(raw, header)
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "said"),
    [
        ("FP32", [2], b"1234567", "7 bytes are not whole elements of FP32"),
        ("FP32", [2], b"1234", "has 1 elements; its shape [2] has 2"),
        ("BYTES", [1], struct.pack("<I", 9) + b"abc", "a text of 9 bytes is cut"),
        ("BYTES", [1], b"\1\0", "2 bytes are too few for 1 texts"),
        ("BYTES", [1], struct.pack("<I", 1) + b"\xff", "not texts in UTF-8"),
        ("BYTES", [2], struct.pack("<I", 1) + b"a", "5 bytes are too few for 2 texts"),
        ("BYTES", [2], struct.pack("<I", 5) + b"abcde", "has 1 elements"),
    ],
)
def test_invalid_binary_data_is_refused(datatype: str, shape: list[int], data: bytes, said: str) -> None:
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(BadRequest) as refused:
        open_inference.parse(head + data, str(len(head)))
    assert said in refused.value.message
    with pytest.raises(BadRequest, match=r"bytes of binary data are left|bytes follow"):
        open_inference.parse(head + data[:-1], str(len(head)))
    with pytest.raises(BadRequest):
        open_inference.parse(head + data + b"x", str(len(head)))


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_parsed_or_refused(data: bytes, cut: int) -> None:
    """With an error of the request, whatever a client sends as header and as data."""
    head = b'{"inputs":[{"name":"x","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":9}}]}'
    for body, header in ((data, ""), (data, str(cut)), (head + data, str(len(head))), (head[:cut] + data, "")):
        with contextlib.suppress(BadRequest):
            open_inference.parse(body, header)


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.peer("open-inference-protocol")
def test_the_metadata_of_every_model_lists_its_tensors(name: str, tmp_path: Path) -> None:
    """Name, versions, platform, and the inputs and outputs with datatype and shape."""
    engine = engine_of(name, made(name, tmp_path / "m"), tmp_path / "m")
    reply = Asked(engine, Request(body=b"", content_type="", path=METADATA)).outcome
    assert isinstance(reply, Reply)
    assert isinstance(reply.body, bytes)
    shown = json.loads(reply.body)
    assert list(shown) == ["name", "versions", "platform", "inputs", "outputs"]
    assert (shown["name"], shown["versions"], shown["platform"]) == ("m", ["1"], name)
    for tensor in (*shown["inputs"], *shown["outputs"]):
        assert list(tensor) == ["name", "datatype", "shape"]
        assert tensor["datatype"] in ARRAYS
        assert all(isinstance(size, int) for size in tensor["shape"])
    assert bool(shown["inputs"]) == (name != "custom")


def test_an_inference_that_streams_is_refused(tmp_path: Path) -> None:
    """And the engine is free for the next one."""
    engine = engine_of("text_generation", made("text_generation", tmp_path / "m"), tmp_path / "m")
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["w1"]}]}
    streamed = asked(engine, json.dumps(body | {"parameters": {"stream": True, "max_new_tokens": 2}}).encode())
    assert isinstance(streamed, BadRequest)
    assert isinstance(asked(engine, json.dumps(body | {"parameters": {"max_new_tokens": 2}}).encode()), Reply)
    assert not engine._jobs
