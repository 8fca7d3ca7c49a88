"""Bookkeeping of a container's models, without a container: which model is unloaded, and by which caller."""

import threading
import time

import pytest

from local_test.platform.fleet import resident_models
from local_test.platform.fleet.resident_models import (
    Closed,
    NextStep,
    ResidentModel,
    ResidentModels,
    Stage,
    next_step,
    opaque_id,
    vanished,
)
from tests.patience import PATIENCE


def resident(name: str, *, used: int = 0, users: int = 0, stage: Stage = Stage.LOADED) -> ResidentModel:
    return ResidentModel(name, name, stage=stage, users=users, used=used)


WANTED = resident("wanted", stage=Stage.LOADING, users=1)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], (NextStep.GIVE_UP, None)),
        ([resident("new", used=2), resident("old", used=1)], (NextStep.UNLOAD, "old")),
        ([resident("busy", used=1, users=1), resident("idle", used=9)], (NextStep.UNLOAD, "idle")),
        ([resident("busy", users=1)], (NextStep.WAIT, None)),
        ([resident("loading", stage=Stage.LOADING)], (NextStep.WAIT, None)),
        ([resident("unloading", stage=Stage.UNLOADING)], (NextStep.WAIT, None)),
    ],
)
def test_after_a_507_the_least_recently_used_idle_model_is_unloaded(
    others: list[ResidentModel], expected: tuple[NextStep, str | None]
) -> None:
    """A model in use, loading or unloading is never chosen, but the load waits for it."""
    step, victim = next_step([WANTED, *others], WANTED)
    assert (step, victim.id if victim else None) == expected


def test_a_model_missing_in_the_list_has_vanished() -> None:
    """No other model has."""
    a, b = resident("a"), resident("b")
    assert vanished([a, b], {"b", "c"}) == [a]


def test_an_opaque_id_is_alphanumeric_and_stable() -> None:
    """For any name."""
    assert opaque_id("a/ü b.tar.gz") == opaque_id("a/ü b.tar.gz")
    assert opaque_id("a/ü b.tar.gz").isalnum()
    assert len(opaque_id("")) == 32


def soon() -> float:
    """A deadline that no test reaches."""
    return time.monotonic() + PATIENCE


def load(residents: ResidentModels, name: str) -> ResidentModel:
    model, new = residents.acquire(name, soon())
    assert new
    residents.loaded(model)
    assert not residents.release(model)
    return model


def test_the_first_call_loads() -> None:
    """Later calls wait for the same load."""
    residents = ResidentModels(caching=True)
    (first, first_loads), (second, second_loads) = residents.acquire("a", soon()), residents.acquire("a", soon())
    residents.loaded(first)
    assert (first is second, first_loads, second_loads) == (True, True, False)
    assert first.loaded.done()


def test_a_failed_load_is_reported_and_forgotten() -> None:
    """The next one is a new try."""
    residents = ResidentModels(caching=True)
    model, _ = residents.acquire("a", soon())
    residents.load_failed(model, ValueError("no"))
    assert not residents.release(model)
    with pytest.raises(ValueError, match="no"):
        model.loaded.result(0)
    again, new = residents.acquire("a", soon())
    assert (again is model, new) == (False, True)


def test_a_use_makes_a_model_the_last_to_be_unloaded() -> None:
    """The order of loads does not count."""
    residents = ResidentModels(caching=True)
    a, b = load(residents, "a"), load(residents, "b")
    model, _ = residents.acquire("a", soon())
    residents.release(model)
    wanted, _ = residents.acquire("c", soon())
    assert residents.free_memory(wanted, soon()) == (NextStep.UNLOAD, b)
    assert residents.free_memory(wanted, soon()) == (NextStep.UNLOAD, a)


