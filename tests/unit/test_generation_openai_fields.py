"""Every field that clients of OpenAI and vLLM can send: it has its effect, or needs none, or it is a 400 by name."""

import json
import logging
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import pytest

from serve.errors import BadRequest
from serve.handlers.base import Request
from serve.handlers.generation import openai_fields
from serve.handlers.generation.handler import TextGeneration
from serve.http.addresses import CHAT, COMPLETIONS
from tests.unit.test_generation_toys import END, Asked, ask, finish, handler_of, reference, save_toy

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}({{ c.function.name }}"
    "{{ c.function.arguments | tojson }}){% endfor %}{% endfor %}{% for t in tools or [] %}<{{ t.name }}>{% endfor %}"
    "{{ documents or '' }}{{ reasoning_effort or '' }}{{ style or '' }}{% if add_generation_prompt %}>{% endif %}"
)
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
    COMPLETIONS: {"prompt": "Hello"},
}
# Each with a value that asks for something: what of it has its effect in the server ...
READ: dict[str, Any] = {
    "temperature": 0.3,
    "top_p": 0.3,
    "n": 2,
    "stop": "x",
    "max_tokens": 3,
    "stream": True,
    "seed": 5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 3},
    "top_k": 4,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 2,
    "stop_token_ids": [7],
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "bad_words": ["xy"],
    "allowed_token_ids": [3, 4],
    "truncate_prompt_tokens": 2,
    "return_tokens_as_token_ids": True,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[4]],
    "suppress_tokens": [9],
    "model": "x",
    "stream_options": {"include_usage": True},
}
READ_IN: dict[str, dict[str, Any]] = {
    CHAT: {
        "messages": [{"role": "user", "content": "Hallo"}],
        "max_completion_tokens": 4,
        "logprobs": True,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"style": "brief"},
        "add_generation_prompt": False,
        "continue_final_message": True,
        "documents": [{"title": "a", "text": "b"}],
    },
    COMPLETIONS: {"prompt": "Hallo", "echo": True, "logprobs": 2},
}
# ... what is a 400 that names it ...
REFUSED: dict[str, Any] = {
    "response_format": {"type": "json_object"},
    "structured_outputs": {"json": {}},
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "guided_choice": ["a"],
    "guided_grammar": "root",
    "guided_decoding_backend": "outlines",
    "guided_whitespace_pattern": " ",
    "use_beam_search": True,
    "skip_special_tokens": False,
    "prompt_logprobs": 1,
    "logprob_token_ids": [1],
    "priority": 1,
    "kv_transfer_params": {"a": 1},
    "ec_transfer_params": {"a": 1},
    "vllm_xargs": {"a": 1},
    "repetition_detection": {"max_pattern_size": 3},
    "thinking_token_budget": 5,
    "watermarking": True,
    "return_token_ids": True,
    "return_weight_versions": True,
    "routed_experts_prompt_start": 1,
    "extra_body": {"min_p": 0.1},
    "mirostat": 2,
    "adapter_id": "x",
    "max_new_tokens": 5,
    "do_sample": False,
    "typical_p": 0.5,
    "num_beams": 2,
    "watermark": True,
    "temprature": 0.1,
    "max_tokens_": 5,
    "sotp": "x",
}
REFUSED_IN: dict[str, dict[str, Any]] = {
    CHAT: {
        "audio": {"voice": "alloy"},
        "modalities": ["text", "audio"],
        "functions": [{"name": "f"}],
        "function_call": {"name": "f"},
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required",
        "moderation": {"model": "x"},
        "web_search_options": {},
        "chat_template": "{{ messages }}",
        "echo": True,
        "prompt": "x",
        "best_of": 2,
        "suffix": "x",
        "include_reasoning": False,
        "return_prompt_text": True,
    },
    COMPLETIONS: {
        "suffix": "x",
        "best_of": 2,
        "prompt_embeds": "x",
        "max_completion_tokens": 5,
        "messages": [],
        "tools": [{"type": "function"}],
        "top_logprobs": 2,
        "tool_choice": "auto",
    },
}
# ... and what needs none: it steers OpenAI's service, or vLLM's engine.
IGNORED: dict[str, Any] = {
    "user": "me",
    "store": True,
    "metadata": {"a": "b"},
    "service_tier": "flex",
    "safety_identifier": "x",
    "prediction": {"type": "content", "content": "x"},
    "verbosity": "low",
    "prompt_cache_key": "x",
    "prompt_cache_options": {},
    "prompt_cache_retention": "24h",
    "parallel_tool_calls": False,
    "length_penalty": 1.5,
    "request_id": "x",
    "session_id": "x",
    "stream_interval": 5,
    "spaces_between_special_tokens": False,
    "mm_payload": "none",
    "return_mm_kwargs": True,
    "return_token_offsets": True,
    "media_io_kwargs": {},
    "mm_processor_kwargs": {},
    "some_service_of_another_server": 1,
}
# With a value that has an effect only beside another field, or for other models; tested below.
ELSEWHERE = {"cache_salt", "top_logprobs", "add_special_tokens", "truncation_side", "tool_choice", "tools", "best_of"}
# The fields of vLLM 0.33.0 beyond OpenAI's: chat_completion/protocol.py and completion/protocol.py.
VLLM = {
    *("use_beam_search", "top_k", "min_p", "repetition_penalty", "watermarking", "length_penalty", "stop_token_ids"),
    *("include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens"),
    *("truncate_prompt_tokens", "truncation_side", "prompt_logprobs", "logprob_token_ids", "allowed_token_ids"),
    *("bad_words", "add_special_tokens", "structured_outputs", "priority", "request_id", "session_id", "cache_salt"),
    *("return_tokens_as_token_ids", "return_token_ids", "return_weight_versions", "routed_experts_prompt_start"),
    *("return_token_offsets", "mm_payload", "return_mm_kwargs", "kv_transfer_params", "ec_transfer_params"),
    *("vllm_xargs", "repetition_detection", "stream_interval", "thinking_token_budget", "response_format"),
}
VLLM_IN = {
    CHAT: {
        *("echo", "add_generation_prompt", "continue_final_message", "documents", "chat_template"),
        *("chat_template_kwargs", "media_io_kwargs", "mm_processor_kwargs", "return_prompt_text"),
        *("include_reasoning", "reasoning_effort"),
    },
    COMPLETIONS: {"prompt_embeds"},
}
OPENAI = {
    CHAT: set(typing.get_type_hints(chat_params.CompletionCreateParamsBase)) | {"stream"},
    COMPLETIONS: set(typing.get_type_hints(completion_params.CompletionCreateParamsBase)) | {"stream"},
}
PATHS = [CHAT, COMPLETIONS]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_toy(tmp_path_factory.mktemp("toy"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def handler(toy: Path) -> TextGeneration:
    return handler_of(toy, max_batch=8)


def decoded(handler: TextGeneration, path: str, **fields: Any) -> Any:
    """What the server understands, without the time."""
    raw = json.dumps(BODIES[path] | fields).encode()
    item = handler.decode(Request(body=raw, content_type="application/json", path=path, id="7"))
    form: Any = item.form
    return item.prompts, replace(form, created=0)


def choices(handler: TextGeneration, path: str, **fields: Any) -> Any:
    return ask(handler, BODIES[path] | {"temperature": 0, "max_tokens": 8} | fields, path=path)["choices"]


@pytest.mark.peer("openai")
@pytest.mark.parametrize("path", PATHS)
def test_every_field_of_the_clients_is_read_refused_or_known_to_need_nothing(path: str) -> None:
    """Every field of openai-python 3.52's types and of vLLM 0.33's protocol has its place in the tables tested here."""
    tables = READ | READ_IN[path] | REFUSED | REFUSED_IN[path] | IGNORED
    assert (OPENAI[path] | VLLM | VLLM_IN[path]) <= tables.keys() | ELSEWHERE
    assert {*openai_fields.REFUSED} >= {*REFUSED} & {*openai_fields.REFUSED}


@pytest.mark.peer("openai")
@pytest.mark.parametrize(("path", "name"), [(p, n) for p in PATHS for n in READ | READ_IN[p]])
def test_a_field_that_is_read_has_an_effect(handler: TextGeneration, path: str, name: str) -> None:
    """A field that the server reads changes what it does for the request; no value is dropped."""
    value = (READ | READ_IN[path])[name]
    beside = {"stream": True} if name == "stream_options" else {}
    assert decoded(handler, path, **beside, **{name: value}) != decoded(handler, path, **beside)
    assert decoded(handler, path, **{name: None}) == decoded(handler, path) if name not in BODIES[path] else True


@pytest.mark.peer("openai")
@pytest.mark.parametrize(("path", "name"), [(p, n) for p in PATHS for n in REFUSED | REFUSED_IN[p]])
def test_a_field_that_asks_for_more_than_there_is_is_a_400_by_name(
    handler: TextGeneration, path: str, name: str
) -> None:
    """A field whose value asks for what the server cannot give is refused by name, and so is a misspelt one."""
    with pytest.raises(BadRequest, match=name) as refused:
        decoded(handler, path, **{name: (REFUSED | REFUSED_IN[path])[name]})
    assert refused.value.hint


@pytest.mark.peer("openai")
@pytest.mark.parametrize("path", PATHS)
def test_a_field_that_needs_nothing_changes_nothing(
    handler: TextGeneration, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Fields that steer OpenAI's service are accepted and have no effect; an unknown one is logged once."""
    openai_fields._logged.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert decoded(handler, path, **IGNORED) == decoded(handler, path)
    assert [each.__dict__["field"] for each in caplog.records] == ["some_service_of_another_server"]


NEUTRAL: dict[str, Any] = {
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "modalities": ["text"],
    "logit_bias": {},
    "bad_words": [],
    "skip_special_tokens": True,
    "use_beam_search": False,
    "priority": 0,
    "include_reasoning": True,
    "stop": [],
    "guided_json": None,
    "temprature": None,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_value_without_an_effect_is_accepted(handler: TextGeneration, name: str) -> None:
    assert decoded(handler, CHAT, **{name: NEUTRAL[name]}) == decoded(handler, CHAT)


@pytest.mark.parametrize("path", PATHS)
def test_every_misspelt_name_is_refused(handler: TextGeneration, path: str) -> None:
    """Of each field that is read: a letter left out, doubled, or changed for the next one."""
    known = {*READ, *READ_IN[path], *REFUSED_IN[path], *IGNORED, *ELSEWHERE}
    for name in (each for each in READ | READ_IN[path] if len(each) > 3):
        for at in range(1, len(name) - 1):
            for typo in (
                name[:at] + name[at + 1 :],
                name[:at] + name[at] + name[at:],
                name[:at] + name[at + 1] + name[at] + name[at + 2 :],
            ):
                if typo not in known:
                    with pytest.raises(BadRequest, match=r"did you mean|is a field|not supported|parameter of"):
                        decoded(handler, path, **{typo: 1})


# How the engine's own parameters act: as `generate` with the argument on the right.
AS_GENERATE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"logit_bias": {"101": 100}}, {"sequence_bias": {(101,): 100.0}}),
    ({"logit_bias": {"101": 2.5, "98": -100}}, {"sequence_bias": {(101,): 2.5, (98,): -100.0}}),
    ({"allowed_token_ids": [97, 98, 99]}, {"prefix_allowed_tokens_fn": lambda *_: [97, 98, 99]}),
    ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    ({"suppress_tokens": [*range(97, 123)]}, {"suppress_tokens": [*range(97, 123)]}),
    ({"bad_words_ids": [[97], [98, 99]]}, {"bad_words_ids": [[97], [98, 99]]}),
    ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    ({"min_tokens": 8}, {"min_new_tokens": 8}),
    ({"ignore_eos": True}, {"eos_token_id": None}),
    ({"stop_token_ids": [*range(97, 110)]}, {"eos_token_id": [END, *range(97, 110)]}),
]


@pytest.mark.peer("transformers")
@pytest.mark.parametrize(("fields", "arguments"), AS_GENERATE, ids=[str(fields)[:40] for fields, _ in AS_GENERATE])
def test_the_engines_parameters_act_as_in_generate(
    handler: TextGeneration, toy: Path, fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """A parameter of vLLM or transformers on OpenAI's paths gives the greedy text of `generate` with that argument."""
    tokenizer = handler.engine.texts.tokenizer
    model = reference(toy)
    for prompt in ("Hello", "abcabc", "the"):
        inputs = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=16, do_sample=False, pad_token_id=END, **arguments)
        tokens = made[0, inputs["input_ids"].shape[1] :].tolist()
        if tokens[-1] in fields.get("stop_token_ids", ()):
            tokens.pop()  # no text, as in vLLM
        (choice,) = choices(handler, COMPLETIONS, prompt=prompt, max_tokens=16, **fields)
        assert choice["text"] == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"allowed_token_ids": [5], "suppress_tokens": [5]}, ""),
        ({"allowed_token_ids": [END], "min_tokens": 3}, ""),
        ({"allowed_token_ids": [65], "no_repeat_ngram_size": 2}, "bb"),
        ({"allowed_token_ids": [65], "bad_words_ids": [[65, 65, 65]]}, "bb"),
    ],
)
def test_a_text_ends_where_no_token_is_allowed(
    handler: TextGeneration, fields: dict[str, Any], text: str, temperature: float
) -> None:
    """Where the bans leave no token, the text ends; a token that is banned never appears."""
    for stream in (False, True):
        body = {"prompt": "Hello", "max_tokens": 6, "temperature": temperature, "stream": stream, **fields}
        job = Asked(handler, body, path=COMPLETIONS)
        handler.join(job)
        finish(handler, job)
        if not stream:
            (choice,) = job.answer["choices"]
            assert (choice["text"], choice["finish_reason"]) == (text, "stop")
    assert handler.room() == 8


