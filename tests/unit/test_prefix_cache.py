"""Texts that begin alike: what is computed once is found, is right, stays within its limit, and changes no token."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serve.handlers.generation.handler import TextGeneration
from serve.handlers.generation.prefix_cache import LEAST, PrefixCache, common
from serve.handlers.generation.sequence import GeneratedSequence
from tests.unit.test_generation_toys import TOYS, Asked, ask, finish, handler_of, reference, save_toy

SHAPES = ((1, 2), (1, 2), (2, 3))  # heads and size of each storage
COLUMN = 4 * sum(heads * size for heads, size in SHAPES)  # bytes


def sequences(handler: Any) -> list[GeneratedSequence]:
    """The rows of the batch; the tests search with no beams."""
    return [row for row in handler.engine.rows if isinstance(row, GeneratedSequence)]


def columns(text: list[int], start: int, end: int) -> list[Tensor]:
    """What a model would compute: each column depends on all tokens up to it."""
    values = [float(hash(tuple(text[: i + 1])) % 1000) for i in range(start, end)]
    return [
        torch.tensor(values)[None, :, None].expand(heads, -1, size) + 1000 * number
        for number, (heads, size) in enumerate(SHAPES)
    ]


beginnings = st.lists(st.integers(0, 1), max_size=3 * LEAST)
texts = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 120), beginnings), min_size=1, max_size=12)


@settings(deadline=None)
@given(beginnings, texts, st.sampled_from((0, 50, 200, 10_000)))
def test_what_is_found_is_what_was_computed(trunk: list[int], asked: Any, room: int) -> None:
    """For texts that share beginnings: the columns are those of the tokens, and the bytes those of the columns."""
    cache = PrefixCache(room * COLUMN)
    kept: list[list[int]] = []
    for copies, cut, end in asked:
        text = [*(trunk * copies)[:cut], *end]
        found = cache.longest(text)
        assert found <= max((common(text, each) for each in kept), default=0)
        read = dict(cache.columns(text[:found]))
        got = [torch.cat([read[start][i] for start in sorted(read)], 1) for i in range(len(SHAPES))] if read else []
        right = columns(text, 0, found)
        assert all(torch.equal(one, other) for one, other in zip(got, right, strict=bool(found)))

        cache.keep(text, lambda start, end, text=text: columns(text, start, end))  # type: ignore[misc]

        kept.append(text)
        held = [tensor for node in cache._nodes for tensor in node.columns]
        # Views would hold more memory than they show.
        assert cache.bytes == sum(each.untyped_storage().nbytes() for each in held) <= cache.limit
        assert cache.longest(text) >= min(len(text), room) - LEAST or len(text) < LEAST
    cache.free()
    assert (cache.bytes, cache.longest(kept[-1])) == (0, 0)


def test_the_least_recently_used_end_is_dropped_first() -> None:
    """A common beginning stays while texts that go on from it come and go."""
    cache = PrefixCache(100 * COLUMN)
    begin = [1] * 40

    def keep(text: list[int]) -> None:
        cache.keep(text, lambda start, end: columns(text, start, end))

    first, second, third = ([*begin, *[token] * 35] for token in (2, 3, 4))
    keep(first)
    keep(second)
    keep(third)

    assert [cache.longest(each) for each in (first, second, third)] == [40, 40, 75]


def test_texts_of_another_space_are_not_found() -> None:
    cache = PrefixCache(1000 * COLUMN)
    text = list(range(50))
    cache.keep(text, lambda start, end: columns(text, start, end), "a")

    assert [cache.longest(text, space) for space in ("a", "", "b")] == [50, 0, 0]


POSITIONS = 400


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    longer = {"n_positions": POSITIONS, "max_position_embeddings": POSITIONS}
    return {name: save_toy(tmp_path_factory.mktemp("toy"), name, **longer) for name in TOYS}


def serving(directory: Path, megabytes: int) -> TextGeneration:
    return handler_of(directory, max_batch=4, options={"prefix_cache_mb": megabytes})


@pytest.mark.peer("transformers")
@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("columns", [60, 300, 100_000], ids=["hardly any room", "little room", "room"])
def test_reused_columns_change_no_token(name: str, columns: int, directories: dict[str, Path]) -> None:
    """Chats share beginnings and go on from their answers, join and leave; each text is that of a lone `generate`."""
    handler, model, dice = serving(directories[name], 1), reference(directories[name]), random.Random(columns)
    steps: Any = handler.engine.decoder
    ask(handler, {"inputs": "a" * LEAST, "parameters": {"max_new_tokens": 1}})
    steps.prefixes.limit = steps.prefixes.bytes // LEAST * columns
    trunk = "".join(dice.choice("abcdefgh") for _ in range(90))
    chats = [trunk[: dice.choice((0, 50, 90))] + "".join(dice.choice("abc") for _ in range(9)) for _ in range(5)]
    running: dict[int, tuple[Asked, str, int]] = {}
    done: list[tuple[str, int, str]] = []
    reused = 0
    while len(done) < 16 or running:
        free = [i for i in range(len(chats)) if i not in running]
        if free and handler.room() and len(done) + len(running) < 16 and dice.random() < 0.5:
            i, most = dice.choice(free), dice.randint(1, 12)
            body = {"inputs": chats[i], "parameters": {"max_new_tokens": most, "return_full_text": False}}
            job = Asked(handler, body)
            handler.join(job)
            running[i] = job, chats[i], most
        if running and dice.random() < 0.1:  # a client that disconnects
            handler.leave(running.pop(dice.choice(list(running)))[0])
        reused += sum(row.reused for row in sequences(handler) if len(row.tokens) == 1)
        handler.step()
        for i, (job, asked, most) in list(running.items()):
            if job.done:
                (entry,) = job.answer
                done.append((asked, most, entry["generated_text"]))
                chats[i] = asked + entry["generated_text"] + dice.choice("xyz")
                if len(chats[i]) > POSITIONS - 40:
                    chats[i] = trunk
                del running[i]
        assert steps.prefixes.bytes <= steps.prefixes.limit

    assert reused > 100
    for asked, most, text in done:
        ids = handler.engine.texts.tokenizer(asked, return_tensors="pt")["input_ids"]
        output = model.generate(ids, max_new_tokens=most, do_sample=False, pad_token_id=256)
        assert text == handler.engine.texts.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def usage(handler: TextGeneration, prompt: Any, **fields: Any) -> Any:
    body = {"prompt": prompt, "max_tokens": 2, "temperature": 0} | fields
    return ask(handler, body, path="/v1/completions")["usage"]


def test_the_caller_is_told_what_was_not_computed_again(directories: dict[str, Path]) -> None:
    """By OpenAI's field, in the last object of a stream, and in a header; nothing of another cache_salt."""
    handler = serving(directories["gpt2"], 1)
    prompt = "the same beginning, for all of them"
    first = usage(handler, prompt)

    again = usage(handler, prompt)
    longer = usage(handler, prompt + " and more")
    several = usage(handler, [prompt, prompt + "?"])
    salted = usage(handler, prompt, cache_salt="s")
    echoed = usage(handler, prompt, echo=True, logprobs=1)
    streamed = Asked(handler, {"inputs": prompt, "parameters": {"max_new_tokens": 2}, "stream": True})
    whole = Asked(handler, {"inputs": prompt, "parameters": {"max_new_tokens": 2}})
    for job in (streamed, whole):
        handler.join(job)
        finish(handler, job)

    count = len(prompt)
    told = [each["prompt_tokens_details"]["cached_tokens"] for each in (first, again, longer, several, salted, echoed)]
    assert told == [0, count - 1, count, 2 * (count - 1), 0, 0]
    assert again["prompt_tokens"] == count
    assert streamed.events[-1]["cached_tokens"] == count - 1
    assert whole.replied is not None
    assert whole.replied.headers["X-Cached-Tokens"] == str(count - 1)