def test_a_call_for_a_model_that_is_being_unloaded_waits_until_it_is_unloaded() -> None:
    """Then the call loads the model again. Its deadline limits the wait."""
    residents = ResidentModels(caching=True)
    a = load(residents, "a")
    wanted, _ = residents.acquire("b", soon())
    residents.free_memory(wanted, soon())
    with pytest.raises(TimeoutError):
        residents.acquire("a", time.monotonic())
    entered: list[tuple[ResidentModel, bool]] = []
    waiter = threading.Thread(target=lambda: entered.append(residents.acquire("a", soon())))
    waiter.start()
    residents.unloaded(a)
    waiter.join(PATIENCE)
    assert entered[0][1]
    assert entered[0][0] is not a


def test_the_wait_after_a_507_ends_when_a_model_becomes_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """That model is unloaded."""
    monkeypatch.setattr(resident_models, "WAIT_FOR_IDLE", PATIENCE)
    residents = ResidentModels(caching=True)
    a = load(residents, "a")
    residents.acquire("a", soon())
    wanted, _ = residents.acquire("b", soon())
    found: list[tuple[NextStep, ResidentModel | None]] = []
    waiter = threading.Thread(target=lambda: found.append(residents.free_memory(wanted, soon())))
    waiter.start()
    assert not residents.release(a)
    waiter.join(PATIENCE)
    assert found == [(NextStep.UNLOAD, a)]


def test_after_a_failed_unload_other_models_are_tried_first() -> None:
    """Otherwise every retry would choose the same model."""
    residents = ResidentModels(caching=True)
    a, b = load(residents, "a"), load(residents, "b")
    wanted, _ = residents.acquire("c", soon())
    assert residents.free_memory(wanted, soon()) == (NextStep.UNLOAD, a)
    residents.unload_failed(a)
    assert residents.free_memory(wanted, soon()) == (NextStep.UNLOAD, b)


def test_the_last_user_of_a_lost_model_removes_it() -> None:
    """Unless the model was loaded again by then: the files belong to that load."""
    residents = ResidentModels(caching=True)
    a, _ = residents.acquire("a", soon())
    residents.loaded(a)
    residents.acquire("a", soon())
    assert residents.lost(a) == (True, False)
    assert residents.lost(a) == (False, False)
    assert not residents.release(a)
    assert residents.release(a)
    residents.unloaded(a)

    b, _ = residents.acquire("b", soon())
    residents.loaded(b)
    residents.lost(b)
    residents.acquire("b", soon())
    assert not residents.release(b)


def test_an_idle_model_that_is_lost_is_removed_immediately() -> None:
    """By the caller that reported the loss."""
    residents = ResidentModels(caching=True)
    a = load(residents, "a")
    assert residents.lost(a) == (True, True)
    residents.unloaded(a)
    assert residents.snapshot() == []


def test_without_caching_the_last_user_unloads() -> None:
    """The first of two users does not."""
    residents = ResidentModels(caching=False)
    model, _ = residents.acquire("a", soon())
    residents.acquire("a", soon())
    residents.loaded(model)
    assert (residents.release(model), residents.release(model)) == (False, True)


def test_an_unknown_model_is_adopted_once_and_unloaded_first() -> None:
    """It has its id for a name until a call names it."""
    residents = ResidentModels(caching=True)
    load(residents, "a")
    key = opaque_id("b")
    assert (residents.adopt(key), residents.adopt(key)) == (True, False)
    model, new = residents.acquire("b", soon())
    assert (model.target, new) == ("b", False)
    residents.release(model)
    residents.adopt("x")
    wanted, _ = residents.acquire("c", soon())
    _, victim = residents.free_memory(wanted, soon())
    assert victim is not None
    assert victim.id == "x"


def test_after_closing_every_call_fails() -> None:
    """Waiting calls, and new ones."""
    residents = ResidentModels(caching=True)
    model, _ = residents.acquire("a", soon())
    residents.acquire("b", soon())
    residents.close()
    with pytest.raises(Closed):
        residents.acquire("c", soon())
    with pytest.raises(Closed):
        residents.free_memory(model, soon())
