"""Chats on /invocations, where boto3 can reach them: OpenAI's body, and the pipelines' chats in `inputs`."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

from serve.errors import BadRequest, ModelNotFound, NotAcceptable
from serve.handlers.base import Request
from serve.handlers.generation.handler import TextGeneration
from serve.http.addresses import CHAT, INVOCATIONS
from tests.unit.test_generation_toys import Asked, ask, finish, handler_of, save_toy

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, "}],
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_toy(tmp_path_factory.mktemp("toy"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def handler(toy: Path) -> TextGeneration:
    return handler_of(toy, max_batch=8, aliases=("talker",))


def streamed(handler: TextGeneration, body: Any, **request: Any) -> bytes:
    job = Asked(handler, body | {"stream": True}, **request)
    handler.join(job)
    finish(handler, job)
    return b"".join(job.chunks)


def without_time(answer: bytes) -> list[Any]:
    events = [json.loads(each.removeprefix("data: ")) for each in answer.decode().split("\n\n")[:-2]]
    return [event | {"created": 0} for event in events]


@pytest.mark.peer("openai")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "seed": 3, "temperature": 1},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": "e", "model": "talker"},
        {"model_type": "toy"},
        {"model": ""},
    ],
)
def test_a_chat_on_invocations_is_the_one_of_openais_path(handler: TextGeneration, fields: dict[str, Any]) -> None:
    """{"messages": [...]} on /invocations is answered as on /v1/chat/completions, whole and as a stream."""
    body = {"messages": CHATS[1], "temperature": 0, "max_tokens": 8} | fields
    there = {name: value for name, value in body.items() if name != "model_type"}

    here, expected = (ask(handler, each, path=path, id="7") for each, path in ((body, INVOCATIONS), (there, CHAT)))

    assert here | {"created": 0} == expected | {"created": 0}
    events = streamed(handler, body, path=INVOCATIONS, id="7")
    assert events.endswith(b"data: [DONE]\n\n")
    assert without_time(events) == without_time(streamed(handler, there, path=CHAT, id="7"))


def test_a_chat_on_invocations_is_refused_as_on_openais_path(handler: TextGeneration) -> None:
    """And for another model: /invocations does not choose a model by `model`. `messages` beside `inputs` is no chat."""
    chat = {"messages": CHATS[0]}
    for body, error, said in (
        (chat | {"temprature": 1}, BadRequest, "did you mean temperature"),
        (chat | {"parameters": {"max_new_tokens": 3}}, BadRequest, "parameters is not supported"),
        (chat | {"model": "gpt-4"}, ModelNotFound, "'gpt-4'"),
        (chat | {"inputs": "a"}, BadRequest, "unknown field messages"),
        ({"prompt": "a"}, BadRequest, "unknown field prompt"),
    ):
        with pytest.raises(error, match=said):
            handler.decode(Request(body=json.dumps(body).encode(), content_type="application/json"))
    with pytest.raises(NotAcceptable):
        handler.decode(Request(body=json.dumps(chat).encode(), content_type="application/json", accept="text/csv"))


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("full", [True, False, None])
def test_chats_as_inputs_are_answered_as_by_the_pipeline(handler: TextGeneration, toy: Path, full: bool | None) -> None:
    """A chat in `inputs`, or a list of chats, is answered as by transformers' text-generation pipeline."""
    reference = pipeline("text-generation", model=str(toy), device="cpu")
    parameters = {"max_new_tokens": 8, "do_sample": False} | ({} if full is None else {"return_full_text": full})
    for inputs in (*CHATS, CHATS):
        assert ask(handler, {"inputs": inputs, "parameters": parameters}) == reference(inputs, **parameters)


def test_a_chat_as_inputs_streams(handler: TextGeneration) -> None:
    body = {"inputs": CHATS[0], "parameters": {"max_new_tokens": 8}}
    (whole,) = ask(handler, body)
    events = [json.loads(line) for line in streamed(handler, body).splitlines()]
    assert events[-1]["generated_text"] == whole["generated_text"]
    assert "".join(event["token"]["text"] for event in events[:-1]) == whole["generated_text"][-1]["content"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["a", [{"role": "user", "content": "a"}]], "mixes"),
        ([{"role": "user", "content": "a"}, "a"], "mixes"),
        ([[]], "inputs"),
        ([{"content": "a"}], "role"),
        ([{"role": "user", "content": "a", "conten": "b"}], "did you mean content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of type .image"),
    ],
)
def test_an_invalid_chat_is_a_400_that_says_where(handler: TextGeneration, inputs: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        handler.decode(Request(body=json.dumps({"inputs": inputs}).encode(), content_type="application/json"))