def test_a_running_row_is_reused_before_it_ends(directories: dict[str, Path]) -> None:
    handler = serving(directories["llama"], 1)
    body = {"inputs": "b" * 50, "parameters": {"max_new_tokens": 20, "min_new_tokens": 20, "return_full_text": False}}
    first, second = Asked(handler, body), Asked(handler, body)
    handler.join(first)
    handler.step()
    handler.join(second)
    handler.step()

    assert [row.reused for row in sequences(handler)] == [0, 49]
    finish(handler, first, second)
    assert first.answer == second.answer


def test_without_room_nothing_is_kept_and_nothing_is_reused(directories: dict[str, Path]) -> None:
    handler = serving(directories["gpt2"], 0)
    body = {"inputs": "c" * 60, "parameters": {"max_new_tokens": 3}}

    for _ in range(2):
        job = Asked(handler, body | {"stream": True})
        handler.join(job)
        finish(handler, job)

    assert job.events[-1]["cached_tokens"] == 0
    assert handler.caches is not None
    assert handler.caches.bytes == 0


def test_the_memory_is_given_back_while_requests_run(directories: dict[str, Path]) -> None:
    """The host may ask for it between any two steps."""
    handler = serving(directories["gpt2"], 1)
    prompt = "d" * 70
    expected = ask(handler, {"inputs": prompt, "parameters": {"max_new_tokens": 9}})
    assert handler.caches is not None
    assert handler.caches.bytes > 70 * 2 * 2 * 32 * 4
    job = Asked(handler, {"inputs": prompt, "parameters": {"max_new_tokens": 9}})
    handler.join(job)
    handler.step()

    handler.caches.free()

    assert handler.caches.bytes == 0
    finish(handler, job)
    assert json.dumps(job.answer) == json.dumps(expected)
