"""Prompt lookup: guessed tokens save steps and change none."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import BadRequest
from serve.handlers.generation.lookup import PromptLookup
from tests.unit.test_generation_toys import POSITIONS, TOYS, Asked, ask, finish, handler_of, reference, save_toy


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 8), st.integers(1, 4), st.integers(0, 9))
def test_a_guess_follows_the_longest_equal_end_of_the_text(text: list[int], most: int, ngram: int, room: int) -> None:
    lookup = PromptLookup(text[:1], most, ngram)
    for token in text[1:]:
        lookup.add(token)

    guess = lookup.guess(room)

    def equal(place: int) -> int:
        """The length, up to `ngram`, of the end of the text that also ends at this place."""
        lengths = range(min(ngram, place + 1), 0, -1)
        return next((n for n in lengths if text[place + 1 - n : place + 1] == text[-n:]), 0)

    longest = max(((equal(place), place) for place in range(len(text) - 1)), default=(0, 0))
    right = (text[longest[1] + 1 :] * most)[: min(most, room)] if longest[0] else []
    assert guess == right


def test_guesses_shrink_while_they_are_wrong_and_grow_while_they_are_right() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8, 9] * 2, 8, 2)
    sizes = []
    for right in (0, 0, 1, 2, 4, 8):
        sizes.append(len(lookup.guess(100)))
        lookup.checked(sizes[-1], right)

    assert sizes == [8, 1, 1, 2, 4, 8]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_toy(tmp_path_factory.mktemp("toy"), name) for name in TOYS}


def counted(handler: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows in each pass that makes tokens, from now on."""
    passes: list[int] = []
    for name in ("step", "extend"):
        made = getattr(handler.engine.decoder, name)

        def noted(tokens: Any, made: Any = made) -> Any:
            passes.append(len(tokens))
            return made(tokens)

        monkeypatch.setattr(handler.engine.decoder, name, noted)
    return passes


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("name", TOYS)
def test_tokens_are_those_without_guesses(
    name: str, directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that guess, that do not, and that sample or have penalties beside, up to the last position."""
    handler, model, dice = handler_of(directories[name], max_batch=6), reference(directories[name]), random.Random(4)
    tokenizer = handler.engine.texts.tokenizer
    ways: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.2},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": [[97, 98], [99]]},
        {"do_sample": True, "seed": 3, "top_k": 5},
        {"stop": ["e"]},
    ]
    asked: list[dict[str, Any]] = []
    for i in range(18):
        some = "".join(dice.choice("abcdef") for _ in range(dice.randint(4, 12)))
        text = (some * 9)[: dice.randint(10, 60)]
        most = POSITIONS - len(text) if i in (6, 11) else dice.randint(1, 60)
        parameters = {"max_new_tokens": most, "return_full_text": False} | ways[i % 6]
        asked.append({"inputs": text, "parameters": parameters})
    plain = [ask(handler, body) for body in asked]
    guess = {"prompt_lookup_num_tokens": 7}
    jobs = [
        Asked(handler, {"inputs": body["inputs"], "parameters": body["parameters"] | (guess if i % 3 else {})})
        for i, body in enumerate(asked)
    ]
    passes = counted(handler, monkeypatch)
    waiting = list(jobs)
    while waiting:
        if handler.room() and dice.random() < 0.7:
            handler.join(waiting.pop(0))
        handler.step()
    finish(handler, *jobs)

    for body, job, expected in zip(asked, jobs, plain, strict=True):
        assert job.answer == expected
        if body["parameters"].keys() == {"max_new_tokens", "return_full_text"}:
            ids = tokenizer(body["inputs"], return_tensors="pt")["input_ids"]
            most = body["parameters"]["max_new_tokens"]
            output = model.generate(ids, max_new_tokens=most, do_sample=False, pad_token_id=256)
            assert [tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)] == [
                entry["generated_text"] for entry in expected
            ]
    assert passes


def test_a_text_that_repeats_itself_takes_fewer_passes(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token of a stream is still an event of its own."""
    handler = handler_of(directories["gpt2"])
    parameters = {"max_new_tokens": 60, "min_new_tokens": 60, "suppress_tokens": [t for t in range(258) if t != 97]}
    body = {"inputs": "aaaa", "parameters": parameters | {"prompt_lookup_num_tokens": 10}, "stream": True}
    passes = counted(handler, monkeypatch)
    job = Asked(handler, body)
    handler.join(job)
    finish(handler, job)

    assert len(passes) < 10
    assert [event["token"]["id"] for event in job.events if event["token"]] == [97] * 60


def test_a_client_that_disconnects_between_two_guessed_tokens(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rows keep their own text."""
    handler = handler_of(directories["gpt2"])
    parameters = {"max_new_tokens": 40, "min_new_tokens": 40, "suppress_tokens": [t for t in range(258) if t != 97]}
    body = {"inputs": "aaaa", "parameters": parameters | {"prompt_lookup_num_tokens": 10}, "stream": True}
    other = {"inputs": "bcbcbc", "parameters": {"max_new_tokens": 30, "prompt_lookup_num_tokens": 5}}
    expected = ask(handler, other)
    quits, stays = Asked(handler, body), Asked(handler, other)
    send = quits.send

    def hung_up(chunk: bytes) -> None:
        send(chunk)
        if len(quits.chunks) == 7:
            handler.leave(quits)

    monkeypatch.setattr(quits, "send", hung_up)
    handler.join(quits)
    handler.join(stays)
    finish(handler, stays)

    assert stays.answer == expected
    assert handler.room() == handler.engine.max_batch


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prompt_lookup_num_tokens": 4, "num_beams": 2}, "cannot be combined with num_beams"),
        ({"prompt_lookup_num_tokens": -1}, "a whole number from 0 to 1,024"),
        ({"prompt_lookup_num_tokens": 2.5}, "a whole number from 0 to 1,024"),
        ({"max_matching_ngram_size": 10**9}, "a whole number from 0 to 1,024"),
    ],
)
def test_what_cannot_be_done_is_refused(directories: dict[str, Path], parameters: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Asked(handler_of(directories["gpt2"]), {"inputs": "a", "parameters": parameters})


def test_the_models_own_config_guesses_where_the_batch_makes_the_text(
    tmp_path: Path, directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And changes nothing where `generate` does, which takes one prompt only with it."""
    plain, directory = handler_of(directories["gpt2"]), save_toy(tmp_path)
    config = json.loads((directory / "generation_config.json").read_text())
    (directory / "generation_config.json").write_text(json.dumps(config | {"prompt_lookup_num_tokens": 6}))
    handler = handler_of(directory)
    passes = counted(handler, monkeypatch)
    only = {"max_new_tokens": 30, "suppress_tokens": [t for t in range(258) if t != 97]}
    bodies = [{"inputs": text, "parameters": {"max_new_tokens": 8, "guidance_scale": 1.5}} for text in ("abab", "xyxy")]

    assert ask(handler, {"inputs": "aaaa", "parameters": only}) == ask(plain, {"inputs": "aaaa", "parameters": only})
    assert len(passes) < 10
    jobs = [Asked(handler, body) for body in bodies]
    for job in jobs:
        handler.join(job)
    finish(handler, *jobs)
    assert [job.answer for job in jobs] == [ask(plain, body) for body in bodies]
