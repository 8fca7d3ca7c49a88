"""The stand-ins for AWS's toolkits read and fail as these do: shapes, types, and exceptions that model code catches."""

import copy
import json
import pickle
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.custom import defaults, toolkits
from serve.handlers.custom.faults import InvalidInput, InvalidJson
from serve.handlers.custom.handler import Custom
from tests.unit.configs import config_of

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The stand-in of this name, as model code imports it."""
    monkeypatch.setattr(sys, "meta_path", sys.meta_path.copy())
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    toolkits.install()
    return import_module


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("body", "dtype", "found"),
    [
        ("1,2,3", np.int64, [1, 2, 3]),
        ("1,2,3\n", np.int64, [1, 2, 3]),
        ("1.5,2.5", np.float64, [1.5, 2.5]),
        ("1,2\n3,4", np.int64, [[1, 2], [3, 4]]),
        ("1.5\n2.5", np.float64, [1.5, 2.5]),
        ("1\n2", np.int64, [1, 2]),
        ("5", np.int64, 5),
        ("5.5", np.float64, 5.5),
        ("-1,+2", np.int64, [-1, 2]),
    ],
)
def test_a_csv_has_the_shape_that_the_toolkit_gives(
    stand_in: Callable[[str], Any], body: str, dtype: type, found: Any
) -> None:
    """decoder.decode of a CSV drops dimensions of one, and PyTorch's default input_fn gives a tensor of this shape
    (values recorded from sagemaker-inference 1.10.1 and sagemaker-pytorch-inference 2.0.25)."""
    decoded = stand_in("sagemaker_inference.decoder").decode(body, CSV)
    assert (decoded.dtype, decoded.shape, decoded.tolist()) == (np.dtype(dtype), np.shape(found), found)
    tensor = defaults.read(defaults.Toolkit.PYTORCH, body.encode(), CSV, "utf-8")
    assert (tensor.dtype, tuple(tensor.shape), tensor.tolist()) == (torch.float32, np.shape(found), found)


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("body", "kind", "shape"),
    [
        ("[1,2]", "i", (2,)),
        ("[[1,2]]", "i", (1, 2)),
        ("5", "i", ()),
        ("[]", "f", (0,)),
        ('{"a":1}', "O", ()),
        ('[{"a":1}]', "O", (1,)),
        ("null", "O", ()),
        ("true", "b", ()),
    ],
)
def test_json_has_the_shape_that_the_toolkit_gives(
    stand_in: Callable[[str], Any], body: str, kind: str, shape: tuple[int, ...]
) -> None:
    """decoder.decode of JSON is numpy's array of it, objects included (recorded from sagemaker-inference 1.10.1)."""
    decoded = stand_in("sagemaker_inference.decoder").decode(body, JSON)
    assert (decoded.dtype.kind, decoded.shape, decoded.tolist()) == (kind, shape, json.loads(body))


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("1,2,3", [1.0, 2.0, 3.0]),
        ("1,2\n3,4", [[1.0, 2.0], [3.0, 4.0]]),
        ("1\n2", [1.0, 2.0]),
        ("5", 5.0),
        ("1e3,2", [1000.0, 2.0]),
        ("nan,1", [np.nan, 1.0]),
        ('"1","2"', [1.0, 2.0]),
        ("a,b", ["a", "b"]),
        ("M,1\nF,2", [["M", "1"], ["F", "2"]]),
    ],
)
def test_the_scikit_learn_toolkit_reads_a_csv_as_numbers_or_texts(
    stand_in: Callable[[str], Any], body: str, found: Any
) -> None:
    """encoders.decode gives float64, or an array of texts, as that of sagemaker-containers 2.8.6.post2 (recorded)."""
    encoders = stand_in("sagemaker_containers.beta.framework.encoders")
    for decoded in (encoders.decode(body, CSV), encoders.csv_to_numpy(body)):
        expected = np.array(found)
        assert (decoded.dtype, decoded.shape) == (expected.dtype, expected.shape)
        assert str(decoded.tolist()) == str(found)


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(("body", "dtype"), [("1,2\n3", None), ("a,b", np.float32), ("1,2\n3", np.float32)])
def test_a_csv_that_is_no_array_is_a_client_error(stand_in: Callable[[str], Any], body: str, dtype: Any) -> None:
    """ClientError, as sagemaker-containers raises it; a ValueError, too, as the errors of the other decoders are."""
    errors = stand_in("sagemaker_containers.beta.framework.errors")
    with pytest.raises(errors.ClientError) as raised:
        stand_in("sagemaker_containers.beta.framework.encoders").csv_to_numpy(body, dtype)
    assert isinstance(raised.value, ValueError)


