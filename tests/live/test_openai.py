"""OpenAI's own client against the whole stack."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.live import tiny
from tests.live.conftest import Start
from tests.live.stack import Server
from tests.unit import tiny_encoders

HELLO: Any = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    tiny.gpt2(shared_models / "talker")
    (shared_models / "talker" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    tiny.xgboost_model(shared_models / "trees")
    tiny_encoders.sentences(shared_models / "vectors")
    return start_shared(shared_models)


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("model", ["talker", ""])
def test_a_chat_is_answered(client: openai.OpenAI, model: str) -> None:
    """An empty model, as SageMaker's own examples send it, is the one that can chat."""
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=4, temperature=0, logprobs=True)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].logprobs is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2
    assert answer.usage.total_tokens == 2 + answer.usage.completion_tokens
    assert answer.model == "talker"


def test_a_stream_makes_the_same_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="talker", messages=HELLO, max_tokens=6, temperature=0)
    chunks = list(
        client.chat.completions.create(model="talker", messages=HELLO, max_tokens=6, temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_completions_take_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="talker", prompt=["w1", "w2 w3"], max_tokens=3, temperature=0, echo=True)
    assert [choice.text.split()[0] for choice in answer.choices] == ["w1", "w2"]


@pytest.mark.peer("openai")
def test_fields_beyond_openais_act_or_are_refused_by_name(client: openai.OpenAI) -> None:
    """What the client sends in extra_body has its effect, or is an error of the client's own class that names it."""
    ask: Any = client.chat.completions.create
    free = ask(model="talker", messages=HELLO, max_tokens=6, temperature=0).choices[0].message.content
    biased = ask(model="talker", messages=HELLO, max_tokens=6, temperature=0, logit_bias={"5": 100})
    assert biased.choices[0].message.content not in ("", free)
    allowed = ask(model="talker", messages=HELLO, max_tokens=6, temperature=0, extra_body={"allowed_token_ids": [5]})
    assert allowed.choices[0].message.content == biased.choices[0].message.content
    for field, value in (("guided_json", {"type": "object"}), ("temprature", 1)):
        with pytest.raises(openai.BadRequestError, match=field):
            ask(model="talker", messages=HELLO, max_tokens=2, extra_body={field: value})
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        ask(model="talker", messages=HELLO, max_tokens=2, tools=[], tool_choice="required")


@pytest.mark.peer("openai")
def test_an_echo_alone_has_the_prompts_likelihoods(client: openai.OpenAI) -> None:
    """The client reads the log probabilities of a list of token prompts, without a new token."""
    answer = client.completions.create(model="talker", prompt=[[1, 2, 3], [4, 5]], max_tokens=0, echo=True, logprobs=1)
    for choice, count in zip(answer.choices, (3, 2), strict=True):
        told: Any = choice.logprobs
        first, *others = told.token_logprobs
        assert first is None
        assert len(others) == count - 1
        assert all(value < 0 for value in others)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


@pytest.mark.peer("sagemaker-hosting")
def test_a_chat_reaches_invocations(client: openai.OpenAI, server: Server) -> None:
    """boto3 reaches /invocations only: a chat there has the answer of OpenAI's path, whole and as events."""
    chat: Any = {"messages": HELLO, "max_tokens": 6, "temperature": 0}
    expected = client.chat.completions.create(model="talker", **chat).choices[0].message.content
    for headers, body in (({"TargetModel": "talker"}, chat), ({}, chat | {"model_type": "talker"})):
        kind = {"Content-Type": "application/json"}
        answer = server.request("POST", "/invocations", json.dumps(body), kind | headers)
        assert json.loads(answer.body)["choices"][0]["message"]["content"] == expected
        answer = server.request("POST", "/invocations", json.dumps(body | {"stream": True}), kind | headers)
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, done = answer.body.decode().strip().split("\n\n")
        assert done == "data: [DONE]"
        parts = [json.loads(each.removeprefix("data: "))["choices"][0]["delta"] for each in events]
        assert "".join(part.get("content", "") for part in parts) == expected


def test_the_models_with_the_api_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["talker", "vectors"]
    assert client.models.retrieve("talker").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("trees")


def test_errors_are_those_of_the_client_with_our_message(client: openai.OpenAI, server: Server) -> None:
    """From a web worker, from a runner, and from a model of another kind, on both lanes."""
    with pytest.raises(openai.NotFoundError, match="available: talker, trees"):
        client.chat.completions.create(model="missing", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="context has 64"):
        client.chat.completions.create(model="talker", messages=HELLO, max_tokens=500)
    with pytest.raises(openai.NotFoundError, match="does not support the path /v1/chat/completions"):
        client.chat.completions.create(model="trees", messages=HELLO)
    straight = client.with_options(default_headers={"TargetModel": "talker"})
    with pytest.raises(openai.NotFoundError, match="names model 'missing'"):
        straight.chat.completions.create(model="missing", messages=HELLO)
    assert straight.chat.completions.create(model="", messages=HELLO, max_tokens=1).model == "talker"
    assert server.request("GET", "/v1/chat/completions").status == 405


@pytest.mark.peer("openai")
@pytest.mark.parametrize("model", ["vectors", ""])
def test_embeddings_are_made(client: openai.OpenAI, model: str) -> None:
    """In base64, the client's default, and as numbers; of texts and of tokens; an empty model is the only one."""
    texts = ["ba be", "lo ki da"]
    default = client.embeddings.create(model=model, input=texts)
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    assert [each.embedding for each in default.data] == [each.embedding for each in plain.data]
    assert [len(each.embedding) for each in plain.data] == [16, 16]
    assert [each.index for each in plain.data] == [0, 1]
    tokens = client.embeddings.create(model=model, input=[[2, 5, 6, 3]])  # [CLS] ba be [SEP]
    assert tokens.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert (tokens.usage.prompt_tokens, plain.usage.total_tokens, plain.model) == (4, 9, "vectors")
    assert len(client.embeddings.create(model=model, input="ba", dimensions=4).data[0].embedding) == 4
    with pytest.raises(openai.BadRequestError, match="empty list of tokens"):
        client.embeddings.create(model=model, input=[[]])
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="talker", input="ba")


def test_documents_are_ranked_by_their_embeddings(client: openai.OpenAI) -> None:
    """Over HTTP, by the only model that can; the nearest document is the query itself."""
    body = {"query": "ba be", "documents": ["lo", "ba be", "ki"], "top_n": 1}
    made: Any = client.post("/rerank", body=body, cast_to=object)
    assert made["results"] == [
        {"index": 1, "relevance_score": pytest.approx(1, abs=1e-5), "document": {"text": "ba be"}}
    ]
