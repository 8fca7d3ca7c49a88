"""The counters that processes share: whatever one of them writes, its readers stay alive and show possible numbers."""

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from serve import machine, settings
from serve.catalog.catalog import Catalog, Entry
from serve.catalog.model_config import ModelConfig
from serve.host.answers import exposition
from serve.host.model import Phase
from serve.host.runners import measure
from serve.host.store import Store
from serve.settings import MB
from serve.slots import FIELDS, MOST, PAGE, WEB_FIELDS, RunnerSlot, Slot, Slots, State

EXTREMES = (-(1 << 63), -1, 0, 1, MOST, (1 << 62) + 1, (1 << 63) - 1)


def test_two_processes_share_a_slot_by_its_descriptor() -> None:
    """The page is zero at first, and stays when the descriptor is closed."""
    fd = Slot.create()
    ours = RunnerSlot(fd)
    script = f"from serve.slots import Slot; slot = Slot({fd}); slot.add('requests', 3); slot.set('in_flight', 2)"
    subprocess.run([sys.executable, "-c", script], check=True, pass_fds=[fd])
    os.close(fd)
    assert {name: ours.get(name) for name in FIELDS} == {**dict.fromkeys(FIELDS, 0), "requests": 3, "in_flight": 2}


@pytest.mark.parametrize("size", [0, 8, PAGE - 1, PAGE + 1, 1 << 40])
def test_a_runner_cannot_change_the_size_of_its_slot(size: int) -> None:
    """A page that is truncated under its reader ends the reader with SIGBUS."""
    fd = Slot.create()
    ours = RunnerSlot(fd)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, size)
    os.close(fd)
    assert ours.get("requests") == 0


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", EXTREMES)
def test_the_host_reads_only_numbers_that_an_honest_runner_could_write(name: str, value: int) -> None:
    """Not negative, not in the future, and small enough to be summed and shown."""
    fd = Slot.create()
    slot = RunnerSlot(fd)
    os.close(fd)
    slot.set(name, value)
    assert 0 <= slot.get(name) <= max(0, value)
    if name in ("last_used", "busy_since"):
        assert slot.get(name) <= time.monotonic_ns()
    if name == "begun_arrival_epoch_ms":
        assert slot.get(name) <= time.time() * 1e3


class Forks:
    """A forkserver that starts no process."""

    def fork(self, runner: Any, *rest: object) -> None:
        counters, channel = runner.hand_over()
        os.close(counters)
        channel.close()

    def messages(self) -> Iterator[Any]:
        yield from ()


def test_models_and_metrics_stay_right_while_a_neighbour_scribbles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in the page of one: the host's decisions and answers work, and its neighbours are not evicted."""
    monkeypatch.setattr(machine, "private_bytes", lambda *_: 40 * MB)
    chosen = replace(settings.read({}), run_dir=tmp_path, budget_bytes=200 * MB)
    chosen.sockets.mkdir()
    configs: list[ModelConfig[Any]] = [
        ModelConfig(name=name, handler="custom", directory=tmp_path, bytes=40 * MB, options={}) for name in "ab"
    ]
    entries = [Entry(name=each.name, path=tmp_path, archive=False, config=each) for each in configs]
    store = Store(chosen, Catalog(entries), cast(Any, Forks()), lambda: None)
    slots = Slots(chosen.slots, create=True)
    for model in store.models.values():
        store.want(model)
        model.runners[0].phase = Phase.READY
    bad, good = store.models["a"], store.models["b"]
    good.runners[0].slot.set("requests", 7)
    luck = random.Random(13)
    pages = [[value] * len(FIELDS) for value in EXTREMES]
    pages += [[luck.choice((*EXTREMES, luck.getrandbits(62))) for _ in FIELDS] for _ in range(200)]
    for page in pages:
        for index, value in enumerate(page):
            bad.runners[0].slot.numbers[index] = value
        store.runners._measured = 0.0
        store.tick()
        for model in (bad, good):
            measure(model, model.runners[0])
        shown = msgspec.json.decode(msgspec.json.encode([model.shown() for model in store.models.values()]))
        assert all(0 <= value <= MOST for each in shown for value in each.values() if type(value) is int), shown
        assert (shown[1]["requests"], shown[1]["bytes"], shown[1]["evictions"]) == (7, 40 * MB, 0)
        assert shown[0]["cacheBytes"] <= shown[0]["bytes"] <= 80 * MB
        text = exposition(store, slots, chosen).decode()
        assert 'serve_model_requests_total{model="b"} 7.0' in text
        assert "nan" not in text.lower().replace("_nan", "")
    bad.absorb(bad.runners[0])
    assert bad.shown()["requests"] <= MOST
    for model in (bad, good):
        model.close()
    for runner in store.runners.alive.values():
        runner.control.close()
        runner.output.finish()


DAMAGE = {
    "truncated": lambda path: os.truncate(path, 0),
    "cut in the middle": lambda path: os.truncate(path, 17),
    "scribbled": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "random": lambda path: path.write_bytes(random.Random(13).randbytes(path.stat().st_size)),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_of_the_hosts_words_hurts_no_process_and_is_restored(tmp_path: Path, damage: Any) -> None:
    """The state is right again after the next heartbeat, and a web worker's counts after its next request."""
    path = tmp_path / "slots"
    host = Slots(path, create=True)
    reader = Slots(path)
    counts = host.web(3)
    for _ in range(5):
        counts.add("requests", "client_errors")
    host.beat(State.READY, "ready")
    damage(path)

    state, _, _ = reader.pulse()
    assert state in State
    assert all(0 <= value <= 64 * MOST for value in reader.web_totals().values())

    host.beat(State.READY, "ready")
    counts.add("requests")
    assert reader.pulse()[::2] == (State.READY, "ready")
    totals = reader.web_totals()
    assert totals["requests"] >= 6
    assert totals["client_errors"] >= 5


def test_a_new_web_worker_counts_on_from_the_one_before(tmp_path: Path) -> None:
    """gunicorn starts another worker when one ends."""
    slots = Slots(tmp_path / "slots", create=True)
    slots.web(1).add("requests", "server_errors")
    slots.web(1).add("requests")
    slots.web(2).add("requests")
    assert slots.web_totals() == dict(zip(WEB_FIELDS, (3, 0, 1), strict=True))


def test_the_page_of_a_slot_holds_all_fields() -> None:
    """Each in a place of its own."""
    slot = Slot(Slot.create())
    for number, name in zip(itertools.count(1), FIELDS, strict=False):
        slot.set(name, number)
    assert [slot.get(name) for name in FIELDS] == list(range(1, len(FIELDS) + 1))
