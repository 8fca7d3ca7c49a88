"""OpenAI's API on text generation: the tokens of /invocations in OpenAI's shapes, and invalid requests."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.generation.handler import TextGeneration
from serve.http.addresses import CHAT, COMPLETIONS
from tests.unit.test_generation_toys import POSITIONS, Asked, ask, finish, handler_of, reference, save_toy

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_toy(tmp_path_factory.mktemp("toy"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def handler(toy: Path) -> TextGeneration:
    return handler_of(toy, max_batch=8)


def greedy(handler: TextGeneration, prompt: str, tokens: int, **parameters: Any) -> str:
    """The greedy text of /invocations."""
    asked = {"max_new_tokens": tokens, "do_sample": False, "return_full_text": False, **parameters}
    text: str = ask(handler, {"inputs": prompt, "parameters": asked})[0]["generated_text"]
    return text


def chat(handler: TextGeneration, **body: Any) -> Any:
    return ask(handler, {"messages": HELLO, "temperature": 0, "max_tokens": 8, **body}, path=CHAT, id="7")


def complete(handler: TextGeneration, prompt: Any, **body: Any) -> Any:
    return ask(handler, {"prompt": prompt, "temperature": 0, **body}, path=COMPLETIONS, id="7")


def streamed(handler: TextGeneration, path: str, **body: Any) -> list[Any]:
    """The events of a stream, which must end with [DONE]."""
    job = Asked(handler, {"temperature": 0, "stream": True, **body}, path=path)
    handler.join(job)
    finish(handler, job)
    assert job.started == "text/event-stream"
    events = b"".join(job.chunks).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def test_a_chat_is_rendered_by_the_models_template_and_answered_in_openais_shape(handler: TextGeneration) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    ]

    answer = chat(handler, messages=messages, model="x")

    prompt = "[system]Be brief.[user]Hello>"
    assert {key: answer[key] for key in ("id", "object", "model")} == {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "model": "x",
    }
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": greedy(handler, prompt, 8)}
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 8,
        "total_tokens": len(prompt) + 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_chat_goes_on_to_the_end_of_the_context_without_a_limit(handler: TextGeneration) -> None:
    """OpenAI has no default limit; one of the model's end tokens ends a chat."""
    answer = chat(handler, max_tokens=None)
    usage = answer["usage"]
    assert answer["choices"][0]["finish_reason"] == "stop" or usage["total_tokens"] == POSITIONS


@pytest.mark.parametrize("prompt", ["One", [79, 110, 101]])
def test_a_completion_takes_text_or_tokens_and_echoes(handler: TextGeneration, prompt: Any) -> None:
    tokens = handler.engine.texts.tokenizer("One")["input_ids"]
    answer = complete(handler, prompt if isinstance(prompt, str) else tokens, echo=True)
    assert answer["choices"][0]["text"] == "One" + greedy(handler, "One", 16)
    assert answer["object"] == "text_completion"


def test_several_prompts_and_sequences_are_numbered_in_order(handler: TextGeneration) -> None:
    answer = complete(handler, ["One", "Two"], n=2, max_tokens=5)
    expected = [greedy(handler, prompt, 5) for prompt in ("One", "One", "Two", "Two")]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 6
    assert answer["usage"]["completion_tokens"] == 20


def test_a_stream_has_the_text_of_a_whole_answer(handler: TextGeneration) -> None:
    """For each of several sequences: a role first, pieces, then the reason; at last the usage."""
    events = streamed(
        handler, CHAT, messages=HELLO, n=2, seed=3, temperature=1, max_tokens=8, stream_options={"include_usage": True}
    )
    whole = chat(handler, n=2, seed=3, temperature=1)

    *told, last = events
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    for number, choice in enumerate(whole["choices"]):
        mine = [each["choices"][0] for each in told if each["choices"][0]["index"] == number]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(each["delta"].get("content", "") for each in mine) == choice["message"]["content"]
        assert [each["finish_reason"] for each in mine][-1] == choice["finish_reason"]
    assert {each["object"] for each in events} == {"chat.completion.chunk"}


