"""Code written for AWS's PyTorch, scikit-learn, XGBoost and Hugging Face toolkits runs as it is, by their defaults."""

import io
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import numpy as np
import pytest
import sklearn.linear_model
import torch
import transformers
import xgboost

from serve.errors import BadRequest, InternalError, ModelNotFound, ModelUnusable, NotAcceptable, UnsupportedMediaType
from serve.formats import recordio
from serve.handlers.base import Reply, Request
from serve.handlers.custom.defaults import Toolkit, columns, of
from serve.handlers.custom.handler import Custom
from serve.handlers.xgboost import dmatrix
from serve.http import media
from tests.live import tiny
from tests.unit.configs import config_of

JSON, CSV = "application/json", "text/csv"


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner holds one model; the tests hold many, and must not see each other's code on sys.path."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture
def served(tmp_path: Path) -> Callable[..., Custom]:
    def serve(code: str, **settings: Any) -> Custom:
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / "inference.py").write_text(dedent(code))
        return Custom(config_of(Custom, name="mine", directory=tmp_path, **settings))

    return serve


def outcome(handler: Custom, body: bytes, content_type: str = JSON, accept: str = "") -> Any:
    request = Request(body=body, content_type=content_type, accept=accept, id="7", headers={"x-amzn-a": "b"})
    return handler.predict([handler.decode(request)])[0]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def recordio_rows(rows: Any) -> bytes:
    """Of features, as clients send them; ours writes labels, whose field has another number."""
    found = []
    for row in np.array(rows, "<f4"):
        values = recordio.delimited(2, recordio.delimited(1, row.tobytes()))
        entry = recordio.delimited(1, recordio.delimited(1, b"values") + recordio.delimited(2, values))
        found.append(struct.pack("<II", recordio._MAGIC, len(entry)) + entry + b"\0" * (-len(entry) % 4))
    return b"".join(found)


TORCH = """
    import torch
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.5)
        def forward(self, x):
            assert not self.training and not torch.is_grad_enabled()
            return self.dropout(x) * 2
    def model_fn(model_dir): return Net()
"""
SKLEARN = """
    import numpy as np
    from sklearn.base import BaseEstimator
    class Doubles(BaseEstimator):
        def predict(self, rows):
            assert rows.dtype == np.float32 or rows.dtype == np.int16, rows.dtype
            return rows.sum(1)
    def model_fn(model_dir): return Doubles()
"""
PIPELINE = """
    class Pipeline:
        def __call__(self, inputs, top_k=1): return [{"label": each, "score": top_k} for each in inputs]
    def model_fn(model_dir): return Pipeline()
"""


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("code", "body", "content_type", "accept", "answer"),
    [
        (TORCH, b"[[1, 2]]", JSON, JSON, b"[[2.0,4.0]]"),
        (TORCH, b"1,2\n3,4", CSV, JSON, b"[[2.0,4.0],[6.0,8.0]]"),
        (TORCH, npy(np.array([[1.5]], np.float64)), "application/x-npy", CSV, b"3.0\n"),
        (SKLEARN, b"[[1, 2], [3, 4]]", JSON, JSON, b"[3.0,7.0]"),
        (SKLEARN, b"1,2\n3,4", CSV, CSV, b"3.0\n7.0\n"),
        (SKLEARN, npy(np.array([[1, 2]], np.int16)), "application/x-npy", JSON, b"[3]"),
        (PIPELINE, b'{"inputs": ["a"], "parameters": {"top_k": 3}}', JSON, JSON, b'[{"label":"a","score":3}]'),
        (PIPELINE, b'["a", "b"]', JSON, CSV, b"label,score\na,1\nb,1\n"),
    ],
)
def test_a_model_fn_alone_serves_as_its_toolkit_would(
    served: Callable[..., Custom], code: str, body: bytes, content_type: str, accept: str, answer: bytes
) -> None:
    """Tensors for torch in evaluation mode, float32 rows for scikit-learn, inputs and parameters for a pipeline."""
    reply = outcome(served(code), body, content_type, accept)
    assert (reply.body, reply.content_type) == (answer, accept)


