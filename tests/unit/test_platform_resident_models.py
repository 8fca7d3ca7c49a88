"""Which model goes, which stays and who must do it: the platform's decisions about a container, without one."""

import threading
import time

import pytest

from local_test.platform.fleet.resident_models import (
    Closed,
    Next,
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
        ([], (Next.GIVE_UP, None)),
        ([resident("new", used=2), resident("old", used=1)], (Next.UNLOAD, "old")),
        ([resident("busy", used=1, users=1), resident("idle", used=9)], (Next.UNLOAD, "idle")),
        ([resident("busy", users=1)], (Next.WAIT, None)),
        ([resident("coming", stage=Stage.LOADING)], (Next.WAIT, None)),
        ([resident("going", stage=Stage.LEAVING)], (Next.WAIT, None)),
    ],
)
def test_after_a_507_the_least_recently_used_of_the_idle_goes(
    others: list[ResidentModel], expected: tuple[Next, str | None]
) -> None:
    """One in use, coming or going is never chosen, but worth waiting for."""
    step, victim = next_step([WANTED, *others], WANTED)
    assert (step, victim.id if victim else None) == expected


def test_what_is_not_listed_has_vanished() -> None:
    """And nothing else."""
    a, b = resident("a"), resident("b")
    assert vanished([a, b], {"b", "c"}) == [a]


def test_an_opaque_id_is_plain_and_always_the_same() -> None:
    """Whatever stands in the name."""
    assert opaque_id("a/ü b.tar.gz") == opaque_id("a/ü b.tar.gz")
    assert opaque_id("a/ü b.tar.gz").isalnum()
    assert len(opaque_id("")) == 32


def soon() -> float:
    return time.monotonic() + PATIENCE


def load(residents: ResidentModels, name: str) -> ResidentModel:
    model, fresh = residents.enter(name, soon())
    assert fresh
    residents.loaded(model)
    assert not residents.leave(model)
    return model


def test_the_first_who_comes_loads() -> None:
    """Those who come meanwhile wait for the same load; afterwards nobody needs to."""
    residents = ResidentModels(caching=True)
    (first, ours), (second, theirs) = residents.enter("a", soon()), residents.enter("a", soon())
    residents.loaded(first)
    assert (first is second, ours, theirs) == (True, True, False)
    assert first.loaded.done()


def test_a_failed_load_is_told_and_forgotten() -> None:
    """The next one is a fresh try."""
    residents = ResidentModels(caching=True)
    model, _ = residents.enter("a", soon())
    residents.failed(model, ValueError("no"))
    assert not residents.leave(model)
    with pytest.raises(ValueError, match="no"):
        model.loaded.result(0)
    again, fresh = residents.enter("a", soon())
    assert (again is model, fresh) == (False, True)


def test_a_use_makes_a_model_the_last_to_go() -> None:
    """Not its load."""
    residents = ResidentModels(caching=True)
    a, b = load(residents, "a"), load(residents, "b")
    model, _ = residents.enter("a", soon())
    residents.leave(model)
    wanted, _ = residents.enter("c", soon())
    assert residents.make_room(wanted, soon()) == (Next.UNLOAD, b)
    assert residents.make_room(wanted, soon()) == (Next.UNLOAD, a)


def test_who_wants_what_is_leaving_waits_until_it_is_gone() -> None:
    """Then loads it anew; and for no longer than his time."""
    residents = ResidentModels(caching=True)
    a = load(residents, "a")
    wanted, _ = residents.enter("b", soon())
    residents.make_room(wanted, soon())
    with pytest.raises(TimeoutError):
        residents.enter("a", time.monotonic())
    entered: list[tuple[ResidentModel, bool]] = []
    waiter = threading.Thread(target=lambda: entered.append(residents.enter("a", soon())))
    waiter.start()
    residents.gone(a)
    waiter.join(PATIENCE)
    assert entered[0][1]
    assert entered[0][0] is not a


def test_waiting_for_room_ends_when_a_model_falls_idle() -> None:
    """It is that one which goes."""
    residents = ResidentModels(caching=True)
    a = load(residents, "a")
    residents.enter("a", soon())
    wanted, _ = residents.enter("b", soon())
    found: list[tuple[Next, ResidentModel | None]] = []
    waiter = threading.Thread(target=lambda: found.append(residents.make_room(wanted, soon())))
    waiter.start()
    assert not residents.leave(a)
    waiter.join(PATIENCE)
    assert found == [(Next.UNLOAD, a)]


def test_what_could_not_be_unloaded_stays_and_others_go_first() -> None:
    """Else the same one would be tried for ever."""
    residents = ResidentModels(caching=True)
    a, b = load(residents, "a"), load(residents, "b")
    wanted, _ = residents.enter("c", soon())
    assert residents.make_room(wanted, soon()) == (Next.UNLOAD, a)
    residents.stayed(a)
    assert residents.make_room(wanted, soon()) == (Next.UNLOAD, b)


def test_the_last_user_of_a_lost_model_clears_it_away() -> None:
    """Unless it was loaded anew by then: the files are that load's."""
    residents = ResidentModels(caching=True)
    a, _ = residents.enter("a", soon())
    residents.loaded(a)
    residents.enter("a", soon())
    assert residents.lost(a) == (True, False)
    assert residents.lost(a) == (False, False)
    assert not residents.leave(a)
    assert residents.leave(a)
    residents.gone(a)

    b, _ = residents.enter("b", soon())
    residents.loaded(b)
    residents.lost(b)
    residents.enter("b", soon())
    assert not residents.leave(b)


def test_an_idle_model_that_is_lost_is_cleared_away_at_once() -> None:
    """By whoever noticed."""
    residents = ResidentModels(caching=True)
    a = load(residents, "a")
    assert residents.lost(a) == (True, True)
    residents.gone(a)
    assert residents.snapshot() == []


def test_without_caching_the_last_user_unloads() -> None:
    """Not the first of two."""
    residents = ResidentModels(caching=False)
    model, _ = residents.enter("a", soon())
    residents.enter("a", soon())
    residents.loaded(model)
    assert (residents.leave(model), residents.leave(model)) == (False, True)


def test_a_stranger_is_taken_in_once_and_goes_first() -> None:
    """Under its id, until somebody asks for it by name."""
    residents = ResidentModels(caching=True)
    load(residents, "a")
    key = opaque_id("b")
    assert (residents.adopt(key), residents.adopt(key)) == (True, False)
    model, fresh = residents.enter("b", soon())
    assert (model.target, fresh) == ("b", False)
    residents.leave(model)
    residents.adopt("x")
    wanted, _ = residents.enter("c", soon())
    _, victim = residents.make_room(wanted, soon())
    assert victim is not None
    assert victim.id == "x"


def test_closing_sends_away_all_who_wait() -> None:
    """And lets nobody in."""
    residents = ResidentModels(caching=True)
    model, _ = residents.enter("a", soon())
    residents.enter("b", soon())
    residents.close()
    with pytest.raises(Closed):
        residents.enter("c", soon())
    with pytest.raises(Closed):
        residents.make_room(model, soon())
