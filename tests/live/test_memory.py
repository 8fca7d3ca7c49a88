"""Memory of a model is bounded while it works: over its limit its process ends, with figures; no other notices."""

import gzip
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live import tiny
from tests.live.conftest import Later, Start
from tests.live.stack import Server, alive, at_once, private, toy, wait_until

BUDGET, WORK = 600, 200  # MB
PEAK = 1200  # MB that a process has reached at most when it is ended: the toys take 400 MB a second at most


@pytest.fixture(scope="module")
def server(start_shared: Start, shared_models: Path) -> Server:
    toy(shared_models, "grows")
    toy(shared_models, "grows", "own-limit", {"model.toml": "memory_limit_mb = 400\n"})
    toy(shared_models, "grows", "small-limit", {"model.toml": "memory_limit_mb = 1\n"})
    toy(shared_models, "grows", "large-load", {"load.txt": "4000"})
    toy(shared_models, "echo")
    return start_shared(shared_models, SERVE_MEMORY_BUDGET_MB=BUDGET, SERVE_WORKING_MEMORY_MB=WORK)


def _peak(pid: int) -> int:
    """The most memory a process ever held, in MB; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.split("VmHWM:")[1].split()[0]) >> 10 if "VmHWM:" in status else 0


def _peak_until(call: Callable[[], Any], pid: int) -> int:
    """The most that a process holds until a call in a thread is done."""
    found = 0
    while not call():
        found = max(found, _peak(pid))
        time.sleep(0.005)
    return found


OVER = {
    "by steps": {"steps": 4000},
    "of shared memory": {"steps": 4000, "shared": True},
}


@pytest.mark.parametrize("how", OVER)
def test_a_request_that_takes_too_much_is_507_with_the_figures(server: Server, later: Later, how: str) -> None:
    """What the process held, its limit, the setting, the next step. The process was ended long before 4 GB."""
    pid = server.invoke("grows", {}).json["pid"]

    call = later(server.invoke, "grows", OVER[how])
    peak = _peak_until(call.done, pid)
    answer = call.result()

    assert (answer.status, answer.json["type"]) == (507, "InsufficientStorageException"), answer.body
    held, limit, size, work = map(int, re.findall(r"(\d+) MB", answer.json["message"]))
    assert limit <= held < PEAK
    assert work == WORK
    assert abs(limit - size - WORK) <= 1
    assert "SERVE_WORKING_MEMORY_MB" in answer.json["message"]
    assert "memory_limit_mb" in answer.json["hint"]
    assert answer.json["model"] == "grows"
    assert peak < PEAK
    assert not alive(pid)


def test_neighbours_and_ping_notice_nothing(server: Server, later: Later) -> None:
    """Ten requests in a row are ended; the neighbour keeps its process, /ping is 200, and the host stays small."""
    neighbour = server.invoke("echo", b"x").body
    host = server.part("host")

    def attack(_: int) -> int:
        return server.invoke("grows", {"steps": 4000}).status

    call = later(lambda: [attack(number) for number in range(5)])
    seen = set()
    while not call.done():
        seen.add((server.get("/ping").status, server.invoke("echo", b"x").body))
    assert call.result() == [507] * 5  # no pause: the requests are to blame, and not the model
    assert seen == {(200, neighbour)}
    assert _peak(host) < 200
    assert server.model("grows")["state"] in ("absent", "ready", "loading")


def test_requests_that_wait_are_answered_by_the_next_process(server: Server, later: Later) -> None:
    """The process reads no request while it works, so that all later ones are still in the socket when it ends."""
    server.invoke("grows", {})

    bad = later(server.invoke, "grows", {"steps": 4000})
    wait_until(lambda: server.model("grows")["inFlight"])
    answers = at_once(16, lambda _: server.invoke("grows", {"steps": 4}))

    assert bad.result().status == 507
    assert [each.status for each in answers] == [200] * 16


def test_an_allocation_of_10_gb_at_once_fails_inside(server: Server) -> None:
    """As a MemoryError of Python, so that the process goes on."""
    pid = server.invoke("grows", {}).json["pid"]

    answer = server.invoke("grows", {"at_once": 10_000})

    assert (answer.status, answer.json["type"]) == (507, "InsufficientStorageException"), answer.body
    assert "out of memory" in answer.json["message"]
    assert server.invoke("grows", {}).json["pid"] == pid


def test_compiled_code_that_aborts_for_memory_is_told_as_memory(server: Server) -> None:
    """C++ and Rust end the process where an allocation fails: that is a 507 too, and not a SIGABRT."""
    answer = server.invoke("grows", {"compiled": 10_000})

    assert (answer.status, answer.json["type"]) == (507, "InsufficientStorageException"), answer.body
    assert "bad_alloc" in answer.json["message"]
    assert "SIGABRT" not in answer.json["message"]
    assert server.invoke("grows", {}).status == 200


def test_a_thread_behind_the_answer_is_bounded_too(server: Server) -> None:
    """The request is answered; the process ends before it has taken 4 GB, and the next request has another."""
    pid = server.invoke("grows", {"later": 4000}).json["pid"]

    wait_until(lambda: not alive(pid) or _peak(pid) > PEAK)

    assert not alive(pid)
    assert server.invoke("grows", {}).json["pid"] != pid


def test_a_process_that_keeps_what_its_requests_took_is_replaced(server: Server) -> None:
    """While it is idle, once it holds more than half of its share for work beyond its size after the load."""
    pid = server.invoke("grows", {"keeps": 3 * WORK // 4}).json["pid"]

    wait_until(lambda: not alive(pid))

    assert server.invoke("grows", {}).json["pid"] != pid
    assert [each["model"] for each in server.events("replaced")] == ["grows"]
    assert server.model("grows")["deaths"] == len(server.events("runner crashed"))


def test_memory_of_large_requests_goes_back(start: Start, models: Path) -> None:
    """Four bodies of 35 kB that unfold to 15 MB; pyarrow reads them, and its pool and the heap would keep 150 MB."""
    tiny.xgboost_model(models / "trees")
    server = start(models)
    assert server.invoke("trees", "1,2,3,4", "text/csv").status == 200
    before = server.loaded("trees")["bytes"]
    body = gzip.compress(b"1.5,2,3,4\n" * 1_500_000)

    answers = at_once(4, lambda _: server.invoke("trees", body, "text/csv", **{"Content-Encoding": "gzip"}))

    assert {each.status for each in answers} == {200}
    pid = next(iter(server.runners()))
    assert _peak(pid) << 20 > before + (100 << 20)
    wait_until(lambda: private([pid]) < before + (60 << 20))  # the libraries that the first large body imports: 30 MB
    wait_until(lambda: server.model("trees")["bytes"] < before + (60 << 20))
    assert pid in server.runners()


def test_a_load_that_takes_too_much_is_507(server: Server) -> None:
    """The budget and the share for work are its limit."""
    answer = server.invoke("large-load", {})

    assert (answer.status, answer.json["type"]) == (507, "InsufficientStorageException"), answer.body
    assert f"{BUDGET + WORK} MB" in answer.json["message"]
    assert "SERVE_MEMORY_BUDGET_MB" in answer.json["hint"]


def test_a_model_can_have_a_limit_of_its_own(server: Server) -> None:
    """memory_limit_mb in model.toml, of the whole process: more than the others may take, or less."""
    assert server.invoke("own-limit", {"steps": 300}).status == 200

    answer = server.invoke("own-limit", {"steps": 4000})
    # A request that waited for the load may be answered before the host has measured.
    too_small = wait_until(lambda: (each := server.invoke("small-limit", {})).status != 200 and each)

    assert answer.status == 507
    assert "400 MB: memory_limit_mb" in answer.json["message"]
    assert (too_small.status, too_small.json["type"]) == (507, "InsufficientStorageException"), too_small.body
    assert "memory_limit_mb in its model.toml is 1" in too_small.json["message"]
