"""Requests for text: an invalid one is refused before the model runs, by an error that names the field."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from serve.errors import BadRequest, NotAcceptable, ServeError, UnsupportedMediaType
from serve.handlers.base import Request
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.generation.request import GenerationItem
from tests.unit.test_generation_toys import POSITIONS, Asked, ask, finish, handler_of, save_toy


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> TextGeneration:
    return handler_of(save_toy(tmp_path_factory.mktemp("toy")), max_batch=8, model_field="model-type")


def decoded(
    handler: TextGeneration, body: Any, content_type: str = "application/json", **request: Any
) -> GenerationItem:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return handler.decode(Request(body=raw, content_type=content_type, **request))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "truncated"),
        (b'{"inputs": "a"} x', r"byte \d+"),
        (b'{"inputs": "a", "parameters": {"top_p": NaN}}', r"byte \d+"),
        (b'{"inputs": "a", "parameters": {"top_p": Infinity}}', r"byte \d+"),
        (b'{"inputs": "a", "parameters": {"top_p": 1e999}}', "top_p"),
        (b'{"inputs": "a\xff"}', "UTF-8"),
        (b'{"inputs": "\\ud800"}', "not JSON"),
        (b"[" * 10_000, "object"),
        (b'{"options":' + b"[" * 10_000 + b"]" * 10_000 + b',"inputs":"a"}', "deep"),
        (b'{"inputs":"a","parameters":{"stop":' + b"[" * 10_000, "stop"),
        (b"null", "object"),
        (b"{}", "inputs"),
        (b'{"inputs": []}', "inputs"),
        (b'{"inputs": null}', "inputs"),
        (b'{"inputs": ["a", 1]}', r"inputs\[1\]"),
        (b'{"inputs": {"a": 1}}', "inputs"),
        (b'{"inputs": "a", "stream": "yes"}', "stream"),
        (b'{"inputs": "a", "parameters": []}', "parameters"),
        (b'{"input": "a"}', "did you mean inputs"),
        (b'{"inputs": "a", "parameters": {"max_tokens": 1}}', "parameters.max_tokens; did you mean max_new_tokens"),
        (b'{"inputs": "a", "parameters": {"qqq": 1}}', "parameters.qqq"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_400_that_says_where(handler: TextGeneration, body: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        decoded(handler, body)


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("max_new_tokens", [0, -1, 10**9, 10**30, "ten", True, 1.5, [1]], "whole number from 1"),
        ("max_new_tokens", [POSITIONS], f"whole number from 1 to {POSITIONS - 1}"),
        ("min_new_tokens", [-1, "1"], "whole number from 0"),
        ("max_length", [0, 1, POSITIONS + 1, False], "whole number from"),
        ("do_sample", [1, "true"], "true or false"),
        ("temperature", [0, -1, 1000, "hot", True], "above 0, up to 100"),
        ("top_p", [0, 1.01, -0.5, "all"], "above 0, up to 1"),
        ("top_k", [-1, 2.5, None.__class__.__name__], "whole number from 0"),
        ("repetition_penalty", [0, -2, "much"], "above 0, up to 100"),
        ("num_return_sequences", [0, 9, 10**6, "two"], "whole number from 1"),
        ("num_beams", [0, 9, -1], "whole number from 1"),
        ("stop", [1, [1], "", [""], ["a"] * 17, "a" * 257], "1 to 256 characters"),
        ("seed", [-1, 2**63, "x", 1.0], "whole number from 0"),
        ("return_full_text", ["no", 0], "true or false"),
        ("truncation", ["longest", 1], "true or false"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(
    handler: TextGeneration, name: str, values: list[Any], allowed: str
) -> None:
    for value in values:
        with pytest.raises(BadRequest, match=rf"^parameters\.{name} is .*: it must be .*{allowed}"):
            decoded(handler, {"inputs": "a", "parameters": {name: value}})


@pytest.mark.parametrize(
    "parameters",
    [
        {"num_return_sequences": 2},
        {"num_return_sequences": 3, "num_beams": 2},
        {"min_new_tokens": 9, "max_new_tokens": 8},
    ],
)
def test_parameters_that_contradict_each_other_are_refused(handler: TextGeneration, parameters: dict[str, int]) -> None:
    with pytest.raises(BadRequest, match="parameters"):
        decoded(handler, {"inputs": "a", "parameters": parameters})


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["a"] * 1025},
        {"inputs": ["a"] * 600, "parameters": {"num_beams": 3}},
        {"inputs": ["a"], "stream": True},
        {"inputs": "a", "stream": True, "parameters": {"num_beams": 2}},
    ],
)
def test_too_many_sequences_are_refused(handler: TextGeneration, body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        decoded(handler, body)


def test_a_prompt_that_leaves_no_room_is_refused_with_both_lengths(handler: TextGeneration) -> None:
    with pytest.raises(BadRequest, match=f"{POSITIONS} tokens; the model takes {POSITIONS}"):
        decoded(handler, {"inputs": "a" * POSITIONS})
    with pytest.raises(BadRequest, match=f"the model takes {POSITIONS}"):
        decoded(handler, {"inputs": "a" * 1_000_000})


def test_truncation_cuts_the_prompt(handler: TextGeneration) -> None:
    body = {"inputs": "a" * 1000, "parameters": {"truncation": True, "max_new_tokens": 10}}

    (prompt,) = decoded(handler, body).prompts

    assert len(prompt.tokens) == POSITIONS - 10


def test_new_tokens_are_256_or_what_the_positions_leave(handler: TextGeneration, tmp_path: Path) -> None:
    roomy = handler_of(save_toy(tmp_path, n_positions=1000, max_position_embeddings=1000))

    assert decoded(handler, {"inputs": "abc"}).prompts[0].settings.max_new_tokens == POSITIONS - 3
    assert decoded(roomy, {"inputs": "abc"}).prompts[0].settings.max_new_tokens == 256


def test_null_is_a_missing_value_and_options_are_ignored(handler: TextGeneration) -> None:
    body = {"inputs": "a", "parameters": None, "stream": None, "options": {"wait_for_model": True}, "model-type": "toy"}

    assert decoded(handler, body) == decoded(handler, {"inputs": "a"})
    assert decoded(handler, {"inputs": "a", "parameters": {"top_k": None}}) == decoded(handler, {"inputs": "a"})


def test_plain_text_is_a_prompt_and_may_be_the_answer(handler: TextGeneration) -> None:
    item = decoded(handler, "grüß".encode("latin-1"), "text/plain", charset="latin-1", accept="text/plain")

    assert item.prompts[0].text == "grüß"
    assert item.form.content_type == "text/plain"


@pytest.mark.parametrize(
    ("content_type", "body", "charset", "error"),
    [
        ("text/plain", b"", "utf-8", BadRequest),
        ("text/plain", b"\xff", "utf-8", BadRequest),
        ("text/plain", b"a", "no-such-charset", UnsupportedMediaType),
        ("text/plain", b"+2AA-", "utf-7", UnsupportedMediaType),  # half a surrogate pair
        ("text/csv", b"inputs\n+2AA-", "utf-7", UnsupportedMediaType),
        ("text/plain", b"a", "punycode", UnsupportedMediaType),  # takes minutes for a megabyte
    ],
)
def test_plain_text_that_cannot_be_read_is_refused(
    handler: TextGeneration, content_type: str, body: bytes, charset: str, error: type[ServeError]
) -> None:
    with pytest.raises(error):
        decoded(handler, body, content_type, charset=charset)


def test_an_empty_prompt_begins_a_text(handler: TextGeneration) -> None:
    assert ask(handler, {"inputs": "", "parameters": {"max_new_tokens": 3}})


def test_csv_goes_in_and_comes_out_with_a_header(handler: TextGeneration) -> None:
    """A column named inputs; as JSON a list for each row, as CSV a row for each."""
    table = b'id,inputs\n1,the cat\n2,"a dog, too"\n'
    wanted = ask(handler, {"inputs": ["the cat", "a dog, too"]})
    assert ask(handler, table, content_type="text/csv") == wanted

    job = Asked(handler, table, content_type="text/csv", accept="text/csv")
    handler.join(job)
    finish(handler, job)
    assert job.replied is not None
    assert isinstance(job.replied.body, bytes)
    rows = csv.DictReader(io.StringIO(job.replied.body.decode(), newline=""))
    assert [[row] for row in rows] == wanted


@pytest.mark.parametrize("content_type", ["text/html", "application/x-npy", "application/jsonlines", "image/png"])
def test_other_content_types_are_a_415(handler: TextGeneration, content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=content_type):
        decoded(handler, {"inputs": "a"}, content_type)


@pytest.mark.parametrize(
    ("accept", "stream", "content_type"),
    [
        ("", False, "application/json"),
        ("*/*", True, "application/jsonlines"),
        ("application/json", False, "application/json"),
        ("application/json", True, "application/jsonlines"),
        ("application/json;q=0.2, text/plain", False, "text/plain"),
        ("text/event-stream", False, "text/event-stream"),
        ("text/event-stream", True, "text/event-stream"),
        ("application/jsonlines", False, "application/jsonlines"),
    ],
)
def test_accept_chooses_the_form(handler: TextGeneration, accept: str, stream: bool, content_type: str) -> None:
    form = decoded(handler, {"inputs": "a", "stream": stream}, accept=accept).form

    assert form.content_type == content_type
    assert form.streams == (stream or accept == "text/event-stream")


@pytest.mark.parametrize(
    ("accept", "body"),
    [
        ("image/png", {"inputs": "a"}),
        ("text/plain", {"inputs": "a", "stream": True}),
        ("text/plain", {"inputs": ["a", "b"]}),
    ],
)
def test_a_form_that_cannot_be_written_is_a_406(handler: TextGeneration, accept: str, body: Any) -> None:
    with pytest.raises(NotAcceptable):
        decoded(handler, body, accept=accept)


def test_json_is_read_as_utf8(handler: TextGeneration) -> None:
    request = Request(body=json.dumps({"inputs": "ä€", "parameters": {"max_new_tokens": 1}}).encode(), content_type="")

    assert isinstance(handler.decode(request), GenerationItem)
    assert ask(handler, {"inputs": "ä€", "parameters": {"max_new_tokens": 1}})[0]["generated_text"].startswith("ä€")


def test_any_bytes_are_read_or_refused(handler: TextGeneration) -> None:
    """Valid bodies with bytes changed, cut or doubled end in an item or a ServeError, never in anything else."""
    import random

    dice = random.Random(9)
    good = json.dumps({"inputs": ["a", "ü"], "parameters": {"top_p": 0.5, "stop": ["x"]}, "stream": False}).encode()
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(bad))
            bad[at : at + dice.randint(0, 2)] = bytes(dice.randrange(256) for _ in range(dice.randint(0, 3)))
        try:
            decoded(handler, bytes(bad))
        except ServeError:
            continue
