"""Code written for AWS's PyTorch, scikit-learn and Hugging Face toolkits runs as it is, with their defaults."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
import torch
import transformers

from serve.errors import BadRequest, InternalError, ModelNotFound, ModelUnusable, NotAcceptable, UnsupportedMediaType
from serve.handlers.base import Model, Reply, Request
from serve.handlers.custom import Custom
from serve.handlers.toolkit import Toolkit, of
from tests.live import tiny

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
        return Custom(Model(name="mine", directory=tmp_path, **settings))

    return serve


def outcome(handler: Custom, body: bytes, content_type: str = JSON, accept: str = "") -> Any:
    request = Request(body=body, content_type=content_type, accept=accept, id="7", headers={"x-amzn-a": "b"})
    return handler.predict([handler.decode(request)])[0]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


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
    with pytest.raises(ModelUnusable, match=r"options.toolkit: 'keras' is none of pytorch, sklearn, huggingface"):
        served(code, options={"toolkit": "keras"})


def test_a_toolkit_is_told_from_what_a_model_is_made_of() -> None:
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


def test_torchscript_is_loaded_where_there_is_no_model_fn(served: Callable[..., Custom], tmp_path: Path) -> None:
    """model.pt, or the only one; a pickle never."""
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.ones(1)), str(tmp_path / "net.pth"))
    code = "def output_fn(prediction, accept): return str(prediction.tolist())"
    assert outcome(served(code), b"[1, 2]").body == b"[1.0, 2.0]"
    torch.save(torch.ones(1), tmp_path / "net.pth")
    with pytest.raises(ModelUnusable, match=r"it has neither predict_fn nor .* and there is no model_fn"):
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


def test_text_that_is_neither_json_nor_csv_is_bytes(served: Callable[..., Custom]) -> None:
    """As the toolkits hand it over: code that decodes it runs as it is."""
    handler = served("""
        def input_fn(body, content_type): return body.decode() if content_type == "text/plain" else body.upper()
        def predict_fn(data, model): return data
    """)
    assert outcome(handler, "ä".encode(), "text/plain").body == '"ä"'.encode()
    assert outcome(handler, b"a,b", CSV).body == b'"A,B"'


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
    assert "framework.env.ServingEnv is not in this image" in failed.message


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        ("errors.GenericInferenceToolkitError(404, 'no such user')", ModelNotFound),
        ("errors.GenericInferenceToolkitError(422, 'too short')", BadRequest),
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
