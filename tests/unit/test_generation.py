"""Text generation: an answer does not depend on the other requests of the batch, and equals the library's own."""

import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from serve.errors import DoesNotFit
from serve.handlers.generation.decoder import Decoder
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.generation.sampling import choose
from serve.handlers.generation.scheduler import PREFILL_TOKENS
from serve.handlers.generation.sequence import GeneratedSequence, GeneratedText
from tests.unit.test_generation_toys import END, TOYS, Asked, ask, finish, handler_of, reference, sampling, save_toy

LETTERS = "abcdefghijklmnopqrstuvwxyz äöü€"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_toy(tmp_path_factory.mktemp("toy"), name) for name in TOYS}


@pytest.fixture(scope="module")
def handlers(directories: dict[str, Path]) -> dict[str, TextGeneration]:
    return {name: handler_of(directory, max_batch=8) for name, directory in directories.items()}


@pytest.fixture
def gpt2(handlers: dict[str, TextGeneration]) -> TextGeneration:
    handler = handlers["gpt2"]
    assert handler.room() == 8, "an earlier test left a request in the handler"
    return handler


@pytest.fixture(scope="module")
def gpt2_reference(directories: dict[str, Path]) -> Any:
    return reference(directories["gpt2"])


def prompt(dice: random.Random, most: int = 60) -> str:
    return "".join(dice.choice(LETTERS) for _ in range(dice.randint(1, most)))


def generated(handler: TextGeneration, model: Any, text: str, **arguments: Any) -> list[str]:
    """The texts that `generate` returns for a prompt."""
    tokenizer = handler.engine.texts.tokenizer
    inputs = tokenizer(text, return_tensors="pt")
    output = model.generate(**inputs, pad_token_id=END, **arguments)
    return [tokenizer.decode(row[inputs["input_ids"].shape[1] :], skip_special_tokens=True) for row in output]


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("name", TOYS)
def test_greedy_tokens_equal_those_of_generate_in_any_batch(
    name: str, directories: dict[str, Path], handlers: dict[str, TextGeneration]
) -> None:
    """28 prompts of many lengths join and leave at random times; each answer is that of a lone `generate`."""
    handler, model, dice = handlers[name], reference(directories[name]), random.Random(1)
    asked = [(prompt(dice), dice.randint(1, 24)) for _ in range(28)]
    bodies = [
        {"inputs": text, "parameters": {"max_new_tokens": most, "do_sample": False, "return_full_text": False}}
        for text, most in asked
    ]
    waiting = [Asked(handler, body) for body in bodies]
    jobs = list(waiting)
    quitters: list[Asked] = []

    while not all(job.done for job in jobs):
        while waiting and handler.room() and dice.random() < 0.6:
            handler.join(waiting.pop())
        if handler.room() and dice.random() < 0.2:  # clients that will disconnect
            quitters.append(Asked(handler, {"inputs": prompt(dice)}))
            handler.join(quitters[-1])
        if quitters and dice.random() < 0.3:
            handler.leave(quitters.pop(0))
        handler.step()
    for job in quitters:
        handler.leave(job)

    assert handler.room() == 8
    for (text, most), job in zip(asked, jobs, strict=True):
        (entry,) = job.answer
        assert [entry["generated_text"]] == generated(handler, model, text, max_new_tokens=most, do_sample=False)
    for body, job in zip(bodies[:6], jobs[:6], strict=True):
        assert job.answer == ask(handler, body)


