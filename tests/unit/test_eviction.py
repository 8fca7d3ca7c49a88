"""Which runners are evicted so that a model can be loaded."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.host.eviction import Budget, Held, Need, Placement, Plan, can_ever_fit, on_device, place, plan


def held(runner: int, size: int, used: int, **more: object) -> Held:
    return Held(runner=runner, bytes=size, last_used=used, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("holding", "need", "patient", "expected"),
    [
        pytest.param([held(1, 60, 1)], 40, True, Plan(fits=True), id="a model that fits evicts none"),
        pytest.param(
            [held(1, 50, 2), held(2, 50, 1)],
            40,
            True,
            Plan(fits=False, victims=(2,)),
            id="the least recently used is evicted",
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
            id="a small old runner is spared if the next is enough",
        ),
        pytest.param(
            [held(1, 50, 1, pinned=True), held(2, 50, 2)],
            50,
            True,
            Plan(fits=False, victims=(2,)),
            id="never a pinned runner",
        ),
        pytest.param(
            [held(1, 50, 1, in_flight=1), held(2, 50, 2)],
            50,
            True,
            Plan(fits=False, victims=(2,)),
            id="idle runners before busy ones",
        ),
        pytest.param(
            [held(1, 100, 1, in_flight=1)], 50, True, Plan(fits=False), id="busy runners are not evicted at first"
        ),
        pytest.param(
            [held(1, 100, 1, in_flight=1)],
            50,
            False,
            Plan(fits=False, victims=(1,)),
            id="busy runners when the patience has ended",
        ),
        pytest.param(
            [held(1, 60, 1, retiring=True), held(2, 40, 2)],
            60,
            True,
            Plan(fits=False),
            id="retiring runners are enough",
        ),
        pytest.param(
            [held(1, 60, 1, retiring=True, slow=True), held(2, 40, 2)],
            40,
            True,
            Plan(fits=False, victims=(2,)),
            id="an idle runner in place of a slow retiring one",
        ),
        pytest.param(
            [held(1, 60, 1, retiring=True, slow=True), held(2, 40, 2)],
            60,
            True,
            Plan(fits=False),
            id="a slow retiring runner is waited for if idle ones are too few",
        ),
        pytest.param(
            [held(1, 50, 1, retiring=True, slow=True), held(2, 25, 2), held(3, 25, 3)],
            70,
            True,
            Plan(fits=False, victims=(2,)),
            id="no more runners than needed beside a slow one",
        ),
        pytest.param(
            [held(1, 60, 1, retiring=True)], 50, True, Plan(fits=False), id="memory is free once the process is gone"
        ),
        pytest.param([held(1, 60, 1, loading=True)], 50, True, Plan(fits=False), id="never a loading runner"),
        pytest.param(
            [held(1, 50, 1), held(2, 50, 2, pinned=True)],
            90,
            True,
            Plan(fits=False),
            id="no eviction if the model would still not fit",
        ),
        pytest.param(
            [held(1, 50, 1), held(2, 50, 2, spare=20)],
            20,
            True,
            Plan(fits=False, shrink=(2,)),
            id="a cache before the least recently used model",
        ),
        pytest.param(
            [held(1, 50, 3, spare=20, pinned=True), held(2, 25, 1, spare=9, in_flight=1), held(3, 25, 2, spare=20)],
            25,
            True,
            Plan(fits=False, shrink=(3, 1)),
            id="as many caches as needed, of idle runners first, pinned ones too",
        ),
        pytest.param(
            [held(1, 50, 1), held(2, 50, 2, spare=20)],
            60,
            True,
            Plan(fits=False, shrink=(2,)),
            id="caches first even if they are not enough",
        ),
        pytest.param(
            [held(1, 50, 1), held(2, 50, 2, shrinking=True)],
            20,
            True,
            Plan(fits=False),
            id="no eviction while a runner frees its caches",
        ),
        pytest.param(
            [held(1, 40, 1, retiring=True), held(2, 60, 2, spare=20)],
            30,
            True,
            Plan(fits=False),
            id="no cache is freed if retiring runners are enough",
        ),
    ],
)
def test_plan(holding: list[Held], need: int, patient: bool, expected: Plan) -> None:
    """Decisions on a budget of 100 bytes."""
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
        spare=st.sampled_from((0, 0, 0, 1, 20)),
        shrinking=st.sampled_from((False, False, False, True)),
    ).map(lambda each: replace(each, slow=each.slow and each.retiring, spare=min(each.spare, each.bytes))),
    max_size=8,
    unique_by=lambda each: each.runner,
)


@given(runners, st.integers(1, 200), st.booleans())
def test_no_victim_is_pinned_loading_retiring_or_needless(holding: list[Held], need: int, patient: bool) -> None:
    """For any runners: victims are evictable, are enough, and none of them could have stayed; caches went before."""
    decision = plan(need, 100, holding, patient=patient)
    by_number = {each.runner: each for each in holding}
    victims = [by_number[number] for number in decision.victims]
    free = 100 - sum(each.bytes for each in holding)
    soon = free + sum(each.bytes for each in holding if each.retiring and not each.slow)
    later = soon + sum(each.bytes for each in holding if each.slow)
    chosen = sum(each.bytes for each in victims)
    # Enough without slow retiring runners; or together with them, if idle ones alone are not enough.
    freed = soon + chosen if need <= soon + chosen else later + chosen

    assert decision.fits == (need <= free)
    assert not any(each.pinned or each.loading or each.retiring for each in victims)
    assert not (patient and any(each.in_flight for each in victims))
    assert not (decision.shrink and decision.victims)
    if victims:
        assert not any(each.shrinking or (each.spare and not (each.loading or each.retiring)) for each in holding)
        assert need <= freed
        assert all(need > freed - each.bytes for each in victims)


def test_only_pinned_memory_is_permanent() -> None:
    """A model can fit if it is enough to evict every runner that is not pinned, and to free the others' caches."""
    holding = [held(1, 45, 1, pinned=True, spare=5), held(2, 55, 2, in_flight=5)]
    assert can_ever_fit(Need(bytes=30), 2, Budget(bytes=100), holding)
    assert not can_ever_fit(Need(bytes=61), 1, Budget(bytes=100), holding)