def test_bad_words_are_banned_at_the_beginning_and_behind_a_space(handler: TextGeneration) -> None:
    (plain,) = choices(handler, COMPLETIONS, max_tokens=16)
    word = plain["text"][2:4]
    (choice,) = choices(handler, COMPLETIONS, max_tokens=16, bad_words=[word])
    assert word in plain["text"]
    assert word not in choice["text"]


def test_the_stop_string_may_stay_in_the_text(handler: TextGeneration) -> None:
    (plain,) = choices(handler, COMPLETIONS, max_tokens=16)
    stop = plain["text"][3:5]
    (choice,) = choices(handler, COMPLETIONS, max_tokens=16, stop=stop, include_stop_str_in_output=True)
    assert choice["text"] == plain["text"][: plain["text"].index(stop) + 2]


def test_a_prompt_is_cut_on_the_side_that_is_asked_for(handler: TextGeneration) -> None:
    for side, prompt in (("left", "llo"), ("right", "Hel")):
        fields = {"truncate_prompt_tokens": 3, "truncation_side": side}
        (choice,) = choices(handler, COMPLETIONS, echo=True, **fields)
        assert choice["text"] == choices(handler, COMPLETIONS, prompt=prompt, echo=True)[0]["text"]
    (choice,) = choices(handler, COMPLETIONS, prompt="x" * 400, truncate_prompt_tokens=-1, max_tokens=10)
    assert choice["finish_reason"]


