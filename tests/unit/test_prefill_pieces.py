"""A long prompt is computed in pieces whose size follows the time, so that running rows do not wait long for it."""

from statistics import median

import pytest

from serve.handlers.generation.pieces import LEAST, SIZES, USUAL, Pieces


def prefill(pieces: Pieces, prompt: int, step: float, overhead: float, column: float, context: float) -> list[float]:
    """The time of each piece of a prompt on a machine with these seconds: for a step of the rows, a pass, a column, and
    a column of context that a column attends to."""
    at, times = 0, []
    while at < prompt:
        pieces.stepped(step)
        count = min(pieces.tokens(beside_rows=True), prompt - at)
        seconds = overhead + count * (column + context * (at + count / 2))
        pieces.computed(count, seconds, beside_rows=True)
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
    usual = pieces.tokens(beside_rows=True)

    pieces.computed(usual, 10 * 0.06, beside_rows=True)
    assert LEAST <= pieces.tokens(beside_rows=True) <= usual / 2
    prefill(pieces, 200, 0.03, 0.01, 0.001, 0.0)

    assert pieces.tokens(beside_rows=True) > usual / 2


def test_pieces_are_large_while_no_row_waits() -> None:
    """And the first piece beside rows is small, even if nothing is known of such pieces."""
    pieces = Pieces()
    assert pieces.tokens(beside_rows=False) == USUAL
    assert pieces.tokens(beside_rows=True) == LEAST

    pieces.computed(USUAL, 0.02, beside_rows=False)
    assert SIZES[-1] >= pieces.tokens(beside_rows=False) > USUAL
    pieces.stepped(0.01)
    assert pieces.tokens(beside_rows=True) <= 0.01 * 2 / (0.02 / USUAL) / 2 + 1
    pieces.computed(SIZES[-1], 20.0, beside_rows=False)

    assert pieces.tokens(beside_rows=False) == USUAL
