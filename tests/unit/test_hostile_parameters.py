"""Every parameter of every task with values at and beyond its limits: an answer or a 4xx, never a 500."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serve.catalog.kinds import HANDLERS
from serve.errors import ModelUnusable, ServeError
from serve.handlers.base import Request
from serve.handlers.generation import openai
from serve.handlers.generation.parameters import GenerationParameters, Watermark
from serve.handlers.seq2seq.request import Seq2SeqParameters
from serve.http import media
from serve.http.addresses import CHAT, COMPLETIONS, INVOCATIONS
from tests.unit import every_handler
from tests.unit.every_handler import MODELS, answered, made
from tests.unit.test_generation_toys import handler_of, save_toy

# As they are written in the body: some are no JSON.
VALUES = (
    *("0", "-0.0", "-1", "1", "2", "0.5", "1.5", "NaN", "Infinity", "-Infinity", "1e-320", "1e308", "-1e308", "1e309"),
    *("9223372036854775807", "9223372036854775808", "-1180591620717411303424", "1" + "0" * 5000),
    *('""', '"x"', "null", "true", "false", "[]", "[0]", "[-1]", "[99999999]", "[1e309]", "[[]]", "[[0]]", '["", ""]'),
    *("[null]", "{}", '{"": 0}', "[" * 2000 + "]" * 2000),
)
TEXT = [name for name in HANDLERS if name not in ("custom", "onnx", "xgboost", "sklearn", "torch")]


def names_of(kind: Any) -> Sequence[str]:
    return [each.encode_name for each in msgspec.structs.fields(kind)]


def with_value(fields: dict[str, Any], name: str, value: str) -> str:
    """A JSON object with one more member, whose value need not be JSON."""
    others = {key: each for key, each in fields.items() if key != name}
    return json.dumps(others)[:-1] + (", " if others else "") + f"{json.dumps(name)}: {value}}}"


def assert_no_fault(handler: Any, body: str, path: str = INVOCATIONS) -> None:
    request = Request(
        body=body.encode(), content_type=media.JSON, path=path, deadline=time.monotonic() + 20, stream_deadline=0.0
    )
    outcome = answered(handler, request)
    assert not isinstance(outcome, ServeError) or outcome.status < 500, (body[-200:], outcome)


@pytest.mark.parametrize("name", TEXT)
def test_no_value_of_a_parameter_is_a_fault_of_the_server(name: str, tmp_path: Path) -> None:
    """Of all parameters that a task has, those that are refused by name included."""
    handler = made(name, tmp_path / "m")
    kinds = {"text_generation": GenerationParameters, "seq2seq": Seq2SeqParameters}
    body = json.loads(MODELS[name][1])
    fixed = body.pop("parameters", {}) | ({"max_new_tokens": 2} if name in kinds else {})
    for parameter in names_of(kinds.get(name) or handler.parameters):
        for value in VALUES:
            assert_no_fault(handler, with_value(body, "parameters", with_value(fixed, parameter, value)))


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
@pytest.mark.parametrize("name", ["text_generation", "seq2seq"])
def test_no_watermark_is_a_fault_of_the_server(name: str, scheme: str, tmp_path: Path) -> None:
    """transformers refuses some configurations only as it generates, for example of vocabularies below 40 tokens."""
    handler = made(name, tmp_path / "m")
    for field in names_of(Watermark):
        for value in (*VALUES, '"lefthash"', "0.9999", "64"):
            config = with_value({"seeding_scheme": scheme}, field, value)
            parameters = with_value({"max_new_tokens": 2}, "watermarking_config", config)
            assert_no_fault(handler, with_value({"inputs": "w1 w2"}, "parameters", parameters))
    assert not isinstance(answered(handler, Request(body=b'{"inputs": "w1"}', content_type=media.JSON)), ServeError)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_no_field_of_openai_is_a_fault_of_the_server(path: str, tmp_path: Path) -> None:
    """Of the fields that are read, and of some that are refused."""
    save_toy(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    template = "{% for each in messages %}{{ each.content }}{% endfor %}"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    handler = handler_of(tmp_path)
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    fields = names_of(openai.ChatBody if path == CHAT else openai.CompletionBody)
    for field in (*fields, "response_format", "tools", "tool_choice", "guided_json", "min_p", "bad_words"):
        for value in VALUES:
            assert_no_fault(handler, with_value({"max_tokens": 2} | prompt, field, value), path)


@pytest.mark.parametrize("name", ["text_generation", "seq2seq", "text_classification", "fill_mask"])
def test_no_number_of_a_config_is_a_fault_of_the_server(name: str, tmp_path: Path) -> None:
    """A model whose config.json has a number out of range loads, or is a 424 that does not claim to be retryable."""
    MODELS[name][0](tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    refused = 0
    for key, number in config.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        for value in (-1, 0, -(2**31), "x"):
            file.write_text(json.dumps(config | {key: value}))
            try:
                every_handler.handler_of(name, tmp_path / "m")
            except ModelUnusable:
                refused += 1
    assert refused > 20
