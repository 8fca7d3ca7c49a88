"""A long prompt is computed in pieces whose size follows the time, so that running rows do not wait long for it."""

import random
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from serve.handlers.generation import engine
from serve.handlers.generation.pieces import LEAST, SECONDS, SIZES, USUAL, Pieces, Waiting
from tests.unit.test_generation_toys import Asked, finish, handler_of, save_toy


def waiting(streams: bool = False, tokens: int = 1000, waited: float = 0.0, left: float = 1000.0) -> Waiting:
    return Waiting(streams, tokens, waited, left)


STREAM = (waiting(streams=True),)


def prefill(pieces: Pieces, prompt: int, step: float, overhead: float, column: float, context: float) -> list[float]:
    """The time of each piece of a prompt beside a stream, on a machine with these seconds: for a step of the rows, a
    pass, a column, and a column of context that a column attends to."""
    at, times = 0, []
    while at < prompt:
        pieces.stepped(step)
        allowed = pieces.allowed(STREAM)
        count = min(pieces.tokens(allowed, beside_rows=True), prompt - at)
        seconds = overhead + count * (column + context * (at + count / 2))
        pieces.computed(count, seconds, allowed)
        times.append(seconds)
        at += count
    return times


@pytest.mark.parametrize(
    ("step", "overhead", "column"),
    [
        pytest.param(0.030, 0.020, 0.001, id="GPT-2 on two cores"),
        pytest.param(0.012, 0.012, 0.0002, id="a small model"),
        pytest.param(0.300, 0.250, 0.02, id="a large model"),
        pytest.param(0.200, 0.020, 0.001, id="many rows"),
        pytest.param(0.010, 0.001, 0.0001, id="cheap passes"),
    ],
)
@pytest.mark.parametrize("context", [0.0, 1e-3])
def test_a_running_row_waits_at_most_three_steps_more(
    step: float, overhead: float, column: float, context: float
) -> None:
    """On machines of any speed, also as columns grow dearer with the text before them; on average not much less."""
    pieces = Pieces()
    prefill(pieces, 200, step, overhead, column, column * context)  # an earlier prompt

    times = prefill(pieces, 3000, step, overhead, column, column * context)

    smallest = overhead + LEAST * (column * (1 + 3000 * context))
    assert max(times) <= max(3 * step, smallest)
    assert median(times) >= min(step, smallest)


def test_a_slow_piece_by_chance_costs_a_few_small_pieces_only() -> None:
    pieces = Pieces()
    prefill(pieces, 1000, 0.03, 0.01, 0.001, 0.0)
    allowed = pieces.allowed(STREAM)
    usual = pieces.tokens(allowed, beside_rows=True)

    pieces.computed(usual, 10 * 0.06, allowed)
    assert LEAST <= pieces.tokens(allowed, beside_rows=True) <= usual / 2
    prefill(pieces, 200, 0.03, 0.01, 0.001, 0.0)

    assert pieces.tokens(allowed, beside_rows=True) > usual / 2


def test_pieces_are_large_while_no_row_waits() -> None:
    """And the first piece beside a stream is small, even if nothing is known of such pieces."""
    pieces = Pieces()
    assert pieces.allowed(()) == SECONDS
    assert pieces.tokens(SECONDS, beside_rows=False) == USUAL
    assert pieces.tokens(pieces.allowed(STREAM), beside_rows=True) == LEAST
    assert pieces.tokens(SECONDS, beside_rows=True) == LEAST

    pieces.computed(USUAL, 0.02, SECONDS)
    assert SIZES[-1] >= pieces.tokens(SECONDS, beside_rows=False) > USUAL
    assert pieces.tokens(SECONDS, beside_rows=True) == pieces.tokens(SECONDS, beside_rows=False)
    pieces.stepped(0.01)
    assert pieces.tokens(pieces.allowed(STREAM), beside_rows=True) <= 0.01 * 2 / (0.02 / USUAL) / 2 + 1
    pieces.computed(SIZES[-1], 20.0, SECONDS)

    assert pieces.tokens(SECONDS, beside_rows=False) == USUAL
    assert pieces.tokens(SECONDS, beside_rows=True) < USUAL


@pytest.mark.parametrize("step", [0.005, 0.03, 0.1, 0.3])
def test_requests_that_do_not_stream_wait_for_large_pieces_but_in_all_for_three_times_their_steps_at_most(
    step: float,
) -> None:
    """While pieces come without end; a stream among the requests makes all pieces small."""
    dice = random.Random(1)
    pieces = Pieces()
    pieces.stepped(step)
    lengths = [dice.randrange(1, 200) for _ in range(dice.randrange(1, 5))]
    waited = 0.0
    for made in range(max(lengths)):
        running = [waiting(tokens=length, waited=waited) for length in lengths if length > made]
        allowed = pieces.allowed(running)
        assert 2 * step <= allowed <= max(SECONDS, 2 * step)
        assert pieces.allowed([*running, *STREAM]) == 2 * step
        if made == 0 and min(lengths) * 2 * step >= SECONDS:
            assert allowed == max(SECONDS, 2 * step)
        waited += allowed
        for length in lengths:
            if length == made + 1:  # its last token: each step and each wait so far
                assert waited <= 2 * (2 * step * length) + SECONDS