def test_a_toolkit_that_cannot_be_told_is_said(served: Callable[..., Custom]) -> None:
    """Here model_fn gives plain values; with `toolkit` predict_fn gets what that toolkit makes of a body."""
    code = """
        def model_fn(model_dir): return {"scale": 2}
        def predict_fn(data, model): return type(data).__name__
    """
    kinds = {each: outcome(served(code, options={"toolkit": each}), b"[[1]]").body for each in ("pytorch", "sklearn")}
    assert kinds == {"pytorch": b'"Tensor"', "sklearn": b'"ndarray"'}
    assert outcome(served(code), b"[[1]]").body == b'"list"'
    handler = served(code.replace("type(data).__name__", "data"), options={"toolkit": "huggingface"})
    csv = outcome(handler, b"inputs\na", CSV)
    assert csv.body == b'{"inputs":["a"]}'
    with pytest.raises(
        ModelUnusable,
        match=r"options.toolkit: unsupported value 'keras'; use one of: pytorch, sklearn, xgboost, huggingface",
    ):
        served(code, options={"toolkit": "keras"})


@pytest.mark.peer("inference-toolkit")
def test_a_toolkit_is_detected_from_the_files_of_a_model() -> None:
    """Alone, or with what belongs to it."""
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=0, n_embd=2, n_head=1, vocab_size=3))
    assert of(torch.nn.Linear(1, 1), None) is Toolkit.PYTORCH
    assert of((torch.nn.Linear(1, 1), ["label"]), None) is Toolkit.PYTORCH
    assert of({"model": gpt2, "labels": []}, None) is Toolkit.HUGGINGFACE
    assert of(sklearn.linear_model.LinearRegression(), None) is Toolkit.SKLEARN
    assert of(object(), None) is Toolkit.NONE


def test_text_is_left_as_it_is_for_a_model_of_torch(served: Callable[..., Custom]) -> None:
    """It cannot be a tensor; what predict_fn does with it is its own affair."""
    code = dedent(TORCH) + "def predict_fn(data, model): return data"
    assert outcome(served(code), b'["a", "b"]').body == b'["a","b"]'
    with pytest.raises(BadRequest, match="is not an array of float32"):
        outcome(served(code), b"[[1, 2], [3]]")


@pytest.mark.peer("inference-toolkit")
def test_a_model_of_torch_gets_tensors_only(served: Callable[..., Custom]) -> None:
    """Without functions of its own a body of another type is refused, and an empty list is a tensor of no numbers."""
    handler = served(TORCH)
    for body, content_type in ((b"hello", "text/plain"), (b"\0", "image/png")):
        assert isinstance(outcome(handler, body, content_type), UnsupportedMediaType)
    shape = served(dedent(TORCH) + "def predict_fn(data, model): return list(data.shape)")
    assert [outcome(shape, body).body for body in (b"[]", b"[[]]", b"7", b"true")] == [b"[0]", b"[1,0]", b"[]", b"[]"]


@pytest.mark.peer("inference-toolkit")
def test_torchscript_is_loaded_where_there_is_no_model_fn(served: Callable[..., Custom], tmp_path: Path) -> None:
    """model.pt, or the only one; a pickle never."""
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.ones(1)), str(tmp_path / "net.pth"))
    code = "def output_fn(prediction, accept): return str(prediction.tolist())"
    assert outcome(served(code), b"[1, 2]").body == b"[1.0, 2.0]"
    torch.save(torch.ones(1), tmp_path / "net.pth")
    with pytest.raises(ModelUnusable, match=r"the code has no predict_fn, .* and there is no model_fn"):
        served(code)


def test_hugging_face_weights_are_a_pipeline_where_there_is_no_model_fn(
    served: Callable[..., Custom], tmp_path: Path
) -> None:
    """By the end of the architecture's name; and predict_fn gets it as its model."""
    tiny.gpt2(tmp_path / "x")
    for each in (tmp_path / "x").iterdir():
        each.rename(tmp_path / each.name)
    handler = served("def predict_fn(data, model): return [model.task, len(model('w1', max_new_tokens=2))]")
    assert outcome(handler, b"{}").body == b'["text-generation",1]'


@pytest.mark.peer("inference-toolkit")
def test_the_hooks_around_model_fn_are_called(served: Callable[..., Custom]) -> None:
    """pre_model_fn before it, model_warmup_fn with the model after it."""
    handler = served("""
        calls = []
        def pre_model_fn(model_dir): calls.append("before")
        def model_fn(model_dir): calls.append("load"); return "m"
        def model_warmup_fn(model_dir, model): calls.append(model)
        def predict_fn(data, model): return calls
    """)
    assert outcome(handler, b"0").body == b'["before","load","m"]'