def test_a_streamed_completion_echoes_and_stops(handler: TextGeneration) -> None:
    text = greedy(handler, "One", 12)
    stop = text[5:7]
    events = streamed(handler, COMPLETIONS, prompt="One", echo=True, stop=[stop], max_tokens=12)
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == "One" + text[: text.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


def test_likelihoods_are_the_models_own(handler: TextGeneration, toy: Path) -> None:
    """The log softmax of the model's logits after the tokens so far, without temperature and penalties."""
    parameters = {"max_new_tokens": 6, "do_sample": False}
    job = Asked(handler, {"inputs": "[user]Hello>", "parameters": parameters, "stream": True})
    handler.join(job)
    finish(handler, job)
    made = [event["token"]["id"] for event in job.events[:-1]]
    ids = handler.engine.texts.tokenizer("[user]Hello>")["input_ids"]

    content = chat(handler, logprobs=True, top_logprobs=3, max_tokens=6)["choices"][0]["logprobs"]["content"]

    logits = reference(toy)(torch.tensor([ids + made])).logits[0].log_softmax(-1)
    for number, told in enumerate(content):
        expected = logits[len(ids) + number - 1]
        assert told["logprob"] == pytest.approx(expected[made[number]].item(), abs=1e-4)
        assert [each["logprob"] for each in told["top_logprobs"]] == pytest.approx(
            expected.topk(3).values.tolist(), abs=1e-4
        )
    assert len(content) == len(made)


def test_a_chats_likelihoods_name_the_alternatives(handler: TextGeneration) -> None:
    content = chat(handler, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    assert all(each["top_logprobs"][0]["logprob"] == each["logprob"] for each in content)  # greedy takes the likeliest
    assert all(each["bytes"] == list(each["token"].encode()) for each in content if "\\x" not in each["token"])


def test_a_presence_penalty_forbids_repeating(handler: TextGeneration) -> None:
    """As large a one as OpenAI allows, on a model whose scores lie close together, makes every token a new one."""
    plain = complete(handler, "aa", max_tokens=40)["choices"][0]["text"]
    penalised = complete(handler, "aa", max_tokens=40, frequency_penalty=2, presence_penalty=2)["choices"][0]["text"]
    assert len(set(penalised)) > len(set(plain))


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        (CHAT, {"messages": HELLO, "temperature": 3}, "temperature"),
        (CHAT, {"messages": HELLO, "n": 1025}, "1024"),
        (COMPLETIONS, {"prompt": ["a"] * 600, "n": 2}, "make 1200 sequences"),
        (CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}, "tools is not supported"),
        (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"messages": HELLO, "max_tokens": 1000}, "context has 160"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 200}]}, "context has 160"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 200_000}]}, "160 tokens"),
        (CHAT, {"messages": HELLO, "top_logprobs": 2}, "logprobs"),
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 100_000}, "has 100000 prompts; the limit is 1024"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "mixes"),
        (COMPLETIONS, {"prompt": [5, 999_999]}, "unknown tokens"),
        (COMPLETIONS, {"prompt": "a", "best_of": 3}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "suffix": "z"}, "suffix"),
        (COMPLETIONS, [1], "object"),
    ],
)
def test_an_unsupported_field_is_refused_by_name(handler: TextGeneration, path: str, body: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        handler.decode(Request(body=json.dumps(body).encode(), content_type="application/json", path=path))


@pytest.mark.parametrize("raw", [b"", b"{", b'{"messages":' + b"[" * 10_000, b'{"messages": [{"role": "\xff"}]}'])
def test_junk_is_a_bad_request(handler: TextGeneration, raw: bytes) -> None:
    with pytest.raises(BadRequest):
        handler.decode(Request(body=raw, content_type="application/json", path=CHAT))


def test_a_model_without_a_chat_template_names_the_remedy(tmp_path: Path) -> None:
    bare = handler_of(save_toy(tmp_path))
    with pytest.raises(BadRequest, match="no chat template") as refused:
        chat(bare)
    assert COMPLETIONS in refused.value.hint


def test_fields_that_steer_openais_own_service_are_ignored(handler: TextGeneration) -> None:
    known = {"user": "me", "store": True, "service_tier": "auto", "tools": [], "response_format": {"type": "text"}}
    assert chat(handler, **known)["choices"] == chat(handler)["choices"]