def test_a_panic_over_one_text_fails_its_request_alone(gpt2: TextGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in Rust raises it as a BaseException. The other rows of the batch are answered as if alone."""
    decoder = tokenizers.decoders.Strip("x", 0, 5)
    bodies = [{"inputs": text, "parameters": {"max_new_tokens": 8, "do_sample": False}} for text in ("ab", "cd", "ef")]
    alone = [ask(gpt2, body) for body in bodies]
    jobs = [Asked(gpt2, body) for body in bodies]
    add = GeneratedSequence.add

    def panics(sequence: GeneratedSequence, *arguments: Any, **more: Any) -> str:
        if sequence.owner.job is jobs[1] and len(sequence.tokens) == 2:
            decoder.decode(["xx"])
        return add(sequence, *arguments, **more)

    monkeypatch.setattr(GeneratedSequence, "add", panics)
    for job in jobs:
        gpt2.join(job)
    finish(gpt2, *jobs)
    assert jobs[1].failed is not None
    assert "tokenizers panicked" in jobs[1].failed.message
    assert [jobs[0].answer, jobs[2].answer] == [alone[0], alone[2]]
    assert gpt2.room() == 8


def test_a_seed_draws_the_same_text_alone_and_in_a_full_batch(gpt2: TextGeneration) -> None:
    """For every way to narrow the choice, and beside rows with other settings."""
    dice = random.Random(2)
    ways: list[dict[str, Any]] = [
        {},
        {"top_k": 5},
        {"top_p": 0.7, "top_k": 0},
        {"top_k": 0, "temperature": 1.7},
        {"top_k": 20, "top_p": 0.9, "temperature": 0.8, "repetition_penalty": 1.3},
        {"num_return_sequences": 2},
    ]
    bodies = [
        {"inputs": prompt(dice), "parameters": {"do_sample": True, "seed": i, "max_new_tokens": 25} | ways[i % 6]}
        for i in range(18)
    ]
    alone = [ask(gpt2, body) for body in bodies]
    jobs = [Asked(gpt2, body) for body in bodies]
    waiting = list(jobs)

    while not all(job.done for job in jobs):
        while waiting and gpt2.room() > 1 and dice.random() < 0.7:
            gpt2.join(waiting.pop(0))
        gpt2.step()

    assert [job.answer for job in jobs] == alone
    assert len({json.dumps(answer) for answer in alone}) == len(alone)


def test_another_seed_or_none_draws_another_text(gpt2: TextGeneration) -> None:
    body = {"inputs": "abc", "parameters": {"do_sample": True, "max_new_tokens": 30, "top_k": 0}}

    texts = [ask(gpt2, body | {"parameters": body["parameters"] | seed}) for seed in ({}, {}, {"seed": 1}, {"seed": 2})]  # type: ignore[operator]

    assert len({json.dumps(text) for text in texts}) == 4


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("narrow", [{}, {"top_k": 7}, {"top_p": 0.8}, {"top_k": 12, "top_p": 0.6}], ids=str)
def test_sampling_draws_each_token_as_often_as_transformers_would(narrow: dict[str, Any]) -> None:
    """The shares of 20,000 draws are near the probabilities that transformers' own processors compute."""
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(1)) * 3
    left = logits / 1.5
    if "top_k" in narrow:
        left = TopKLogitsWarper(narrow["top_k"])(None, left)
    if "top_p" in narrow:
        left = TopPLogitsWarper(narrow["top_p"])(None, left)
    chances = torch.softmax(left, -1)[0]
    rows = [sampling(i, **({"temperature": 1.5} | narrow)) for i in range(200)]

    drawn = torch.tensor([choose(logits.expand(200, -1).clone(), rows)[0] for _ in range(100)]).flatten()

    shares = torch.bincount(drawn, minlength=3000) / len(drawn)
    assert not shares[chances == 0].any()
    assert (shares - chances).abs().max() < 0.02


def test_a_temperature_near_zero_is_greedy() -> None:
    """Also where 32 bits round the temperature to 0: no division by zero."""
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    rows = [sampling(1, temperature=cold, top_k=50) for cold in (1e-4, 1e-300)]

    assert choose(logits.expand(2, -1).clone(), rows)[0] == [logits.argmax().item()] * 2


def test_top_p_is_exact_where_it_needs_more_candidates_than_usual() -> None:
    """Of 3,000 equal tokens top_p 0.9 leaves 2,700, more than the first cut."""
    rows = [sampling(i, top_p=0.9) for i in range(4000)]

    assert 1900 < len(set(choose(torch.zeros(1, 3000).expand(4000, -1), rows)[0])) <= 2701