@pytest.mark.peer("inference-toolkit")
def test_text_that_is_neither_json_nor_csv_is_bytes(served: Callable[..., Custom]) -> None:
    """As the toolkits hand it over: code that decodes it runs as it is."""
    handler = served("""
        def input_fn(body, content_type): return body.decode() if content_type == "text/plain" else body.upper()
        def predict_fn(data, model): return data
    """)
    assert outcome(handler, "ä".encode(), "text/plain").body == '"ä"'.encode()
    assert outcome(handler, b"a,b", CSV).body == b'"A,B"'


@pytest.mark.peer("inference-toolkit")
def test_a_context_is_that_of_the_model_servers(served: Callable[..., Custom]) -> None:
    """TorchServe's and multi-model-server's: properties, headers, the type of the answer."""
    handler = served("""
        def model_fn(model_dir, context): return context.system_properties["model_dir"] == model_dir
        def predict_fn(data, model, context):
            assert context.get_request_header(0, "X-Amzn-A") == "b"
            assert context.get_all_request_header(0) == {"X-Amzn-A": "b"}
            assert context.request_processor[0].get_request_properties()["X-Amzn-A"] == "b"
            return [model, context.system_properties.get("gpu_id"), context.get_request_id(0)]
        def output_fn(prediction, accept, context):
            context.set_response_content_type(0, "text/x-mine")
            return str(prediction)
    """)
    assert outcome(handler, b"0") == Reply(body=b"[True, None, '7']", content_type="text/x-mine")


@pytest.mark.peer("inference-toolkit")
def test_the_modules_of_the_toolkits_are_there(served: Callable[..., Custom]) -> None:
    """For a model's own code only; decoding, encoding, and scikit-learn's Response with status and headers."""
    handler = served("""
        from sagemaker_containers.beta.framework import content_types, encoders, env, modules, transformer, worker
        from sagemaker_inference import decoder, encoder, errors, utils
        def input_fn(body, content_type): return decoder.decode(body, content_type)
        def predict_fn(data, model): return data * 2
        def output_fn(prediction, accept):
            if accept == content_types.NPY: return encoder.encode(prediction, accept)
            headers = {"X-Mine": "1", "Content-Length": "999"}
            return worker.Response(encoders.encode(prediction, accept), status=201, headers=headers, mimetype=accept)
    """)
    csv = outcome(handler, b"[[1, 2.5]]", JSON, CSV)
    assert csv == Reply(body=b"2.0,5.0\n", content_type="text/csv; charset=utf-8", status=201, headers={"X-Mine": "1"})
    found = np.load(io.BytesIO(outcome(handler, npy(np.arange(2)), "application/x-npy", "application/x-npy").body))
    assert found.tolist() == [0, 2]
    with pytest.raises(UnsupportedMediaType, match="'image/png' is not supported"):
        outcome(handler, b"", "image/png")
    assert isinstance(outcome(handler, b"[1]", JSON, "image/png"), NotAcceptable)
    with pytest.raises(BadRequest, match="different lengths"):
        outcome(handler, b"[[1], [2, 3]]")


def test_a_module_that_is_not_there_says_so_when_it_is_used(served: Callable[..., Custom]) -> None:
    """Samples import more than they use."""
    handler = served("""
        from sagemaker_containers.beta.framework import env
        def predict_fn(data, model): return env.ServingEnv()
    """)
    failed = outcome(handler, b"0")
    assert isinstance(failed, InternalError)
    assert "_env.ServingEnv is not in this image" in failed.message


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("raised", "error"),
    [
        ("errors.GenericInferenceToolkitError(404, 'no such user')", ModelNotFound),
        ("errors.GenericInferenceToolkitError(400, 'too short')", BadRequest),
        ("errors.UnsupportedFormatError('image/png')", UnsupportedMediaType),
        ("PredictionException('too short', 400)", BadRequest),
        ("PredictionException('broken', 500)", InternalError),
    ],
)
def test_an_error_of_a_toolkit_keeps_its_status(served: Callable[..., Custom], raised: str, error: type) -> None:
    """What the code raises is what the caller gets."""
    handler = served(f"""
        from sagemaker_inference import errors
        from mms.service import PredictionException
        def predict_fn(data, model): raise {raised}
    """)
    assert type(outcome(handler, b"0")) is error