def test_each_event_of_a_stream_has_the_usage_if_that_is_asked_for(handler: TextGeneration) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    job = Asked(
        handler,
        BODIES[CHAT] | {"stream": True, "temperature": 0, "max_tokens": 4, "stream_options": options},
        path=CHAT,
    )
    handler.join(job)
    finish(handler, job)
    counts = [
        json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
        for line in b"".join(job.chunks).decode().split("\n\n")[:-2]
    ]
    assert counts == sorted(counts)
    assert counts[-1] == 4


CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
AGENT: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]


def prompt_of(handler: TextGeneration, **fields: Any) -> str:
    prompts, _ = decoded(handler, CHAT, **fields)
    text: str = handler.engine.texts.tokenizer.decode(prompts[0].tokens)
    return text


@pytest.mark.peer("openai")
def test_tool_calls_and_their_results_reach_the_template(handler: TextGeneration) -> None:
    """An assistant's tool_calls and the tool's answer are in the prompt, as the model's template writes them."""
    expected = handler.engine.texts.tokenizer.apply_chat_template(
        [
            AGENT[0],
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}],
            },
            AGENT[2],
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert (
        prompt_of(handler, messages=AGENT)
        == expected
        == '[user]Weather?[assistant](weather{"city": "Rome"})[tool]sunny>'
    )


