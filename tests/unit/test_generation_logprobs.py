"""Log probabilities on OpenAI's paths: those of plain transformers, with the text and the bytes of each token."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from serve.handlers.generation.handler import TextGeneration
from serve.handlers.generation.sampling import token_logprobs
from serve.handlers.generation.text_decoder import TokenTexts
from serve.http.addresses import CHAT, COMPLETIONS
from tests.unit.test_generation_toys import END, Asked, ask, finish, handler_of, reference, save_toy
from tests.unit.test_text_decoder import DECODERS, PIECES, tokenizer_of
from tests.unit.tiny_architectures import tiny_config

POSITIONS = 700


@pytest.fixture(scope="module", params=["gpt2", "llama", "bloom, no positions", "gpt_neo"])
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "gpt_neo":  # answers one text at a time
        directory = save_toy(tmp_path_factory.mktemp("toy"))
        config = tiny_config("gpt_neo", max_position_embeddings=POSITIONS, eos_token_id=END, bos_token_id=END)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        return directory
    longer = {"gpt2": {"n_positions": POSITIONS}, "llama": {"max_position_embeddings": POSITIONS}}
    return save_toy(tmp_path_factory.mktemp("toy"), request.param, **longer.get(request.param, {}))


@pytest.fixture(scope="module")
def handler(toy: Path) -> TextGeneration:
    return handler_of(toy, max_batch=8)


def likelihoods(model: Any, tokens: list[int]) -> torch.Tensor:
    """Of each next token, by one plain pass."""
    with torch.inference_mode():
        scores: torch.Tensor = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return scores


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("most", [0, 1])
def test_a_harness_gets_the_likelihoods_of_its_prompts(handler: TextGeneration, toy: Path, most: int) -> None:
    """A prompt's log probabilities, as lm-evaluation-harness asks for them, are those of plain transformers.

    Lists of tokens, echo, logprobs 1, and max_tokens 0 or 1; prompts of many lengths, beyond the pieces of a prefill;
    beside other callers.
    """
    dice = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 256, (length,), generator=dice).tolist() for length in (1, 2, 9, 40, 41, 300, 640)]
    body = {"prompt": prompts, "temperature": 0, "max_tokens": most, "logprobs": 1, "seed": 1234, "echo": True}
    others = [Asked(handler, {"inputs": "abc" * i, "parameters": {"max_new_tokens": 30}}) for i in (1, 20)]
    job = Asked(handler, body, path=COMPLETIONS)
    for each in (*others, job):
        handler.join(each)
    finish(handler, job, *others)

    model = reference(toy)
    for prompt, choice in zip(prompts, job.answer["choices"], strict=True):
        told = choice["logprobs"]
        scores = likelihoods(model, prompt)
        made = [int(scores[-1].argmax())] if most else []
        tokens = prompt + made
        assert told["token_logprobs"][0] is None
        assert told["top_logprobs"][0] is None
        expected = [scores[i, token].item() for i, token in enumerate(tokens[1:])]
        assert told["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
        best = [scores[i].max().item() for i in range(len(tokens) - 1)]
        assert [max(each.values()) for each in told["top_logprobs"][1:]] == pytest.approx(best, abs=1e-4)
        # As the harness decides whether a continuation is the greedy one.
        greedy = [own == max(top.values()) for own, top in zip(told["token_logprobs"], told["top_logprobs"]) if top]
        assert greedy == [int(scores[i].argmax()) == token for i, token in enumerate(tokens[1:])]
        assert len(told["tokens"]) == len(told["text_offset"]) == len(tokens)
        assert choice["text"] == handler.engine.texts.tokenizer.decode(tokens, skip_special_tokens=True)
        assert choice["finish_reason"] == ("stop" if made == [END] else "length")
    assert job.answer["usage"]["completion_tokens"] == len(prompts) * most


@pytest.mark.peer("openai")
def test_a_streamed_echo_has_the_same_likelihoods(handler: TextGeneration) -> None:
    """The events of a streamed echo, joined, have the text and the log probabilities of the whole answer."""
    body = {"prompt": "Hello, w\u00f6rld", "temperature": 0, "max_tokens": 5, "logprobs": 2, "echo": True}
    (whole,) = ask(handler, body, path=COMPLETIONS)["choices"]
    job = Asked(handler, body | {"stream": True}, path=COMPLETIONS)
    handler.join(job)
    finish(handler, job)
    events = [json.loads(each.removeprefix("data: ")) for each in b"".join(job.chunks).decode().split("\n\n")[:-2]]
    parts = [event["choices"][0] for event in events]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for part in parts if part["logprobs"] for value in part["logprobs"][name]] == values


@pytest.mark.peer("openai")
def test_an_answers_tokens_joined_are_its_text(handler: TextGeneration) -> None:
    """text_offset is where a token begins in the text, and the bytes of a chat's tokens, joined, are its text."""
    handler.engine.texts.tokenizer.chat_template = "{{ messages[0].content }}"
    for prompt in ("Hello", "\u4e2d\u6587", "\U0001f642 a"):
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": 40,
            "logprobs": 0,
            "echo": True,
            "seed": 4,
            "temperature": 1,
        }
        (choice,) = ask(handler, body, path=COMPLETIONS)["choices"]
        told, text = choice["logprobs"], choice["text"]
        assert told["text_offset"] == sorted(told["text_offset"])
        for token, at in zip(told["tokens"], told["text_offset"], strict=True):
            assert token.startswith("bytes:") or token == "<end>" or text[at:].startswith(token)
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 40, "logprobs": True, "seed": 4}
        (choice,) = ask(handler, body, path=CHAT)["choices"]
        joined = b"".join(bytes(each["bytes"]) for each in choice["logprobs"]["content"])
        assert joined.decode(errors="replace") == choice["message"]["content"]


@pytest.mark.parametrize("name", DECODERS)
@given(tokens=st.lists(st.integers(0, len(PIECES) - 1), max_size=24))
def test_offsets_grow_and_point_at_the_tokens(name: str, tokens: list[int]) -> None:
    """For every decoder: within the text, and at each whole token's own text, behind the first."""
    texts = TokenTexts(tokenizer_of(DECODERS[name]()))
    tokens = [PIECES.index("b"), *tokens]
    text, offsets = texts.decode(tokens), texts.offsets(tokens)
    assert offsets == sorted(offsets)
    if not texts.streams or "\ufffd" in text or "</w>" in "".join(PIECES[token] for token in tokens):
        return
    for token, at in list(zip(tokens, offsets, strict=True))[1:]:
        shown = texts.shown(token)
        if shown.raw and shown.whole:
            assert text[at:].startswith(shown.text)


def test_logprobs_of_impossible_tokens_are_finite_json() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    (told,) = token_logprobs(logits, [1], 2)
    assert told.logprob == -9999.0
    assert json.loads(json.dumps(told.top))[0] == [0, 0.0]