def test_what_is_no_body_is_written_as_the_caller_asked(served: Callable[..., Custom]) -> None:
    """The model servers write what output_fn returns as JSON; here an array may also leave as CSV."""
    handler = served("""
        import numpy as np
        def predict_fn(data, model): return np.array([[1, 2]])
        def output_fn(prediction, accept): return prediction
    """)
    assert outcome(handler, b"0") == Reply(body=b"[[1,2]]", content_type=JSON)
    assert outcome(handler, b"0", accept=CSV) == Reply(body=b"1,2\n", content_type=CSV)
    assert outcome(handler, b"0", accept="image/png").content_type == JSON


BOOSTER = """
    import os, xgboost
    def model_fn(model_dir): return xgboost.Booster(model_file=os.path.join(model_dir, "xgboost-model.ubj"))
"""
SAMPLE = """
    import json
    from sagemaker_containers.beta.framework import content_types
    import sagemaker_xgboost_container.encoder as xgb_encoders
    from sagemaker_xgboost_container.constants import xgb_content_types
    from sagemaker_xgboost_container.data_utils import get_content_type
    def input_fn(body, content_type):
        if content_type == xgb_content_types.LIBSVM: return xgb_encoders.libsvm_to_dmatrix(body)
        assert get_content_type(content_type) == "csv"
        return xgb_encoders.decode(body, content_type)
    def predict_fn(data, model):
        return {"predictions": [[data.num_row(), data.num_col()], model.predict(data).tolist()]}
    def output_fn(prediction, accept): return xgb_encoders.json_to_jsonlines(prediction)
"""


@pytest.fixture
def booster(tmp_path: Path) -> xgboost.Booster:
    rows = np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32)
    model = xgboost.train({"nthread": 1, "max_depth": 2}, xgboost.DMatrix(rows, rows[:, 0]), 4)
    model.set_attr(best_iteration="1")
    model.save_model(tmp_path / "xgboost-model.ubj")
    return model


@pytest.mark.peer("inference-toolkit")
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"1,2,3\n,5,6\n", CSV),
        (b"1;2;3\n;5;6", CSV),
        (b"0:1 1:2 2:3\n1:5 2:6", "text/libsvm"),
        (recordio_rows([[1, 2, 3], [float("nan"), 5, 6]]), "application/x-recordio-protobuf"),
        (b"[[1, 2, 3], [null, 5, 6]]", JSON),
        (npy(np.array([[1, 2, 3], [np.nan, 5, 6]])), "application/x-npy"),
    ],
)
def test_a_booster_alone_serves_as_script_mode_would(
    served: Callable[..., Custom], booster: xgboost.Booster, body: bytes, content_type: str
) -> None:
    """A DMatrix of what came, its scores up to the best round; an empty cell is missing."""
    rows = xgboost.DMatrix(np.array([[1, 2, 3], [np.nan, 5, 6]]))
    expected = booster.predict(rows, iteration_range=(0, 2))
    reply = outcome(served(BOOSTER), body, content_type)
    assert np.array_equal(np.array(msgspec.json.decode(reply.body), np.float32), expected)


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b"1,2", CSV, "row 1 has 2 columns; the model has 3 features"),
        (b"1,2,3\n1,2,x", CSV, "row 2, column 3: 'x' is not a number"),
        (b"\n", CSV, "there are no rows"),
        (b"3:1", "text/libsvm", "a row has feature number 3; the model has 3 features, numbered from 0 to 2"),
        (b"0:1e39", "text/libsvm", "row 1, column 1 is infinite"),
        (b"x", "application/x-recordio-protobuf", "record 1 does not begin with RecordIO's magic number"),
        (b"[[1, 2, 3, 4]]", JSON, "row 1 has 4 columns; the model has 3 features"),
        (b"[[[1]]]", JSON, "rows of numbers are needed, not an array of shape (1, 1, 1)"),
    ],
)
def test_rows_a_booster_does_not_take_are_told(
    served: Callable[..., Custom], booster: xgboost.Booster, body: bytes, content_type: str, said: str
) -> None:
    """With both numbers, before XGBoost sees them."""
    with pytest.raises(BadRequest) as refused:
        outcome(served(BOOSTER), body, content_type)
    assert said in refused.value.message