@pytest.mark.peer("openai")
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", r"tool_calls of messages\[1\]"),
        (
            "{% for m in messages if m.role != 'tool' %}{{ m.content }}{{ m.tool_calls or '' }}{% endfor %}",
            r"leaves out messages\[2\], of the role 'tool'",
        ),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ range(10 ** 9) | list }}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_messages_that_a_template_leaves_out_or_refuses_are_a_400(tmp_path: Path, template: str, said: str) -> None:
    """A tool's message or a call that the model's template would drop is refused, and so is a template's error."""
    (save_toy(tmp_path) / "chat_template.jinja").write_text(template)
    with pytest.raises(BadRequest, match=said):
        decoded(handler_of(tmp_path), CHAT, messages=AGENT)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": "a", "conten": "b"}], "did you mean content"),
        ([{"role": "assistant", "function_call": {"name": "f"}}], "function_call is not supported"),
        ([{"role": "assistant", "audio": {"id": "x"}}], "audio is not supported"),
        ([{"role": "assistant", "content": "a", "prefix": True}], "prefix is not supported"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}], "not a JSON object"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}], "not a JSON object"),
    ],
)
def test_a_member_of_a_message_is_not_dropped(handler: TextGeneration, messages: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        decoded(handler, CHAT, messages=messages)


@pytest.mark.peer(
    "openai", differs="tool calls are not read out of the text, so tools are refused and never half served"
)
@pytest.mark.parametrize("choice", ["auto", None])
def test_tools_without_a_promise_to_call_them_are_refused(handler: TextGeneration, choice: Any) -> None:
    """Tools are refused, unless tool_choice is "none", which leaves them out of the prompt: then no tool is called."""
    tools = [{"type": "function", "function": {"name": "weather"}}]
    with pytest.raises(BadRequest, match="tools is not supported"):
        decoded(handler, CHAT, tools=tools, tool_choice=choice)
    assert decoded(handler, CHAT, tools=tools, tool_choice="none") == decoded(handler, CHAT)
    assert prompt_of(handler, chat_template_kwargs={"tools": [{"name": "weather"}]}) == "[user]Hello<weather>>"


def test_arguments_of_the_tokenizer_are_not_for_the_template(handler: TextGeneration) -> None:
    with pytest.raises(BadRequest, match="chat_template_kwargs has tokenize"):
        decoded(handler, CHAT, chat_template_kwargs={"tokenize": True})
    with pytest.raises(BadRequest, match="contradicts"):
        decoded(handler, CHAT, continue_final_message=True, add_generation_prompt=True)
    begun = [*BODIES[CHAT]["messages"], {"role": "assistant", "content": "Well"}]
    assert prompt_of(handler, messages=begun, continue_final_message=True) == "[user]Hello[assistant]Well"
