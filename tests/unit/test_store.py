"""The store asks for memory in the right order: it frees caches, and evicts only if that is not enough."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve import machine, settings
from serve.catalog.catalog import Catalog, Entry
from serve.catalog.model_config import ModelConfig
from serve.host.model import RunnerProcess
from serve.host.store import Store
from serve.settings import MB

BUDGET = 100  # MB


class Forks:
    """A forkserver that starts no process. A runner is the other end of its control channel."""

    def __init__(self) -> None:
        self.runners: dict[str, tuple[RunnerProcess, socket.socket]] = {}
        self._reports: list[Mapping[str, Any]] = []

    def fork(self, runner: RunnerProcess, config: ModelConfig[Any], *rest: object) -> None:
        counters, channel = runner.hand_over()
        os.close(counters)
        channel.setblocking(False)
        self.runners[config.name] = runner, channel
        self._reports.append({"runner": runner.number, "pid": 1000 + runner.number})

    def messages(self) -> Iterator[Mapping[str, Any]]:
        reports, self._reports = self._reports, []
        yield from reports


class Host:
    """A store of models of 40 MB each, and what their runners are told."""

    def __init__(self, directory: Path) -> None:
        chosen = replace(settings.read({}), run_dir=directory, budget_bytes=BUDGET * MB)
        chosen.sockets.mkdir(parents=True)
        configs: list[ModelConfig[Any]] = [
            ModelConfig(name=name, handler="custom", directory=directory, bytes=40 * MB, options={}) for name in "abc"
        ]
        entries = [Entry(name=each.name, path=directory, archive=False, config=each) for each in configs]
        self.forks = Forks()
        self.store = Store(chosen, Catalog(entries), self.forks, lambda: None)  # type: ignore[arg-type]
        self.held: dict[int, int] = {}  # MB, by process id

    def close(self) -> None:
        for model in self.store.models.values():
            model.close()
        for runner, channel in self.forks.runners.values():
            channel.close()
            runner.control.close()
            runner.output.finish()

    def load(self, name: str, cache: int = 0) -> None:
        """Load a model that then grows by a cache of this many MB."""
        self.store.want(self.store.models[name])
        self.started(name)
        runner, _ = self.forks.runners[name]
        self.held[runner.pid] = 40
        self.says(name, {"type": "ready", "seconds": 0.0})
        self.holds(name, 40 + cache, cache)
        self.measure()

    def started(self, name: str) -> bool:
        self.store.forked()
        return name in self.forks.runners

    def holds(self, name: str, size: int, cache: int) -> None:
        runner, _ = self.forks.runners[name]
        self.held[runner.pid] = size
        runner.slot.set("spare_bytes", cache * MB)

    def measure(self) -> None:
        self.store.runners._measured = 0.0  # the next tick measures
        self.store.tick()

    def says(self, name: str, message: Mapping[str, Any]) -> None:
        runner, channel = self.forks.runners[name]
        channel.send(json.dumps(message).encode())
        self.store.heard(runner)

    def told(self, name: str) -> list[bytes]:
        """The orders that have arrived at a runner since the last call."""
        orders = []
        while True:
            try:
                orders.append(self.forks.runners[name][1].recv(64))
            except BlockingIOError:
                return orders


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(tmp_path)
    monkeypatch.setattr(machine, "private_bytes", lambda pid, _opened: host.held[pid] * MB)
    yield host
    host.close()


def test_a_load_takes_the_cache_of_a_model_and_not_the_model(host: Host) -> None:
    """The load starts when the memory is measured to be free, and no model is evicted."""
    host.load("a")
    host.load("b", cache=20)

    host.store.want(host.store.models["c"])
    assert (host.told("a"), host.told("b")) == ([], [b"shrink"])
    assert not host.started("c")
    host.holds("b", 15, 0)  # a model whose file is mapped
    host.says("b", {"type": "shrunk"})

    assert host.started("c")
    assert (host.told("a"), host.told("b")) == ([], [])
    assert [each.evictions for each in host.store.models.values()] == [0, 0, 0]


def test_a_model_is_evicted_if_its_cache_was_not_enough(host: Host) -> None:
    """First the cache, also of a pinned model; then the least recently used model."""
    host.store.models["b"].pinned = True
    host.load("a")
    host.load("b", cache=15)

    host.store.want(host.store.models["c"])
    assert (host.told("a"), host.told("b")) == ([], [b"shrink"])
    host.holds("b", 41, 0)
    host.says("b", {"type": "shrunk"})

    assert (host.told("a"), host.told("b")) == ([b"retire"], [])


def test_a_runner_that_does_not_answer_is_not_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in a long step: after a second another model is evicted."""
    host.store.models["b"].pinned = True
    host.load("a")
    host.load("b", cache=20)
    host.store.want(host.store.models["c"])
    host.store.tick()
    assert (host.told("a"), host.told("b")) == ([], [b"shrink"])

    monkeypatch.setattr("serve.host.store.PATIENCE", 0.0)
    host.store.tick()

    assert (host.told("a"), host.told("b")) == ([b"retire"], [])


def test_models_that_grow_over_the_budget_lose_caches_first(host: Host) -> None:
    """A cache of its own makes no model a victim, and the next load does not reserve it."""
    host.load("a")
    host.load("b")

    host.holds("b", 65, 25)
    host.measure()

    assert (host.told("a"), host.told("b")) == ([], [b"shrink"])
    assert host.store.models["b"].peak_bytes == 40 * MB


def test_memory_that_a_model_will_still_take_counts_as_held(host: Host) -> None:
    """It has said so: a load meanwhile does not count on that memory."""
    host.load("a")
    host.load("b")
    runner, _ = host.forks.runners["b"]
    runner.slot.set("pending_bytes", 30 * MB)
    host.measure()

    assert host.store.models["b"].peak_bytes == 70 * MB
    assert (host.told("a"), host.told("b")) == ([b"retire"], [])