def on_gpu(size: int, count: int) -> Need:
    return Need(bytes=10, device_bytes=size, devices=tuple(range(count)))


@pytest.mark.parametrize(
    ("holding", "need", "copies", "expected"),
    [
        pytest.param(
            [held(1, 1, 1, device=0, device_bytes=10)],
            on_gpu(50, 2),
            1,
            Placement(fits=True, devices=(1,)),
            id="the GPU with the most free bytes",
        ),
        pytest.param([], on_gpu(60, 2), 2, Placement(fits=True, devices=(0, 1)), id="a GPU for each copy"),
        pytest.param(
            [held(1, 1, 5, device=0, device_bytes=90), held(2, 1, 3, device=1, device_bytes=60)],
            on_gpu(50, 2),
            1,
            Placement(fits=False, devices=(1,), victims=(2,)),
            id="the GPU with the least recently used victim",
        ),
        pytest.param(
            [held(1, 95, 1, in_flight=1), held(2, 1, 2, device=0, device_bytes=100)],
            on_gpu(50, 1),
            1,
            Placement(fits=False, devices=(0,)),
            id="nothing is evicted on a GPU while memory cannot be had",
        ),
        pytest.param(
            [held(1, 95, 1), held(2, 1, 2, device=0, device_bytes=100)],
            on_gpu(50, 1),
            1,
            Placement(fits=False, devices=(0,), victims=(2, 1)),
            id="victims for the GPU and for memory",
        ),
        pytest.param(
            [held(1, 95, 1, device=0, device_bytes=100)],
            on_gpu(50, 1),
            1,
            Placement(fits=False, devices=(0,), victims=(1,)),
            id="one victim frees both",
        ),
        pytest.param(
            [held(1, 95, 1, spare=90), held(2, 1, 2, device=0, device_bytes=100, device_spare=50)],
            on_gpu(50, 1),
            1,
            Placement(fits=False, devices=(0,), shrink=(2, 1)),
            id="caches before victims, on the GPU as in memory",
        ),
        pytest.param(
            [held(1, 95, 1, device=0, device_bytes=100, pinned=True), held(2, 5, 1, device=1, device_bytes=100)],
            Need(bytes=5),
            1,
            Placement(fits=False, devices=(None,), victims=(2,)),
            id="a model without a GPU takes memory only",
        ),
    ],
)
def test_where_a_runner_goes(holding: list[Held], need: Need, copies: int, expected: Placement) -> None:
    """Each GPU has 100 bytes, and so has memory."""
    assert place(need, copies, Budget(bytes=100, devices=(100, 100)), holding, patient=True) == expected


def _free(budget: Budget, holding: list[Held]) -> list[int]:
    shares = [holding, *(on_device(device, holding) for device in range(len(budget.devices)))]
    budgets = (budget.bytes, *budget.devices)
    return [each - sum(one.bytes for one in share) for each, share in zip(budgets, shares, strict=True)]


@given(st.data())
def test_a_load_is_admitted_at_last_exactly_if_it_can_ever_fit(data: st.DataObject) -> None:
    """Carried out again and again, the decisions lead to a load that exceeds no budget, unless pins prevent it."""
    sizes = st.integers(0, 40)
    count = data.draw(st.integers(1, 3))
    budget = Budget(bytes=100, devices=(60,) * count)
    holding: list[Held] = []
    for number in range(data.draw(st.integers(0, 8))):
        each = held(
            number,
            data.draw(sizes),
            number,
            pinned=data.draw(st.booleans()),
            in_flight=data.draw(st.integers(0, 1)),
            device=data.draw(st.none() | st.integers(0, count - 1)),
        )
        each = replace(each, device_bytes=0 if each.device is None else data.draw(sizes))
        if min(_free(budget, [*holding, each])) >= 0:
            holding.append(each)
    need = Need(bytes=data.draw(sizes), device_bytes=data.draw(st.integers(1, 40)), devices=tuple(range(count)))

    def decide() -> Placement:
        return place(need, 1, budget, holding, patient=False)

    possible = can_ever_fit(need, 1, budget, holding)
    while not (decision := decide()).fits and decision.victims:
        assert not any(each.pinned for each in holding if each.runner in decision.victims)
        holding = [each for each in holding if each.runner not in decision.victims]

    assert decision.fits == possible
    if decision.fits:
        loaded = held(99, need.bytes, 99, device=decision.devices[0], device_bytes=need.device_bytes)
        assert min(_free(budget, [*holding, loaded])) >= 0
