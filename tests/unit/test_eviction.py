"""Who must go so that a model can come."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.host.eviction import Held, Plan, can_ever_fit, plan


def held(runner: int, size: int, used: int, **more: object) -> Held:
    return Held(runner=runner, bytes=size, last_used=used, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("holding", "need", "patient", "expected"),
    [
        pytest.param([held(1, 60, 1)], 40, True, Plan(fits=True), id="what fits evicts nobody"),
        pytest.param(
            [held(1, 50, 2), held(2, 50, 1)], 40, True, Plan(fits=False, victims=(2,)), id="least recently used goes"
        ),
        pytest.param(
            [held(1, 30, 1), held(2, 30, 2), held(3, 40, 3)],
            50,
            True,
            Plan(fits=False, victims=(1, 2)),
            id="as many as needed",
        ),
        pytest.param(
            [held(1, 10, 1), held(2, 80, 2), held(3, 10, 3)],
            70,
            True,
            Plan(fits=False, victims=(2,)),
            id="a small old one is spared when the next is enough",
        ),
        pytest.param(
            [held(1, 50, 1, pinned=True), held(2, 50, 2)],
            50,
            True,
            Plan(fits=False, victims=(2,)),
            id="never a pinned one",
        ),
        pytest.param(
            [held(1, 50, 1, in_flight=1), held(2, 50, 2)],
            50,
            True,
            Plan(fits=False, victims=(2,)),
            id="idle before busy",
        ),
        pytest.param([held(1, 100, 1, in_flight=1)], 50, True, Plan(fits=False), id="patience with busy ones"),
        pytest.param(
            [held(1, 100, 1, in_flight=1)], 50, False, Plan(fits=False, victims=(1,)), id="busy ones when patience ends"
        ),
        pytest.param(
            [held(1, 60, 1, retiring=True), held(2, 40, 2)],
            60,
            True,
            Plan(fits=False),
            id="who is on the way out is enough",
        ),
        pytest.param(
            [held(1, 60, 1, retiring=True, slow=True), held(2, 40, 2)],
            40,
            True,
            Plan(fits=False, victims=(2,)),
            id="an idle one instead of one that takes its time to go",
        ),
        pytest.param(
            [held(1, 60, 1, retiring=True, slow=True), held(2, 40, 2)],
            60,
            True,
            Plan(fits=False),
            id="who takes its time is waited for when idle ones are too few",
        ),
        pytest.param(
            [held(1, 50, 1, retiring=True, slow=True), held(2, 25, 2), held(3, 25, 3)],
            70,
            True,
            Plan(fits=False, victims=(2,)),
            id="no more go than are needed beside it",
        ),
        pytest.param([held(1, 60, 1, retiring=True)], 50, True, Plan(fits=False), id="not free before it is gone"),
        pytest.param([held(1, 60, 1, loading=True)], 50, True, Plan(fits=False), id="never one that is loading"),
        pytest.param(
            [held(1, 50, 1), held(2, 50, 2, pinned=True)],
            90,
            True,
            Plan(fits=False),
            id="nobody goes when that is no use",
        ),
    ],
)
def test_plan(holding: list[Held], need: int, patient: bool, expected: Plan) -> None:
    """A budget of 100 bytes and what is decided about it."""
    assert plan(need, 100, holding, patient=patient) == expected


runners = st.lists(
    st.builds(
        Held,
        runner=st.integers(0, 10**6),
        bytes=st.integers(1, 60),
        last_used=st.integers(0, 100),
        in_flight=st.integers(0, 1),
        pinned=st.booleans(),
        loading=st.booleans(),
        retiring=st.booleans(),
        slow=st.booleans(),
    ).map(lambda each: each if each.retiring else replace(each, slow=False)),
    max_size=8,
    unique_by=lambda each: each.runner,
)


@given(runners, st.integers(1, 200), st.booleans())
def test_no_victim_is_pinned_loading_leaving_or_needless(holding: list[Held], need: int, patient: bool) -> None:
    """Whatever is held: victims may be evicted, are enough, and none of them could have stayed."""
    decision = plan(need, 100, holding, patient=patient)
    by_number = {each.runner: each for each in holding}
    victims = [by_number[number] for number in decision.victims]
    free = 100 - sum(each.bytes for each in holding)
    soon = free + sum(each.bytes for each in holding if each.retiring and not each.slow)
    later = soon + sum(each.bytes for each in holding if each.slow)
    chosen = sum(each.bytes for each in victims)
    # Enough without those who take their time, or, where idle ones cannot be, together with them.
    freed = soon + chosen if need <= soon + chosen else later + chosen

    assert decision.fits == (need <= free)
    assert not any(each.pinned or each.loading or each.retiring for each in victims)
    assert not (patient and any(each.in_flight for each in victims))
    if victims:
        assert need <= freed
        assert all(need > freed - each.bytes for each in victims)


def test_only_pins_are_for_ever() -> None:
    """What evicting everyone else would make room for can fit some day."""
    holding = [held(1, 40, 1, pinned=True), held(2, 60, 2, in_flight=5)]
    assert can_ever_fit(60, 100, holding)
    assert not can_ever_fit(61, 100, holding)
