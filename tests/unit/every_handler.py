"""A tiny model of every handler, with a good request, for tests that go over all of them."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import skops.io
import torch
from onnx import TensorProto, helper
from sklearn.linear_model import LinearRegression

from serve.catalog.kinds import HANDLERS
from serve.errors import ServeError
from serve.handlers.base import Reply, Request
from tests.live import tiny
from tests.unit import tiny_encoders
from tests.unit.configs import config_of
from tests.unit.test_generation_toys import Asked, finish


def _onnx(directory: Path) -> None:
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", rows[:1], rows[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    directory.mkdir()
    onnx.save(made, directory / "model.onnx")


def _torch(directory: Path) -> None:
    directory.mkdir()
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.ones(1, 2)), str(directory / "model.pt"))


def _sklearn(directory: Path) -> None:
    directory.mkdir()
    skops.io.dump(LinearRegression().fit(np.ones((2, 2)), [1, 2]), directory / "model.skops")


def _custom(directory: Path) -> None:
    (directory / "code").mkdir(parents=True)
    (directory / "code" / "inference.py").write_text("def predict_fn(data, model): return data")


def save_custom_with_input(directory: Path) -> None:
    (directory / "code").mkdir(parents=True)
    (directory / "code" / "inference.py").write_text("def transform_fn(model, body, kind, accept): return body")


_TEXT = '{"inputs": "this is"}'
_ROWS = "[[1, 2]]"
# Of each handler: a function that saves a tiny model, a body in JSON, and one in CSV if the handler reads it.
MODELS: Mapping[str, tuple[Callable[[Path], Any], str, str | None]] = {
    "custom": (_custom, _ROWS, "1,2"),
    "onnx": (_onnx, _ROWS, "1,2"),
    "xgboost": (tiny.xgboost_model, "[1, 2, 3, 4]", "1,2,3,4"),
    "sklearn": (_sklearn, _ROWS, "1,2"),
    "torch": (_torch, _ROWS, "1,2"),
    "text_generation": (tiny.gpt2, '{"inputs": "w1", "parameters": {"max_new_tokens": 2}}', None),
    "seq2seq": (tiny.bart, '{"inputs": "w1"}', "inputs\nw1"),
    "text_classification": (tiny_encoders.classifier, _TEXT, "inputs\nthis"),
    "token_classification": (tiny_encoders.tagger, _TEXT, "inputs\nthis"),
    "question_answering": (
        tiny_encoders.answerer,
        '{"inputs": {"question": "is", "context": "this is"}}',
        "question,context\nis,this is",
    ),
    "fill_mask": (tiny_encoders.masked, '{"inputs": "this [MASK]"}', "inputs\nthis [MASK]"),
    "zero_shot_classification": (
        tiny_encoders.inference,
        '{"inputs": "this", "parameters": {"candidate_labels": ["ba", "be"]}}',
        None,
    ),
    "feature_extraction": (tiny_encoders.embedder, _TEXT, "inputs\nthis"),
}


def handler_of(name: str, directory: Path) -> Any:
    module, _, cls = HANDLERS[name].partition(":")
    return getattr(importlib.import_module(module), cls)(config_of(name, directory))


def made(name: str, directory: Path) -> Any:
    """The handler of a new tiny model."""
    MODELS[name][0](directory)
    return handler_of(name, directory)


def answered(handler: Any, request: Request) -> Reply | ServeError:
    """The reply to one request that is alone, or its error. A stream is joined."""
    try:
        if hasattr(handler, "step"):
            job = Asked(handler, **{key: getattr(request, key) for key in request.__struct_fields__})
            handler.join(job)
            finish(handler, job)
            return job.failed or job.replied or Reply(body=b"".join(job.chunks), content_type=job.started)
        item = handler.decode(request)
        while (outcome := handler.predict([item])[0]) is None:
            pass
    except ServeError as error:
        return error
    assert isinstance(outcome, Reply | ServeError)
    return outcome