BAD_JSON, BAD_CSV, RAGGED, BAD_NPY = "{", "1,a", "[[1],[2,3]]", b"\x93NUMPY?"
READERS: list[tuple[str, str, tuple[Any, ...]]] = [
    *[("sagemaker_inference.decoder", "decode", each) for each in ((BAD_JSON, JSON), (RAGGED, JSON), (BAD_CSV, CSV))],
    ("sagemaker_inference.decoder", "decode", (BAD_NPY, NPY)),
    ("sagemaker_inference.decoder", "decode", ("[" * 100_000, JSON)),
    ("sagemaker_inference.decoder", "decode", (b'"\xff"', JSON)),
    ("sagemaker_inference.encoder", "encode", ({"a": 1}, CSV)),
    *[
        ("sagemaker_containers.beta.framework.encoders", name, (body,))
        for name, body in (("csv_to_numpy", "1,2\n3"), ("json_to_numpy", BAD_JSON), ("npy_to_numpy", BAD_NPY))
    ],
    ("sagemaker_containers.beta.framework.encoders", "array_to_csv", ({"a": 1},)),
    *[
        ("sagemaker_xgboost_container.encoder", name, (body,))
        for name, body in (
            ("csv_to_dmatrix", BAD_CSV),
            ("libsvm_to_dmatrix", "1 a:b"),
            ("recordio_protobuf_to_dmatrix", b"\xff" * 20),
            ("json_to_jsonlines", BAD_JSON),
        )
    ],
    ("sagemaker_xgboost_container.encoder", "decode", (BAD_CSV, CSV)),
    ("sagemaker_xgboost_container.data_utils", "get_content_type", ("image/png",)),
    ("sagemaker_huggingface_inference_toolkit.decoder_encoder", "decode", (BAD_JSON, JSON)),
    ("sagemaker_huggingface_inference_toolkit.decoder_encoder", "decode", (BAD_NPY, NPY)),
    ("sagemaker_huggingface_inference_toolkit.decoder_encoder", "encode_csv", ({"a": [1]},)),
]


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(("module", "name", "arguments"), READERS)
def test_an_invalid_body_is_a_value_error(
    stand_in: Callable[[str], Any], module: str, name: str, arguments: tuple[Any, ...]
) -> None:
    """Model code catches the errors of decoding by `except ValueError`, as with the toolkits' json and numpy."""
    with pytest.raises(ValueError, match=r"\w"):
        getattr(stand_in(module), name)(*arguments)


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize("body", ["{", "", "[1,", '"a', "nul", "[1]]"])
def test_invalid_json_is_a_json_decode_error(stand_in: Callable[[str], Any], body: str) -> None:
    """With the position that json names."""
    with pytest.raises(json.JSONDecodeError) as theirs:
        json.loads(body)
    with pytest.raises(json.JSONDecodeError) as ours:
        stand_in("sagemaker_inference.decoder").decode(body, JSON)
    assert (ours.value.doc, ours.value.pos) == (theirs.value.doc, theirs.value.pos)


CATCHES = """
    from sagemaker_inference import decoder
    def input_fn(body, content_type):
        try: return decoder.decode(body, content_type)
        except ValueError as error: return type(error).__name__
    def predict_fn(data, model): return data
"""


def test_model_code_catches_and_what_it_does_not_is_a_400(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncaught, the reply has the message of the reader."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "code").mkdir()

    def asked(code: str) -> Any:
        (tmp_path / "code" / "inference.py").write_text(dedent(code))
        handler = Custom(config_of(Custom, name="mine", directory=tmp_path))
        return handler.predict([handler.decode(Request(body=b"{", content_type=JSON))])[0]

    assert asked(CATCHES).body == b'"InvalidJson"'
    with pytest.raises(BadRequest, match="JSON"):
        asked(CATCHES.replace("except ValueError", "except ZeroDivisionError"))


@pytest.mark.parametrize("error", [InvalidInput("m", hint="h"), InvalidJson("m", "doc", 1, hint="h")])
def test_the_errors_can_be_copied(error: InvalidInput) -> None:
    """As the answers to lines of records do."""
    for found in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(found), found.message, found.hint, found.status) == (type(error), "m", "h", 400)


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("retrieve_content_type_header", ({"Content-Type": "a/b"},), "a/b"),
        ("retrieve_content_type_header", ({"x": "1", "content-type": "a/b"},), "a/b"),
        ("retrieve_content_type_header", ({"ContentType": "a/b"},), "a/b"),
        ("retrieve_content_type_header", ({"contentType": "a/b", "Content-Type": "c/d"},), "a/b"),
        ("retrieve_content_type_header", ({"CONTENT-TYPE": "a/b"},), None),
        ("retrieve_content_type_header", ({},), None),
        ("remove_crlf", ("a\r\nb",), "a  b"),
        ("parse_accept", ("text/csv, application/json",), ["text/csv", "application/json"]),
    ],
)
def test_the_toolkits_utilities_do_the_same(
    stand_in: Callable[[str], Any], name: str, arguments: tuple[Any, ...], result: Any
) -> None:
    """sagemaker_inference.utils gives what that of 1.10.1 gives (recorded)."""
    assert getattr(stand_in("sagemaker_inference.utils"), name)(*arguments) == result


def test_the_toolkits_files_and_logger_work(
    stand_in: Callable[[str], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """write_file and read_file; get_logger writes to the server's log."""
    utils = stand_in("sagemaker_inference.utils")
    utils.write_file(str(tmp_path / "a"), "b")
    assert utils.read_file(str(tmp_path / "a"), "rb") == b"b"
    stand_in("sagemaker_inference.logging").get_logger().warning("told")
    assert "told" in caplog.text
