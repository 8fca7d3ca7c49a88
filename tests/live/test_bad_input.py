"""For any body, parameter or model name, the error states what is invalid, and no other request is affected."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.live import neighbours
from tests.live.conftest import Start
from tests.live.neighbours import CSV, GOOD, JSON, TEXT, assert_refusal, assert_unhurt
from tests.live.stack import Server
from tests.live.tiny import BROKEN

DEEP = "[" * 10_000 + "]" * 10_000
ROW = b"1,2,3,4\n"
GZIP = {"Content-Encoding": "gzip"}
NAMES = {
    "up": "../x",
    "up-and-up": "a/../../b",
    "escaped": "%2e%2e",
    "escaped-slash": "..%2f..%2fetc%2fpasswd",
    "long": "x" * 10_000,
    "blank": "ec ho",
    "dots": "..",
    "socket": "host.sock",
    "escaped-slash-above": "..%2f..%2f..%2f..%2fetc",
    "quote": "'\"<script>",
}


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    return neighbours.start(start_shared, shared_models)


def _parameter(value: str) -> str:
    return f'{{"inputs": "w1", "parameters": {{"max_new_tokens": {value}}}}}'


# id -> model (None: the Flask lane), body, Content-Type, headers, status, what the message or hint says
BODIES: dict[str, tuple[str | None, bytes | str, str, dict[str, str], int, str]] = {
    "empty to gpt2": ("gpt2", "", JSON, {}, 400, "empty"),
    "empty to bart": ("bart", "", JSON, {}, 400, ""),
    "empty to nobody": (None, "", JSON, {}, 400, "empty"),
    "empty, without a type": (None, "", "", {}, 400, "empty"),
    "not JSON to gpt2": ("gpt2", "{'a'", JSON, {}, 400, "JSON"),
    "not JSON to nobody": (None, "{'a'", JSON, {}, 400, "JSON"),
    "naming no model": (None, '{"inputs": "x"}', JSON, {}, 400, "gpt2"),
    "a number for a model": (None, '{"model_type": 7}', JSON, {}, 400, "string"),
    "a list for a body": ("gpt2", "[1, 2]", JSON, {}, 400, ""),
    "gzip cut short": ("trees", gzip.compress(ROW * 100)[:-20], CSV, GZIP, 400, "truncated"),
    "gzip cut short, to nobody": (None, gzip.compress(b'{"model_type": "gpt2"}')[:-9], JSON, GZIP, 400, "truncated"),
    "gzip bomb": ("trees", gzip.compress(bytes(60 << 20)), CSV, GZIP, 413, "SERVE_MAX_PAYLOAD_MB"),
    "gzip bomb to nobody": (None, gzip.compress(b" " * (60 << 20)), JSON, GZIP, 413, "SERVE_MAX_PAYLOAD_MB"),
    "not gzip": ("trees", ROW, CSV, GZIP, 400, "gzip"),
    "an unknown encoding": ("trees", ROW, CSV, {"Content-Encoding": "br"}, 415, "'br'"),
    "deep JSON to gpt2": ("gpt2", DEEP, JSON, {}, 400, ""),
    "deep JSON in a field of gpt2": ("gpt2", f'{{"inputs": {DEEP}}}', JSON, {}, 400, ""),
    "deep JSON in an ignored field": ("gpt2", f'{{"inputs": "w1", "options": {DEEP}}}', JSON, {}, 400, ""),
    "deep JSON to bart": ("bart", f'{{"inputs": {DEEP}}}', JSON, {}, 400, ""),
    "deep JSON to trees": ("trees", DEEP, JSON, {}, 400, ""),
    "deep JSON to custom code": ("tally", DEEP, JSON, {}, 400, "nested"),
    "deep JSON to nobody": (None, f'{{"x": {DEEP}}}', JSON, {}, 400, ""),
    "NaN in JSON": ("trees", "[1, 2, 3, NaN]", JSON, {}, 400, "JSON"),
    "Infinity in JSON": ("trees", "[1, 2, 3, Infinity]", JSON, {}, 400, "JSON"),
    "infinity in CSV": ("trees", "1,2,inf,4", CSV, {}, 400, "row 1, column 3"),
    "NaN for a parameter": ("gpt2", '{"inputs": "w1", "parameters": {"top_p": NaN}}', JSON, {}, 400, "JSON"),
    "ragged CSV": ("trees", "1,2,3,4\n1,2\n", CSV, {}, 400, "row 2"),
    "words in CSV": ("trees", "1,2,3,4\n1,2,three,4\n", CSV, {}, 400, "row 2, column 3"),
    "CSV with a header": ("trees", "a,b,c,d\n1,2,3,4\n", CSV, {}, 400, "header"),
    "a million columns": ("trees", "1," * 999_999 + "1", CSV, {}, 400, "columns"),
    "ragged CSV to custom code": ("tally", "1,2\n1\n", CSV, {}, 400, "row 2"),
    "bad UTF-8 to gpt2": ("gpt2", b'{"inputs": "\xff\xfe"}', JSON, {}, 400, ""),
    "bad UTF-8 to bart": ("bart", b"w1 \xff", TEXT, {}, 400, ""),
    "bad UTF-8 to trees": ("trees", b"1,2,\xff,4", CSV, {}, 400, "column 3"),
    "bad UTF-8 to custom code": ("tally", b'{"id": "\xff"}', JSON, {}, 400, ""),
    "bad UTF-8 to nobody": (None, b'{"model_type": "\xff"}', JSON, {}, 400, ""),
    "an image to gpt2": ("gpt2", "{}", "image/png", {}, 415, "image/png"),
    "an image to bart": ("bart", "{}", "image/png", {}, 415, "image/png"),
    "an image to trees": ("trees", "{}", "image/png", {}, 415, "image/png"),
    "no such charset": ("bart", "w1", "text/plain; charset=klingon", {}, 415, "klingon"),
    "a type that is no type": ("trees", ROW, "nonsense", {}, 415, "nonsense"),
    "-1 new tokens": ("gpt2", _parameter("-1"), JSON, {}, 400, "max_new_tokens is -1"),
    "a billion new tokens": ("gpt2", _parameter("1000000000"), JSON, {}, 400, "max_new_tokens is 1000000000"),
    "more new tokens than positions": ("gpt2", _parameter("65"), JSON, {}, 400, "63"),
    "ten new tokens in words": ("gpt2", _parameter('"ten"'), JSON, {}, 400, 'max_new_tokens is "ten"'),
    "1e400 new tokens": ("gpt2", _parameter("1e400"), JSON, {}, 400, "max_new_tokens"),
    "a prompt too long": ("gpt2", json.dumps({"inputs": "w1 " * 1000}), JSON, {}, 400, "the model takes 64"),
    **{
        f"Accept that {name} cannot meet": (name, *GOOD[name], {"Accept": "image/png"}, 406, "image/png")
        for name in ("gpt2", "bart", "trees", "tally")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_a_bad_request_is_refused_with_its_reason(server: Server, case: str) -> None:
    """The right status, words and model, and every model keeps its process."""
    model, body, content_type, headers, status, says = BODIES[case]
    before = neighbours.pids(server)
    types = {"Content-Type": content_type} if content_type else {}
    named = {"TargetModel": model} if model else {}

    answer = server.request("POST", "/invocations", body, {**types, **named, **headers})

    assert answer.status == status, answer.body
    assert_refusal(answer)
    assert answer.json["model"] == model
    assert says in answer.json["message"] + answer.json["hint"]
    assert_unhurt(server, before)


@pytest.mark.parametrize("how", ["header", "long header", "path", "body", "attributes"])
@pytest.mark.parametrize("name", NAMES)
def test_a_strange_name_reaches_nothing(server: Server, name: str, how: str) -> None:
    """In path, header or body: 404, or 400 if HTTP itself forbids it."""
    said = NAMES[name]
    headers: dict[str, str] = {"Content-Type": JSON}
    path, body = "/invocations", '{"inputs": "w1"}'
    if how == "header":
        headers["TargetModel"] = said
    elif how == "long header":
        headers["X-Amzn-SageMaker-Target-Model"] = said
    elif how == "path":
        path = f"/models/{said.replace(' ', '%20')}/invoke"
    elif how == "body":
        body = json.dumps({"model_type": said})
    else:
        headers["X-Amzn-SageMaker-Custom-Attributes"] = f"model_type={said}"

    answer = server.request("POST", path, body, headers)

    assert answer.status in (400, 404), answer.body
    assert_refusal(answer)
    assert server.invoke("echo", "hello", TEXT).status == 200


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_must_not_be_loaded_is_refused(server: Server, name: str) -> None:
    """424 names the file; none of its code has run."""
    before = neighbours.pids(server)

    answer = server.invoke(name, {"inputs": "w1"})

    assert answer.status == 424, answer.body
    assert_refusal(answer)
    assert BROKEN[name] in answer.json["message"]
    assert answer.json["model"] == name
    assert not (server.models.parent / "evil-ran").exists()
    assert_unhurt(server, before)


@pytest.mark.parametrize(
    ("model", "body", "content_type", "headers"),
    [
        ("trees", gzip.compress(ROW), CSV, GZIP),
        (None, gzip.compress(b'{"model_type": "gpt2", "inputs": "w1"}'), JSON, GZIP),
        ("gpt2", '{"inputs": "w1"}', "application/json; charset=utf-8", {}),
        ("gpt2", '{"inputs": "w1"}', 'Application/JSON;charset="UTF-8"', {}),
        ("trees", ROW, "text/csv; charset=utf-8; header=absent", {"Accept": "text/*;q=0.5, image/png"}),
        ("trees", "nan,,3,4\n", CSV, {}),
    ],
    ids=["gzip", "gzip to nobody", "a charset", "upper case", "Accept with weights", "missing values"],
)
def test_an_unusual_but_valid_request_is_answered(
    server: Server, model: Any, body: Any, content_type: str, headers: Any
) -> None:
    """Compressed bodies, parameters of media types, weights of Accept."""
    answer = server.invoke(model, body, content_type, **headers)
    assert answer.status == 200, answer.body