def test_code_that_imports_the_xgboost_container_runs(served: Callable[..., Custom], booster: xgboost.Booster) -> None:
    """As AWS's samples do; the width is what the rows have, since the code may change it."""
    handler = served(dedent(BOOSTER) + dedent(SAMPLE))
    first, second = outcome(handler, b"1,2,3\n4,5,6", CSV).body.splitlines()
    assert msgspec.json.decode(first) == [2, 3]
    assert len(msgspec.json.decode(second)) == 2
    assert outcome(handler, b"1 0:1 2:3", "text/libsvm").body.startswith(b"[1, 3]\n")
    assert isinstance(outcome(handler, b"1,2,3,4", CSV), InternalError)
    with pytest.raises(BadRequest, match="row 1, column 1: 'a' is not a number"):
        outcome(handler, b"a,b", CSV)
    code = (
        "from sagemaker_xgboost_container import encoder\ndef input_fn(body, kind): return encoder.decode(body, kind)"
    )
    with pytest.raises(UnsupportedMediaType):
        outcome(served(dedent(BOOSTER) + code), b"x", "image/png")


def test_the_width_of_rows_that_no_model_is_known_for_is_theirs() -> None:
    """Of the first line or record; a column that cannot be counted is refused."""
    assert dmatrix.read(recordio_rows([[1, 2]]), media.RECORDIO).num_col() == 2
    assert dmatrix.read(npy(np.ones(4)), "application/x-npy").num_col() == 4
    assert dmatrix.read(b"\n1 2 3\n", CSV).num_col() == 3
    with pytest.raises(BadRequest, match="is the most"):
        dmatrix.read(b"1 99999999999:1", "text/libsvm")


def test_code_that_imports_the_hugging_face_toolkit_runs(served: Callable[..., Custom]) -> None:
    """Its decoder and encoder, whose CSV has a header; errors keep their status."""
    handler = served("""
        from sagemaker_huggingface_inference_toolkit import content_types, decoder_encoder
        from sagemaker_huggingface_inference_toolkit.transformers_utils import get_pipeline
        def input_fn(body, content_type): return decoder_encoder.decode(body, content_type)
        def predict_fn(data, model): return [{"label": str(each), "score": 1} for each in data["inputs"]]
        def output_fn(prediction, accept): return decoder_encoder.encode(prediction, accept)
    """)
    assert outcome(handler, b"inputs\na\n", CSV, CSV).body == b"label,score\r\na,1\r\n"
    assert outcome(handler, '{"inputs": ["ä"]}'.encode()).body == '[{"label":"ä","score":1}]'.encode()
    with pytest.raises(BadRequest, match="is not a header"):
        outcome(handler, b"1,2", CSV)
    with pytest.raises(UnsupportedMediaType):
        outcome(handler, b"", "video/mp4")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2\n3,4", "'1,2', is not a header"),
        ("inputs,b\n1", "row 2 of the CSV has 1 cells, its header has 2"),
        ("inputs\n1,2", "row 2 of the CSV has 2 cells, its header has 1"),
        ("inputs\n", "a header and no rows"),
        ("", "'', is not a header"),
        ("inputs," + ",".join(map(str, range(50_000))) + "\nx" * 50_000, "row 2 of the CSV has 1 cells"),
    ],
    ids=["no header", "short", "long", "header alone", "nothing", "a wide header over many short rows"],
)
def test_csv_with_a_header_is_refused_where_it_is_no_table(text: str, said: str) -> None:
    """Before an object is made of a row that has not all columns."""
    tracemalloc.start()
    with pytest.raises(BadRequest, match=said):
        columns(text)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_a_text_in_csv_keeps_its_lines() -> None:
    """Within quotes; and what only looks like a line's end to Python does not end a row."""
    assert columns('inputs\r\n"a\r\nb"\r\n\r\nc\u2028d\r\n') == {"inputs": ["a\r\nb", "c\u2028d"]}
    assert columns("question,context\nq,c\n") == {"inputs": [{"question": "q", "context": "c"}]}


def test_execution_parameters_of_a_models_own_are_said_to_be_left_out(
    served: Callable[..., Custom], caplog: pytest.LogCaptureFixture
) -> None:
    """They are asked of the server before any model is loaded; the log names what changes them."""
    served("""
        def execution_parameters_fn(): return {"MaxPayloadInMB": 1}
        def predict_fn(data, model): return data
    """)
    assert "execution_parameters_fn is not called" in caplog.text
    assert "SERVE_MAX_PAYLOAD_MB" in caplog.text
