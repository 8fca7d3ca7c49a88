"""Beam search in the batch: beams are rows, and the texts are those of transformers' `generate`."""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from serve.errors import BadRequest
from serve.handlers.generation import engine
from serve.handlers.generation.decoder import Decoder
from serve.handlers.generation.handler import TextGeneration
from serve.handlers.generation.passes import pass_of
from tests.unit.test_generation_toys import END, TOYS, Asked, ask, finish, handler_of, reference, save_toy


@pytest.mark.parametrize("name", TOYS)
@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_a_row_with_the_content_of_another_row_goes_on_as_that_row(name: str, tmp_path: Path) -> None:
    model = reference(save_toy(tmp_path, name))
    dice = torch.Generator().manual_seed(3)
    first, second = (torch.randint(0, 256, (length,), generator=dice).tolist() for length in (12, 9))
    decoder = Decoder(pass_of(model))

    def alone(tokens: list[int]) -> torch.Tensor:
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0, -1]
        return logits

    prefill = decoder.begin([first, second])
    assert decoder.advance(prefill, 100) is not None
    decoder.join(prefill)
    decoder.fork(0, 2)
    histories = [first, second, first, first]
    for tokens in ([1, 2, 3, 4], [5, 6, 7, 8]):
        histories = [[*history, token] for history, token in zip(histories, tokens, strict=True)]
        decoder.step(tokens)
    decoder.rearrange([(3, 0, len(first)), (2, 1, 0)])
    histories = [histories[0], histories[1], histories[1], histories[0]]
    tokens = [9, 10, 11, 12]

    logits = decoder.step(tokens)

    for row, history in enumerate(histories):
        torch.testing.assert_close(logits[row], alone([*history, tokens[row]]), atol=1e-4, rtol=1e-4)
    decoder.leave(0)
    assert decoder.lengths == [len(histories[row]) + 1 for row in (3, 1, 2)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def handler(directory: Path) -> TextGeneration:
    return handler_of(directory, max_batch=12)


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return reference(directory)


# Beginnings of parameters that only transformers' own objects implement: they are drawn less often.
UNUSUAL = ("ex", "se", "en", "do")


def settings(dice: random.Random) -> dict[str, Any]:
    """Random parameters, each left out half of the time."""
    beams = dice.randint(2, 8)
    longest = dice.randint(1, 24)

    def byte() -> int:
        return dice.randrange(256)

    choices: dict[str, Any] = {
        "num_return_sequences": dice.randint(1, beams),
        "length_penalty": dice.choice([-1.0, 0.0, 0.5, 2.0]),
        "early_stopping": dice.choice([True, False, "never"]),
        "no_repeat_ngram_size": dice.randint(1, 4),
        "repetition_penalty": dice.choice([0.8, 1.3]),
        "min_new_tokens": dice.randint(1, longest),
        "forced_bos_token_id": byte(),
        "forced_eos_token_id": dice.choice([END, [END, byte()]]),
        "suppress_tokens": [byte() for _ in range(3)],
        "begin_suppress_tokens": [byte() for _ in range(60)],
        "bad_words_ids": [[byte()], [byte(), byte()]],
        "eos_token_id": [END, *(byte() for _ in range(dice.randint(0, 12)))],
        "renormalize_logits": True,
        "exponential_decay_length_penalty": [dice.randint(0, 4), 1.2],
        "sequence_bias": [[[byte()], 3.0], [[byte(), byte()], -2.0]],
        "encoder_no_repeat_ngram_size": 1,
        "do_sample": True,
    }
    asked = {name: value for name, value in choices.items() if dice.random() < (0.15 if name[:2] in UNUSUAL else 0.35)}
    asked |= {"num_beams": beams, "max_new_tokens": longest}
    return asked | ({"seed": dice.randrange(1000), "top_k": 40} if "do_sample" in asked else {})


def by_generate(handler: TextGeneration, model: Any, text: str, asked: dict[str, Any]) -> list[str]:
    tokenizer = handler.engine.texts.tokenizer
    arguments = {name: value for name, value in asked.items() if name != "seed"}
    if bias := arguments.get("sequence_bias"):
        arguments["sequence_bias"] = {tuple(tokens): value for tokens, value in bias}
    ends = arguments.get("eos_token_id", [END])
    inputs = tokenizer(text, return_tensors="pt")
    torch.manual_seed(asked.get("seed", 0))
    rows = model.generate(**inputs, pad_token_id=257, **{"do_sample": False} | arguments)[
        :, inputs.input_ids.shape[1] :
    ]
    # An end token is no text, and the padding behind it is none.
    made = [[token for token in row if token not in {*ends, 257}] for row in rows.tolist()]
    return list(tokenizer.batch_decode(made, skip_special_tokens=True))


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("seed", range(4))
def test_a_search_gives_the_texts_of_generate_alone_and_in_a_mixed_batch(
    seed: int, handler: TextGeneration, model: Any
) -> None:
    """Random parameters; searches join and leave beside greedy and sampling rows, one in each step."""
    dice = random.Random(seed)
    waiting, told = [], []
    for number in range(30):
        text = "".join(dice.choice("abc ") for _ in range(dice.choice([1, 1, 3, 20])))
        if number % 3 == 2:
            asked = {"max_new_tokens": dice.randint(1, 20), "do_sample": dice.random() < 0.3, "seed": 1, "top_k": 1}
        else:
            asked = settings(dice)
        body = {"inputs": text, "parameters": asked | {"return_full_text": False}}
        told.append(by_generate(handler, model, text, asked))
        waiting.append(body)
        if number % 5 == 0:
            assert texts_of(ask(handler, body)) == told[-1], (text, asked)
    jobs: list[Asked] = []
    while len(jobs) < len(waiting):
        job = Asked(handler, waiting[len(jobs)])
        if handler.room() >= job.item.rows:
            jobs.append(job)
            handler.join(job)
        handler.step()
    finish(handler, *jobs)

    for job, body, expected in zip(jobs, waiting, told, strict=True):
        assert texts_of(job.answer) == expected, body


def texts_of(answer: Any) -> list[str]:
    return [entry["generated_text"] for entry in answer]


def running(handler: TextGeneration, *bodies: dict[str, Any]) -> list[Asked]:
    jobs = [Asked(handler, body) for body in bodies]
    for job in jobs:
        handler.join(job)
    return jobs


def test_a_search_whose_client_disconnects_leaves_before_the_next_token(handler: TextGeneration) -> None:
    """In the queue, during the prefill or in the batch, and the other search goes on as if it had been alone."""
    stays = {"inputs": "ab", "parameters": {"num_beams": 4, "max_new_tokens": 30, "min_new_tokens": 30}}
    told = ask(handler, stays)
    for steps in (0, 1, 6):
        job, goes = running(handler, stays, stays | {"inputs": "b" * 40})
        for _ in range(steps):
            handler.step()
        handler.leave(goes)
        handler.step()
        assert len(handler.engine.rows) == 4
        assert handler.room() == 8
        finish(handler, job)
        assert job.answer == told


@pytest.mark.peer("transformers")
def test_a_search_returns_the_best_text_so_far_at_its_deadline(
    handler: TextGeneration, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `generate` does at its maximum length: here of five tokens, each of which takes a second."""
    clock = [0.0]
    step = handler.engine.decoder.step

    def slow(tokens: Sequence[int]) -> torch.Tensor:
        clock[0] += 1
        return step(tokens)

    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(handler.engine.decoder, "step", slow)
    for beams in (2, 3, 8):
        asked = {"num_beams": beams, "num_return_sequences": 2, "min_new_tokens": 5}
        told = by_generate(handler, model, "the cat", asked | {"max_new_tokens": 5})
        body = {"inputs": "the cat", "parameters": asked | {"max_new_tokens": 40, "return_full_text": False}}
        other, job = running(handler, {"inputs": "ab", "parameters": {"max_new_tokens": 20}}, body)
        job.request = msgspec.structs.replace(job.request, deadline=clock[0] + 4.5)

        finish(handler, job)

        assert texts_of(job.answer) == told
        assert {entry["finish_reason"] for entry in job.answer} == {"deadline"}
        assert not other.done
        finish(handler, other)


def test_a_search_that_waits_at_its_deadline_returns_what_it_has(handler: TextGeneration) -> None:
    """Between two tokens, and before the first."""
    limits = {"max_new_tokens": 40, "min_new_tokens": 40}
    body = {"inputs": "the cat", "parameters": limits | {"num_beams": 3, "return_full_text": False}}
    for steps, least in ((0, 0), (3, 3)):
        (job,) = running(handler, body)
        for _ in range(steps):
            handler.step()
        job.request = msgspec.structs.replace(job.request, deadline=time.monotonic())
        handler.step()

        assert [entry["finish_reason"] for entry in job.answer] == ["deadline"]
        assert bool(job.answer[0]["generated_text"]) == bool(least)
        assert handler.room() == 12


def test_more_beams_of_one_request_than_rows_run_in_turns(directory: Path, handler: TextGeneration) -> None:
    small = handler_of(directory, max_batch=4)
    bodies = [
        {"inputs": ["a", "bc", "def", "g"], "parameters": {"num_beams": beams, "max_new_tokens": 9}}
        for beams in (4, 3, 2)
    ]
    jobs = running(small, *bodies)
    finish(small, *jobs)

    for job, body in zip(jobs, bodies, strict=True):
        assert job.answer == ask(handler, body)


@pytest.mark.parametrize("beams", [1, 2])
def test_parameters_with_which_transformers_fails_fail_their_request_only(beams: int, handler: TextGeneration) -> None:
    """A draw from tokens that are all forbidden, with two prompts."""
    broken = {"num_beams": beams, "do_sample": True, "typical_p": 0.5, "suppress_tokens": list(range(258))}
    plain = {"inputs": "ab", "parameters": {"max_new_tokens": 9, "num_beams": 2}}
    other, job = running(handler, plain, {"inputs": ["a", "b"], "parameters": broken})

    finish(handler, other, job)

    assert other.answer == ask(handler, plain)
    assert isinstance(job.failed, BadRequest)
    assert handler.room() == 12