@pytest.mark.peer("transformers")
@pytest.mark.parametrize(
    "parameters",
    [
        {"repetition_penalty": 1.4},
        {"min_new_tokens": 20},
        {"max_length": 30},
        {"repetition_penalty": 0.7, "min_new_tokens": 5},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 2, "repetition_penalty": 1.4, "min_new_tokens": 8},
        {"num_beams": 2, "do_sample": True, "seed": 4},
    ],
    ids=str,
)
def test_parameters_have_the_effect_that_they_have_in_generate(
    gpt2: TextGeneration, gpt2_reference: Any, parameters: dict[str, Any]
) -> None:
    dice = random.Random(3)
    texts = [prompt(dice, 20) for _ in range(3)]
    lengths = {} if "max_length" in parameters else {"max_new_tokens": 24}

    answer = [ask(gpt2, {"inputs": t, "parameters": parameters | lengths | {"return_full_text": False}}) for t in texts]

    for text, entries in zip(texts, answer, strict=True):
        arguments = dict(parameters)
        if (seed := arguments.pop("seed", None)) is not None:
            torch.manual_seed(seed)
        expected = generated(gpt2, gpt2_reference, text, **arguments, **lengths)
        assert [entry["generated_text"] for entry in entries] == expected


def test_answers_have_hugging_face_shapes(gpt2: TextGeneration) -> None:
    """A string gives a list, a list gives a list of lists, several sequences give several entries."""
    few = {"max_new_tokens": 3}
    one = ask(gpt2, {"inputs": "ab", "parameters": few})
    text = one[0]["generated_text"]

    assert one == [{"generated_text": text}]
    assert text.startswith("ab")
    assert ask(gpt2, {"inputs": ["ab"], "parameters": few}) == [one]
    assert ask(gpt2, {"inputs": ["ab", "ab"], "parameters": few}) == [one, one]
    short = ask(gpt2, {"inputs": "ab", "parameters": few | {"return_full_text": False}})
    assert short == [{"generated_text": text.removeprefix("ab")}]
    several = ask(gpt2, {"inputs": "ab", "parameters": few | {"num_return_sequences": 3, "do_sample": True}})
    assert [list(entry) for entry in several] == [["generated_text"]] * 3


@pytest.mark.parametrize(("accept", "content_type"), [("", "application/jsonlines"), ("text/event-stream",) * 2])
def test_streamed_pieces_join_to_the_whole_text(gpt2: TextGeneration, accept: str, content_type: str) -> None:
    """One event for each token, whose text is final although tokens are bytes, then one with the whole text."""
    dice = random.Random(6)
    for _ in range(12):
        body = {"inputs": prompt(dice), "parameters": {"max_new_tokens": 30, "return_full_text": False}}
        (whole,) = ask(gpt2, body)
        job = Asked(gpt2, body | {"stream": True}, accept=accept)
        gpt2.join(job)
        finish(gpt2, job)

        *tokens, last = job.events
        assert job.started == content_type
        assert "".join(event["token"]["text"] for event in tokens) == last["generated_text"] == whole["generated_text"]
        assert all(event["generated_text"] is None for event in tokens)
        assert last["generated_tokens"] == len(tokens)
        assert last["prompt_tokens"] == len(gpt2.engine.texts.tokenizer(body["inputs"])["input_ids"])
        assert last["finish_reason"] == ("length" if len(tokens) == 30 else "stop")


def test_the_first_token_leaves_in_the_step_that_made_it(gpt2: TextGeneration) -> None:
    job = Asked(gpt2, {"inputs": "ab", "stream": True, "parameters": {"max_new_tokens": 5}})
    gpt2.join(job)

    counts = []
    while not job.done:
        gpt2.step()
        counts.append(len(job.chunks))

    assert counts == [1, 2, 3, 4, 6]


def test_text_ends_before_a_stop_string_and_contains_no_part_of_it(gpt2: TextGeneration) -> None:
    """The text is that without stop strings, cut at the first of them, in a stream as in a whole answer."""
    dice = random.Random(7)
    tried = 0
    while tried < 10:
        body: dict[str, Any] = {"inputs": prompt(dice), "parameters": {"max_new_tokens": 40, "return_full_text": False}}
        text = ask(gpt2, body)[0]["generated_text"]
        if len(text) < 8:
            continue
        tried += 1
        at = dice.randint(1, len(text) - 4)
        stop = text[at : at + 3]
        body["parameters"]["stop"] = [stop, "never made"]
        expected = text[: text.index(stop)]

        assert ask(gpt2, body) == [{"generated_text": expected}]
        job = Asked(gpt2, body | {"stream": True})
        gpt2.join(job)
        finish(gpt2, job)
        assert "".join(event["token"]["text"] for event in job.events[:-1]) == expected
        assert job.events[-1]["finish_reason"] == "stop"