def test_no_large_piece_lies_over_a_deadline() -> None:
    pieces = Pieces()
    pieces.stepped(0.01)

    assert pieces.allowed([waiting(left=0.1), waiting()]) == 0.1
    assert pieces.allowed([waiting(left=-1.0)]) == 0.02


@pytest.mark.parametrize(("streams", "own"), [(True, False), (False, False), (False, True)])
def test_a_prompt_is_computed_in_large_pieces_unless_a_running_request_streams(
    streams: bool, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a step takes 10 ms and a column 2 ms; `own`: the row that waits is of the request that is prefilled."""
    handler = handler_of(save_toy(tmp_path), max_batch=4)
    decoder, clock, sizes = handler.engine.decoder, [0.0], []
    step, advance = decoder.step, decoder.advance

    def slow_step(tokens: list[int]) -> Any:
        clock[0] += 0.01
        return step(tokens)

    def slow_advance(prefill: Any, most: int) -> Any:
        before = prefill.remaining
        logits = advance(prefill, most)
        clock[0] += 0.002 * (before - prefill.remaining)
        sizes.append(before - prefill.remaining)
        return logits

    monkeypatch.setattr(decoder, "step", slow_step)
    monkeypatch.setattr(decoder, "advance", slow_advance)
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    later = "abcdefgh" * 15
    first = "xyz" * 43 + "x"  # too long to be computed together with the other
    texts = [first, later] if own else first
    limits = {"parameters": {"max_new_tokens": 30, "min_new_tokens": 30}}
    job = Asked(handler, {"inputs": texts, "stream": streams} | limits)
    job.request = msgspec.structs.replace(job.request, deadline=1000.0, stream_deadline=1000.0)
    handler.join(job)
    handler.step()
    assert sizes.pop() == len(first)
    other = Asked(handler, {"inputs": later} | limits)
    other.request = msgspec.structs.replace(other.request, deadline=1000.0)
    if not own:
        handler.join(other)
    handler.step()
    handler.step()

    assert sizes == ([LEAST, LEAST] if streams else [96, 24])
    finish(handler, job, *[] if own else [other])


LONG, SHORT = "abcdefgh" * 16, "xyz"


def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[int]]:
    """A handler that computes 8 tokens of a prompt in a step, and how many of each piece are left."""
    handler = handler_of(tmp_path, max_batch=4)
    monkeypatch.setattr(handler.engine._pieces, "tokens", lambda *_, **__: 8)
    decoder, left = handler.engine.decoder, list[int]()
    advance = decoder.advance

    def noted(prefill: Any, most: int) -> Any:
        logits = advance(prefill, most)
        left.append(prefill.remaining)
        return logits

    monkeypatch.setattr(decoder, "advance", noted)
    return handler, left


def prompted(handler: Any, text: str, tokens: int = 3) -> Asked:
    return Asked(handler, {"inputs": text, "parameters": {"max_new_tokens": tokens, "min_new_tokens": tokens}})


@pytest.fixture
def alone(tmp_path: Path) -> list[Any]:
    """The answers to LONG and SHORT without each other."""
    handler = handler_of(save_toy(tmp_path), max_batch=4)
    jobs = [prompted(handler, LONG), prompted(handler, SHORT)]
    for job in jobs:
        handler.join(job)
        finish(handler, job)
    return [job.answer for job in jobs]


def test_short_prompts_overtake_a_long_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: list[Any]) -> None:
    """Each waits for a piece of it; between two of them is a piece of the long one; the answers are as alone."""
    handler, left = begun(tmp_path, monkeypatch)
    long = prompted(handler, LONG)
    handler.join(long)
    handler.step()
    shorts = [prompted(handler, SHORT, 1), prompted(handler, LONG[:20] + SHORT, 1), prompted(handler, SHORT)]
    for job in shorts:
        handler.join(job)
    finish(handler, *shorts)

    assert not long.done
    assert left[:10] == [120, 19, 15, 11, 7, 3, 0, 112, 0, 104]  # two short ones together, then the third
    finish(handler, long)
    assert [long.answer, shorts[2].answer] == alone


@pytest.mark.parametrize("gone", ["long", "short"])
def test_a_caller_of_two_prefills_hangs_up(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: list[Any]
) -> None:
    """The other one is answered, whichever has overtaken which."""
    handler, left = begun(tmp_path, monkeypatch)
    long = prompted(handler, LONG)
    handler.join(long)
    handler.step()
    short = prompted(handler, LONG[:20])
    handler.join(short)
    handler.step()
    assert left == [120, 12]

    stays = short if gone == "long" else long
    handler.leave(long if gone == "long" else short)
    finish(handler, stays)

    assert stays.answer == (alone[0] if stays is long else stays.answer)
    assert handler.room() == 4
    again = prompted(handler, SHORT)
    handler.join(again)
    finish(handler, again)
    assert again.answer == alone[1]
