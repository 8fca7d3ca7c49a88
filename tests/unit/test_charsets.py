"""A charset that no handler reads is refused with 415 before the body is parsed; every handler reads UTF-16."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import skops.io
import torch
from onnx import TensorProto, helper
from sklearn.linear_model import LinearRegression

from serve.catalog.kinds import HANDLERS
from serve.errors import BadRequest, UnsupportedMediaType
from serve.handlers.base import Request
from serve.http import media
from tests.live import tiny
from tests.unit import tiny_encoders
from tests.unit.configs import config_of

# Python decodes all but the last three. The first four return what is not text, or take quadratic time.
HOSTILE = ("unicode_escape", "punycode", "idna", "utf-7", "base64", "utf-9", "")


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


def _custom_with_input(directory: Path) -> None:
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
    "text_generation": (tiny.gpt2, '{"inputs": "w1"}', None),
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


def _handler(name: str, directory: Path) -> Any:
    module, _, cls = HANDLERS[name].partition(":")
    return getattr(importlib.import_module(module), cls)(config_of(name, directory))


@pytest.mark.parametrize("name", HANDLERS)
def test_every_handler_refuses_hostile_charsets(name: str, tmp_path: Path) -> None:
    """In JSON and in CSV: 415, which names the charset; bytes that are not valid in theirs are 400."""
    save, json, csv = MODELS[name]
    save(tmp_path / "m")
    handler = _handler(name, tmp_path / "m")
    for text, content_type in ((json, media.JSON), (csv, media.CSV)):
        if text is None:
            continue
        for charset in HOSTILE:
            with pytest.raises(UnsupportedMediaType, match="unsupported charset") as refused:
                handler.decode(Request(body=text.encode(), content_type=content_type, charset=charset))
            assert repr(charset) in refused.value.message
        with pytest.raises(BadRequest):
            handler.decode(Request(body=text.encode() + b"\xff", content_type=content_type))
        with pytest.raises(BadRequest, match="not valid utf-16"):
            handler.decode(Request(body=text.encode("utf-16") + b"\0", content_type=content_type, charset="utf-16"))
        assert handler.decode(Request(body=text.encode("utf-16"), content_type=content_type, charset="utf-16"))


def test_own_code_gets_text_of_known_charsets(tmp_path: Path) -> None:
    """A function that takes the body itself, too."""
    _custom_with_input(tmp_path / "m")
    handler = _handler("custom", tmp_path / "m")
    with pytest.raises(UnsupportedMediaType, match="unsupported charset: 'utf-7'"):
        handler.decode(Request(body=b"[]", content_type=media.JSON, charset="utf-7"))
    assert handler.decode(Request(body="é".encode("latin-1"), content_type=media.CSV, charset="latin-1")).data == "é"