def test_bytes_of_one_character_are_held_back_until_it_is_whole(gpt2: TextGeneration) -> None:
    tokenizer = gpt2.engine.texts.tokenizer
    text = GeneratedText(gpt2.engine.texts, tokenizer("€")["input_ids"], [])
    tokens = tokenizer("a€🙂b")["input_ids"]

    pieces = [text.add([token], last=i == len(tokens) - 1) for i, token in enumerate(tokens)]

    assert [piece for piece in pieces if piece] == ["a", "€", "🙂", "b"]


def test_a_possible_beginning_of_a_stop_string_is_held_back_until_it_is_none(gpt2: TextGeneration) -> None:
    tokenizer = gpt2.engine.texts.tokenizer
    text = GeneratedText(gpt2.engine.texts, tokenizer("x")["input_ids"], ["\n\nEND", "zz"])

    pieces = [text.add(tokenizer(letter)["input_ids"]) for letter in "a\n\nb\n\nENzEz"]

    assert pieces == ["a", "", "", "\n\nb", "", "", "", "", "\n\nEN", "zE", ""]
    assert text.add([], last=True) == "z"


def test_text_that_was_held_back_is_sent_at_the_deadline(gpt2: TextGeneration) -> None:
    body: dict[str, Any] = {"inputs": "ab", "parameters": {"max_new_tokens": 6, "return_full_text": False}}
    text = ask(gpt2, body)[0]["generated_text"]
    body["parameters"] |= {"max_new_tokens": 40, "stop": [text[-1] + "never made"]}
    job = Asked(gpt2, body | {"stream": True})
    gpt2.join(job)
    for _ in range(6):
        gpt2.step()

    (request,) = gpt2.engine.scheduler
    request.end(request.sequences, "deadline")
    gpt2.leave(job)

    assert "".join(event["token"]["text"] for event in job.events[:-1]) == job.events[-1]["generated_text"] == text


@pytest.mark.peer("transformers")
def test_beams_end_at_a_stop_string(gpt2: TextGeneration, gpt2_reference: Any) -> None:
    """Beam search ends at a stop string as transformers does, and the text ends before it."""
    parameters = {"max_new_tokens": 12, "num_beams": 3, "return_full_text": False}
    (text,) = generated(gpt2, gpt2_reference, "ab", max_new_tokens=12, num_beams=3)
    stop = text[4:6]
    limits = {"max_new_tokens": 12, "num_beams": 3, "tokenizer": gpt2.engine.texts.tokenizer}
    (whole,) = generated(gpt2, gpt2_reference, "ab", stop_strings=[stop], **limits)
    answer = ask(gpt2, {"inputs": "ab", "parameters": parameters | {"stop": [stop]}})
    assert answer == [{"generated_text": whole[: whole.index(stop)]}]


@pytest.mark.parametrize("named", [None, END, [END]])
@pytest.mark.peer("openai", differs="OpenAI serves no models of users; vLLM 0.33 stops at the same tokens")
def test_a_text_ends_at_the_tokenizers_end_token_and_at_the_models(tmp_path: Path, named: Any) -> None:
    """A text ends at the end token that only the tokenizer names, and at those of generation_config.json."""
    handler = handler_of(save_toy(tmp_path, eos_token_id=named))
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 12, "return_full_text": False}}
    text = ask(handler, body)[0]["generated_text"]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": text[3]}))

    handler = handler_of(tmp_path)

    assert ask(handler, body) == [{"generated_text": text[: text.index(text[3])]}]
    ends = {handler.engine.texts.tokenizer.eos_token_id, *([END] if named else [])}
    assert handler.engine.end_tokens == ends
    streamed = Asked(handler, body | {"stream": True})
    handler.join(streamed)
    finish(handler, streamed)
    assert streamed.events[-1]["finish_reason"] == "stop"


