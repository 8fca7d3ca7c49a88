"""Which runners are evicted when memory is short; no caller notices an eviction."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.live.conftest import Later, Start
from tests.live.stack import Server, alive, at_once, descendants, private, toy, wait_until

MB = 1 << 20
BUDGET = 190  # MB: room for two of the models below, of some 70 MB each, and not for three
SIZES = {"a": 60, "b": 64, "c": 68}


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    for name, mb in SIZES.items():
        toy(shared_models, "hungry", name, {"mb.txt": str(mb)})
    with (toy(shared_models, "echo", "huge") / "weights").open("wb") as file:
        file.truncate(300 * MB)
    toy(shared_models, "tally", "twins", {"model.toml": "copies = 2"})
    return start_shared(shared_models, SERVE_MEMORY_BUDGET_MB=BUDGET)


def _pid(server: Server, name: str) -> int:
    """The process that answers for this model."""
    answer = server.invoke(name, {})
    assert answer.status == 200, answer.body
    server.loaded(name)
    return int(answer.json["pid"])


def test_the_least_recently_used_model_is_evicted(server: Server) -> None:
    """A third model evicts the one whose last request is oldest; GET /models does not count as use."""
    first, second = _pid(server, "a"), _pid(server, "b")
    assert _pid(server, "a") == first
    for path in ("/models", "/models/b", "/metrics", "/ping"):
        assert server.get(path).status == 200

    wait_until(lambda: server.model("a")["inFlight"] == server.model("b")["inFlight"] == 0)
    before = {name: server.model(name)["evictions"] for name in SIZES}

    _pid(server, "c")

    wait_until(lambda: not alive(second))
    assert {name: server.model(name)["evictions"] - before[name] for name in SIZES} == {"a": 0, "b": 1, "c": 0}
    assert _pid(server, "a") == first
    _assert_explained(server, "b", "c")


def _assert_explained(server: Server, victim: str, by: str) -> None:
    """GET /models and the log name the model that needed the memory, the time and the freed bytes."""
    shown = server.model(victim)
    assert (shown["state"], shown["bytes"]) == ("absent", 0)
    last = shown["lastEviction"]
    # By its estimate `c` fits beside both, and by its measure it does not.
    assert last["reason"] in ("to load another model", "over the budget")
    assert last["for"] == by
    assert abs(time.time() - last["at"]) < 60
    logged = [each for each in server.events("evicted") if each["model"] == victim][-1]
    assert (logged["reason"], logged["for"], logged["bytes"]) == (last["reason"], last["for"], last["bytes"])
    # The estimate knows only the files; the array of 60 MB and more is measured.
    assert shown["estimatedBytes"] < 40 * MB < 60 * MB < shown["peakBytes"]
    assert last["bytes"] <= shown["peakBytes"]
    assert server.model(by)["lastEviction"] is None or server.model(by)["lastEviction"]["at"] < last["at"]


def test_a_victim_answers_the_requests_it_holds(server: Server, tmp_path: Path, later: Later) -> None:
    """If every model is busy, a new one is loaded after a while: the victim answers first, then exits."""
    gates = {name: tmp_path / name for name in ("a", "b")}
    held = {name: _pid(server, name) for name in gates}
    busy = {name: later(server.invoke, name, {"gate": str(gate)}) for name, gate in gates.items()}
    for name in busy:
        wait_until(lambda name=name: server.model(name)["inFlight"] == 1)  # type: ignore[misc]
    wanted = later(server.invoke, "c", {})
    victim = wait_until(lambda: next((name for name in busy if server.model(name)["state"] == "retiring"), None))
    other = {"a": "b", "b": "a"}[victim]
    assert not wanted.done()

    gates[victim].touch()

    assert busy[victim].result().json["pid"] == held[victim]
    assert wanted.result().json["mb"] == SIZES["c"]
    assert not alive(held[victim])
    assert not busy[other].done()
    gates[other].touch()
    assert busy[other].result().json["pid"] == held[other]


def test_a_victim_that_crashes_at_its_last_request_is_explained(server: Server, tmp_path: Path, later: Later) -> None:
    """Its caller gets the cause, as after any crash; the waiting model is loaded."""
    gate = tmp_path / "never"
    held = {name: _pid(server, name) for name in ("a", "b")}
    busy = {name: later(server.invoke, name, {"gate": str(gate)}) for name in held}
    for name in busy:
        wait_until(lambda name=name: server.model(name)["inFlight"] == 1)  # type: ignore[misc]
    wanted = later(server.invoke, "c", {})
    victim = wait_until(lambda: next((name for name in busy if server.model(name)["state"] == "retiring"), None))

    os.kill(held[victim], signal.SIGKILL)

    assert busy[victim].result().status == 500
    assert "killed by SIGKILL" in busy[victim].result().json["message"]
    assert wanted.result().json["mb"] == SIZES["c"]
    gate.touch()
    assert all(call.done() or call.result().status == 200 for call in busy.values())


def test_a_model_larger_than_the_budget_is_refused(server: Server) -> None:
    """507 with its name, its size and the budget; nothing is evicted for it."""
    resident = _pid(server, "a")

    answer = server.invoke("huge", "hello", "text/plain")

    assert answer.status == 507
    for said in ("'huge'", "332 MB", f"{BUDGET} MB"):
        assert said in answer.json["message"]
    assert answer.json["model"] == "huge"
    assert "SERVE_MEMORY_BUDGET_MB" in answer.json["hint"]
    assert _pid(server, "a") == resident
    assert server.model("huge")["loads"] == 0


def test_two_copies_work_at_the_same_time(server: Server, tmp_path: Path, later: Later) -> None:
    """While one copy is busy with a request, the other answers."""
    assert server.invoke("twins", {}).status == 200
    wait_until(lambda: server.model("twins")["runners"] == 2 and server.model("twins")["state"] == "ready")
    held = later(server.invoke, "twins", {"gate": str(tmp_path / "gate"), "id": "held"})
    wait_until(lambda: "held" in (server.models / "twins" / "seen").read_text())

    free = server.invoke("twins", {})

    assert not held.done()
    (tmp_path / "gate").touch()
    assert held.result().json["pid"] != free.json["pid"]


def test_traffic_over_more_models_than_fit_loses_nothing(server: Server) -> None:
    """Several hundred requests from many threads: each answer is right, and the memory is freed."""
    before = server.model("a")["evictions"]
    order = random.Random(3)
    wanted = [[order.choice("abc") for _ in range(50)] for _ in range(8)]

    def traffic(thread: int) -> list[tuple[int, int]]:
        answers = [(name, server.invoke(name, {})) for name in wanted[thread]]
        return [(each.status, each.json.get("mb", each.body) - SIZES[name]) for name, each in answers]

    assert at_once(8, traffic) == [[(200, 0)] * 50] * 8

    assert server.model("a")["evictions"] > before
    held = sum(model["bytes"] for model in server.get("/models").json["models"])
    assert held <= BUDGET * MB
    runners = server.runners()
    assert 100 * MB < private(runners) < (BUDGET + 10) * MB
    # The other processes have none of it: nothing of a model stays where it was not.
    assert private(descendants(server.process.pid) - runners) < 200 * MB


def test_a_pinned_model_stays(start: Start, models: Path) -> None:
    """The other models share the rest of the budget, however long the pinned one has been idle."""
    toy(models, "hungry", "pinned", {"model.toml": "pin = true"})
    toy(models, "hungry", "x")
    toy(models, "hungry", "y")
    packed = toy(models.parent, "echo", "packed", {"model.toml": "pin = true\ncopies = 2"})
    shutil.make_archive(str(models / "packed"), "gztar", packed)
    server = start(models, SERVE_MEMORY_BUDGET_MB=BUDGET, SERVE_PRELOAD="x")
    pinned = _pid(server, "pinned")

    turns = [_pid(server, name) for name in ("x", "y", "x", "y")]

    assert len(set(turns)) == 4
    shown = {name: server.model(name) for name in ("pinned", "x", "packed")}
    assert {name: (each["pinned"], each["preload"], each["copies"]) for name, each in shown.items()} == {
        "pinned": (True, False, 1),
        "x": (False, True, 1),
        "packed": (False, False, 1),  # the model.toml in an archive is not known yet
    }
    assert (shown["pinned"]["evictions"], shown["pinned"]["lastEviction"]) == (0, None)
    assert shown["packed"]["estimatedBytes"] is None
    assert server.invoke("packed", "x", "text/plain").status == 200
    assert [server.model("packed")[key] for key in ("pinned", "copies")] == [True, 2]
    assert _pid(server, "pinned") == pinned