def test_a_client_that_disconnects_takes_no_further_work(gpt2: TextGeneration) -> None:
    """In the queue, during the prefill or in the batch: its row has left before the next step."""
    stays = Asked(gpt2, {"inputs": "ab", "parameters": {"max_new_tokens": 30}})
    gpt2.join(stays)
    gpt2.step()
    decoder = gpt2.engine.decoder
    assert isinstance(decoder, Decoder)
    for steps in (0, 1, 5):
        goes = Asked(gpt2, {"inputs": "b" * 40, "stream": True})
        gpt2.join(goes)
        for _ in range(steps):
            gpt2.step()
        gpt2.leave(goes)
        told = len(goes.chunks)
        gpt2.step()
        assert len(goes.chunks) == told
        assert gpt2.room() == 7
        assert len(gpt2.engine.rows) == len(decoder.lengths) == 1
    gpt2.leave(stays)
    gpt2.step()
    assert not decoder.lengths


def test_a_long_prompt_is_prefilled_in_pieces_between_steps_of_the_batch(tmp_path: Path) -> None:
    """The other rows get a token in every step, and the text of the long prompt is that of `generate`."""
    directory = save_toy(tmp_path, n_positions=2000, max_position_embeddings=2000)
    handler, model = handler_of(directory), reference(directory)
    dice = random.Random(8)
    long = "".join(dice.choice("abcdef") for _ in range(3 * PREFILL_TOKENS + 5))
    few = {"max_new_tokens": 12, "min_new_tokens": 12}
    other = Asked(handler, {"inputs": "ab", "stream": True, "parameters": few})
    job = Asked(handler, {"inputs": long, "parameters": {"max_new_tokens": 6, "return_full_text": False}})
    handler.join(other)
    handler.step()
    handler.join(job)

    for _ in range(3):
        told = len(other.chunks)
        handler.step()
        assert len(other.chunks) == told + 1
        assert len(handler.engine.rows) == 1
    finish(handler, job, other)

    expected = generated(handler, model, long, max_new_tokens=6, do_sample=False)
    assert [entry["generated_text"] for entry in job.answer] == expected


def test_a_request_that_shared_a_prefill_with_a_cancelled_one_is_answered(tmp_path: Path) -> None:
    directory = save_toy(tmp_path, n_positions=2000, max_position_embeddings=2000)
    handler = handler_of(directory)
    body = {"inputs": "a" * (PREFILL_TOKENS + 9), "parameters": {"max_new_tokens": 4}}
    alone = ask(handler, body)
    first, second = Asked(handler, body), Asked(handler, body)

    handler.join(first)
    handler.join(second)
    handler.step()
    handler.leave(first)
    finish(handler, second)

    assert second.answer == alone


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that begins at 0 and advances by a millisecond at each call."""
    ticks = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(ticks) / 1000)


def test_at_the_deadline_the_text_so_far_is_the_answer(gpt2: TextGeneration, ticking: None) -> None:
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 100, "return_full_text": False, "min_new_tokens": 100}}
    whole = ask(gpt2, body)[0]["generated_text"]
    soon = time.monotonic() + 0.05
    job = Asked(gpt2, body, deadline=soon)
    stream = Asked(gpt2, body | {"stream": True}, deadline=0, stream_deadline=soon)
    expired = Asked(gpt2, body, deadline=0)

    for each in (job, stream, expired):
        gpt2.join(each)
    finish(gpt2, job, stream, expired)

    assert job.answer[0]["finish_reason"] == "deadline"
    assert 0 < len(job.answer[0]["generated_text"]) < len(whole)
    assert whole.startswith(job.answer[0]["generated_text"])
    assert expired.answer == [{"generated_text": "", "finish_reason": "deadline"}]
    assert stream.events[-1]["finish_reason"] == "deadline"
    assert "".join(event["token"]["text"] for event in stream.events[:-1]) == stream.events[-1]["generated_text"]
    assert gpt2.room() == 8


def test_beams_end_at_the_deadline_too(gpt2: TextGeneration, ticking: None) -> None:
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 150, "min_new_tokens": 150, "num_beams": 2}}
    job = Asked(gpt2, body, deadline=time.monotonic() + 0.05)
    gpt2.join(job)

    finish(gpt2, job)

    assert job.answer[0]["finish_reason"] == "deadline"
    assert len(job.answer[0]["generated_text"]) < 152


def test_rows_are_counted_not_requests(gpt2: TextGeneration) -> None:
    parameters = {"num_return_sequences": 3, "do_sample": True, "max_new_tokens": 2}
    jobs = [Asked(gpt2, {"inputs": ["a", "b"], "parameters": parameters}), Asked(gpt2, {"inputs": "c"})]

    gpt2.join(jobs[0])
    assert gpt2.room() == 2
    gpt2.join(jobs[1])
    assert gpt2.room() == 1
    gpt2.leave(jobs[1])
    finish(gpt2, jobs[0])

    assert gpt2.room() == 8
    assert [len(entries) for entries in jobs[0].answer] == [3, 3]


def test_after_a_step_that_raised_the_next_caller_is_served(
    gpt2: TextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 4}}
    alone = ask(gpt2, body)
    gpt2.join(Asked(gpt2, body))
    gpt2.step()

    with monkeypatch.context() as patch:
        patch.setattr(gpt2.engine.decoder, "step", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gpt2.step()

    assert gpt2.room() == 8
    assert ask(gpt2, body) == alone


def test_no_memory_for_a_prompt_fails_that_request_only(gpt2: TextGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 6}}
    alone = ask(gpt2, body)
    stays, fails = Asked(gpt2, body), Asked(gpt2, body)
    gpt2.join(stays)
    gpt2.step()
    gpt2.join(fails)

    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(gpt2.engine.decoder, "advance", full)
        gpt2.step()
    finish(gpt2, stays)

    assert isinstance(fails.failed, DoesNotFit)
    assert stays.answer == alone


def test_no_memory_for_a_token_is_a_507(gpt2: TextGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2.join(Asked(gpt2, {"inputs": "ab"}))
    gpt2.step()

    def full(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(gpt2.engine.decoder, "step", full)
        with pytest.raises(DoesNotFit):
            gpt2.step()

    assert gpt2.room() == 8


def test_several_end_tokens_end_the_text(tmp_path: Path) -> None:
    handler = handler_of(save_toy(tmp_path))
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 20, "return_full_text": False}, "stream": True}
    job = Asked(handler, body)
    handler.join(job)
    finish(handler, job)
    third = job.events[2]["token"]["id"]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, third]}))
    changed = handler_of(tmp_path)

    job = Asked(changed, body)
    changed.join(job)
    finish(changed, job)

    assert [event["token"]["id"] for event in job.events[:-1]][-1] == third
    assert job.events[-1]["finish_reason"] == "stop"


def test_the_models_own_defaults_hold_where_the_request_has_no_value(tmp_path: Path) -> None:
    save_toy(tmp_path)
    defaults = {"max_new_tokens": 7, "repetition_penalty": 1.5, "do_sample": True, "top_k": 3, "temperature": 0.5}
    (tmp_path / "generation_config.json").write_text(json.dumps(defaults))

    settings = handler_of(tmp_path).decode(Asked(handler_of(tmp_path), {"inputs": "ab"}).request).prompts[0].settings

    assert (settings.max_new_tokens, settings.repetition_penalty, settings.do_sample) == (7, 1.5, True)
    assert (settings.top_k, settings.temperature) == (3, 0.5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_sets_the_precision(directories: dict[str, Path], dtype: str) -> None:
    handler = handler_of(directories["llama"], options={"dtype": dtype})

    assert handler.engine.model.dtype is getattr(torch, dtype)
    assert ask(handler, {"inputs": ["ab", "b"], "parameters": {"max_new_tokens": 3}})


def test_importing_the_handler_starts_nothing_that_a_fork_loses() -> None:
    """No thread, no tensor, no CUDA: the forkserver imports it, and then forks.

    Except for the threads of OpenBLAS (numpy and scipy), which end before a fork; the test turns them off.
    """
    program = (
        "import gc, threading, os, torch\n"
        "import serve.handlers.generation.handler\n"
        "tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]\n"
        "print(len(os.listdir('/proc/self/task')), len(tensors), torch.cuda.is_initialized())\n"
    )

    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)

    assert done.stdout.split() == ["1", "0", "False"]
