"""The control channel of a runner: whatever a model's own code writes there, the host ends that runner and goes on."""

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from serve import control, settings
from serve.capture import MOST_OUTPUT
from serve.catalog.catalog import Catalog, Entry
from serve.catalog.model_config import ModelConfig
from serve.control import Control, Failed, Lost, Message, Ready, Shrunk, Violation, tell
from serve.errors import DoesNotFit, ModelUnusable, RunnerDied
from serve.host import runners as host_runners
from serve.host.model import Phase, RunnerProcess
from serve.host.runners import LISTEN_EVERY
from serve.host.sockets import ModelSockets, Poller
from serve.host.store import Store
from serve.settings import MB

MANY = 100_000  # messages of the property test
VALID = (
    b'{"type":"ready","seconds":0.5}',
    b'{"type":"failed","class":"DoesNotFit","message":"too large","hint":""}',
    b'{"type":"lost","message":"CUDA error"}',
    b'{"type":"shrunk"}',
)
PARTS = (
    *(bytes([each]) for each in b'{}[]",:\\0-.eEu\x00\xff\x80\r\n'),
    *(b"null", b"NaN", b"1e999", b"type", b"ready", b"seconds", b"\xed\xa0\x80"),
)


@pytest.fixture
def channel() -> Iterator[Control]:
    made = Control()
    yield made
    made.close()
    made.theirs.close()


def garbage(luck: random.Random) -> bytes:
    """Random bytes, nested brackets, or a valid message: whole, cut, doubled, or with some bytes changed."""
    kind = luck.randrange(8)
    if kind == 0:
        return luck.randbytes(luck.randrange(0, 200))
    if kind == 1:
        return luck.choice((b"[", b'{"a":', b'{"type":')) * luck.randrange(1, 5000)
    if kind == 2:
        return json.dumps(
            {luck.choice(("type", "ready", "x")): luck.choice((None, 1, [], {}, "ready", "é" * 99))}
        ).encode()
    message = bytearray(luck.choice(VALID))
    if kind == 3:
        return bytes(message)
    if kind == 4:
        return bytes(message[: luck.randrange(len(message))])
    if kind == 5:
        return bytes(message * 2)
    for _ in range(luck.randrange(1, 4)):
        at = luck.randrange(len(message))
        message[at : at + luck.randrange(3)] = luck.choice(PARTS)
    return bytes(message)


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ([Ready(1.5)], [Ready(1.5)]),
        ([Ready(0.0), Lost("CUDA")], [Ready(0.0), Lost("CUDA")]),
        ([Failed.of(ModelUnusable("no", hint="mend"))], [Failed("ModelUnusable", "no", "mend")]),
    ],
)
def test_what_a_runner_tells_arrives(channel: Control, sent: list[Message], received: list[Message]) -> None:
    """With its values, and the channel stays open."""
    for message in sent:
        tell(channel.theirs, message)
    assert list(channel.messages()) == received
    assert not channel.hung_up()


def test_a_failure_crosses_the_channel_with_its_class(channel: Control) -> None:
    """A long text is cut, so that it always fits a message."""
    tell(channel.theirs, Failed.of(DoesNotFit("\0é" * 100_000, hint="x" * 100_000)))
    (failed,) = channel.messages()
    assert isinstance(failed, Failed)
    error = failed.error()
    assert type(error) is DoesNotFit
    assert error.message.startswith("\0é\0é")
    assert len(error.message) == len(error.hint) == control.LONGEST_TEXT


def test_caches_are_reported_as_often_as_they_were_asked_for(channel: Control) -> None:
    """One answer for each order."""
    for _ in range(2):
        channel.shrink()
    for _ in range(3):
        tell(channel.theirs, Shrunk())
    messages = channel.messages()
    assert [next(messages), next(messages)] == [Shrunk(), Shrunk()]
    with pytest.raises(Violation, match="shrunk"):
        next(messages)


def fds(channel: Control) -> None:
    try:
        socket.send_fds(channel.theirs, [VALID[0]], [0])
    except PermissionError:  # the kernel refuses that since Linux 6.16; the message arrives as an invalid one before
        channel.theirs.send(b"?")


ATTACKS: Mapping[str, Callable[[Control], Any]] = {
    "no JSON": lambda channel: channel.theirs.send(b"\xff\x00garbage"),
    "an empty message": lambda channel: channel.theirs.send(b""),
    "half a message": lambda channel: channel.theirs.send(VALID[0][:-3]),
    "two messages in one": lambda channel: channel.theirs.send(VALID[0] * 2),
    "a long message": lambda channel: channel.theirs.send(b" " * 100_000),
    "deep nesting": lambda channel: channel.theirs.send(b"[" * 60_000),
    "a list": lambda channel: channel.theirs.send(b"[1]"),
    "a number": lambda channel: channel.theirs.send(b"7"),
    "an unknown type": lambda channel: channel.theirs.send(b'{"type":"evict"}'),
    "an unknown field": lambda channel: channel.theirs.send(b'{"type":"ready","seconds":1,"more":1}'),
    "a missing field": lambda channel: channel.theirs.send(b'{"type":"ready"}'),
    "a wrong type": lambda channel: channel.theirs.send(b'{"type":"ready","seconds":"1"}'),
    "a number beyond a float": lambda channel: channel.theirs.send(b'{"type":"ready","seconds":1e999}'),
    "text that is not UTF-8": lambda channel: channel.theirs.send(b'{"type":"lost","message":"\xff"}'),
    "a surrogate": lambda channel: channel.theirs.send(b'{"type":"failed","class":"\\ud800","message":"","hint":""}'),
    "ready twice": lambda channel: [channel.theirs.send(VALID[0]) for _ in range(2)],
    "failed, then ready": lambda channel: [channel.theirs.send(each) for each in (VALID[1], VALID[0])],
    "failed, then lost": lambda channel: [channel.theirs.send(each) for each in VALID[1:3]],
    "lost before ready": lambda channel: channel.theirs.send(VALID[2]),
    "freed caches that nobody asked for": lambda channel: channel.theirs.send(VALID[3]),
    "file descriptors": fds,
    "the end of its side alone": lambda channel: channel.theirs.shutdown(socket.SHUT_WR),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_anything_else_is_a_violation_once(channel: Control, attack: Callable[[Control], Any]) -> None:
    """The channel is closed to the runner, and what it sends later costs the host nothing."""
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    attack(channel)
    with pytest.raises(Violation):
        list(channel.messages())
    assert channel.hung_up()
    assert list(channel.messages()) == []
    with pytest.raises(BrokenPipeError):
        channel.theirs.send(VALID[0])
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


class Forks:
    """A forkserver that starts no process: a runner is the other end of its channel. It reports what `reports` has."""

    def __init__(self) -> None:
        self.runner: RunnerProcess | None = None
        self.theirs: socket.socket | None = None
        self.reports: list[dict[str, Any]] = []

    def fork(self, runner: RunnerProcess, *rest: object) -> None:
        if self.theirs:
            self.theirs.close()
        counters, self.theirs = runner.hand_over()
        self.theirs.setblocking(False)
        os.close(counters)
        self.runner = runner

    def messages(self) -> Iterator[Mapping[str, Any]]:
        reports, self.reports = self.reports, []
        yield from reports


class Host:
    """A store with one model in the loop of a host, without a process."""

    def __init__(self, directory: Path) -> None:
        chosen = replace(settings.read({}), run_dir=directory, budget_bytes=100 * MB)
        chosen.sockets.mkdir(parents=True)
        config: ModelConfig[Any] = ModelConfig(name="m", handler="custom", directory=directory, bytes=MB, options={})
        found = Catalog([Entry(name="m", path=directory, archive=False, config=config)])
        self.forks = Forks()
        self.store = Store(chosen, found, cast(Any, self.forks), lambda: None)
        self.model = self.store.models["m"]
        self.poller = Poller()
        self.sockets = ModelSockets(self.store, self.poller)

    def start(self) -> tuple[RunnerProcess, socket.socket]:
        self.model.failed, self.model._paused_until = None, 0.0
        self.model._crash_times.clear()
        self.store.want(self.model)
        assert self.forks.runner
        assert self.forks.theirs
        self.sockets.refresh()
        return self.forks.runner, self.forks.theirs

    def turn(self) -> None:
        self.sockets.refresh()
        self.poller.wait(0)

    def exits(self, runner: RunnerProcess, status: int) -> None:
        """The forkserver reports the end of this runner's process."""
        runner.pid = (1 << 22) + 1 + runner.number  # above the largest process id of Linux
        self.forks.reports.append({"died": runner.pid, "status": status})
        self.store.forked()


@pytest.fixture
def host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Host]:
    caplog.set_level("CRITICAL")
    host = Host(tmp_path)
    yield host
    for runner in list(host.store.runners.alive.values()):
        host.exits(runner, 0)
    if host.forks.theirs:
        host.forks.theirs.close()
    host.model.close()


def test_no_message_of_a_runner_ends_the_host(host: Host) -> None:
    """A hundred thousand, through real sockets and the host's loop: a runner obeys the protocol, or is ended."""
    luck = random.Random(13)
    pool = [garbage(luck) for _ in range(3000)]
    sent = ended = 0
    while sent < MANY:
        runner, theirs = host.start()
        for message in luck.choices(pool, k=100):
            try:
                theirs.send(message)
            except BlockingIOError:
                host.turn()
            except BrokenPipeError:  # the host has closed the channel
                pass
            sent += 1
        host.turn()
        host.store.tick()
        msgspec.json.encode(host.model.shown())
        ended += bool(runner.kill_reason)
        theirs.close()
        host.turn()
        host.exits(runner, -signal.SIGKILL if runner.kill_reason else luck.randrange(256))
        assert not host.model.runners
    assert ended > MANY / 200


@pytest.mark.parametrize("ready", [False, True])
def test_callers_and_the_log_get_the_reason(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ready: bool
) -> None:
    """While it loads and while it serves."""
    caplog.set_level("INFO")
    monkeypatch.setattr("serve.machine.private_bytes", lambda *_: MB)
    runner, theirs = host.start()
    if ready:
        tell(theirs, Ready(0.1))
        host.turn()
        assert runner.phase is Phase.READY
    theirs.send(b'{"type":"evict","model":"other"}')
    host.turn()
    assert "control channel" in runner.kill_reason
    host.exits(runner, -signal.SIGKILL)
    assert host.model.failed
    error = host.model.failed[1]
    assert "evict" in error.message
    assert "control channel" in error.message
    assert isinstance(error, RunnerDied) == ready
    assert any("evict" in str(getattr(each, "reason", "")) for each in caplog.records)


@pytest.mark.parametrize("status", [*range(256), *(-number for number in range(1, 65))])
def test_each_exit_status_and_signal_is_told(host: Host, status: int) -> None:
    """Most of the signals that a process can send to itself have no name in Python."""
    runner, _ = host.start()
    host.exits(runner, status)
    assert host.model.failed
    assert "exited during the load: " in host.model.failed[1].message


def test_a_runner_that_closes_its_channel_is_ended(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process goes on: the host could neither retire it nor free its memory."""
    runner, theirs = host.start()
    theirs.close()
    host.turn()
    host.store.tick()
    assert not runner.kill_reason  # its exit may be about to be reported
    monkeypatch.setattr(host_runners, "CLOSED", 0.0)
    runner.pid = 1 << 30  # of no process: its exit takes long, and is about to be reported
    host.store.tick()
    assert not runner.kill_reason
    runner.pid = 0
    host.store.tick()
    assert "control channel" in runner.kill_reason


def test_a_retired_runner_that_does_not_exit_is_ended(host: Host) -> None:
    """Its code may have taken the order out of the channel, or refuse to end."""
    runner, _ = host.start()
    runner.retire()
    host.store.tick()
    assert not runner.kill_reason
    runner.retired = time.monotonic() - 10_000
    host.store.tick()
    assert "retired" in runner.kill_reason


@pytest.fixture
def ready(host: Host, monkeypatch: pytest.MonkeyPatch) -> RunnerProcess:
    """A runner that serves and is idle."""
    monkeypatch.setattr("serve.machine.private_bytes", lambda *_: MB)
    runner, theirs = host.start()
    tell(theirs, Ready(0.1))
    host.turn()
    assert runner.phase is Phase.READY
    return runner


def looks(host: Host, seconds: float, each: Callable[[], Any] = lambda: None) -> None:
    """The host listens to its runners for so long."""
    for _ in range(round(seconds / LISTEN_EVERY)):
        host.store.runners._listened = time.monotonic() - LISTEN_EVERY
        each()
        host.store.runners.kill_silent()


def test_an_idle_runner_that_is_silent_is_replaced_without_a_caller(host: Host, ready: RunnerProcess) -> None:
    """It is stopped, or its main thread is blocked by a model's own code."""
    looks(host, host_runners.SILENT - LISTEN_EVERY)
    assert not ready.kill_reason
    looks(host, 2 * LISTEN_EVERY)
    assert "silent" in ready.kill_reason
    host.exits(ready, -signal.SIGKILL)
    assert host.forks.runner is not ready
    assert host.model.state() == "loading"
    assert host.model.shown()["deaths"] == 1


def beat(runner: RunnerProcess) -> None:
    runner.slot.add("turns")


def work(runner: RunnerProcess) -> None:
    runner.slot.set("busy_since", time.monotonic_ns())


@pytest.mark.parametrize("does", [beat, work])
@pytest.mark.parametrize("retired", [False, True])
def test_a_runner_that_turns_or_works_is_left_alone(
    host: Host, ready: RunnerProcess, does: Callable[[RunnerProcess], None], retired: bool
) -> None:
    """A busy one has its time limit."""
    if retired:
        ready.retire()
    looks(host, 3 * host_runners.SILENT, lambda: does(ready))
    assert not ready.kill_reason


def test_a_pause_of_the_machine_is_not_the_silence_of_a_runner(host: Host, ready: RunnerProcess) -> None:
    """All processes stood still: each look of the host counts some seconds at most."""
    for _ in range(2):
        host.store.runners._listened = time.monotonic() - 3600
        host.store.runners.kill_silent()
    assert not ready.kill_reason


def test_a_runner_that_has_printed_very_much_is_replaced(host: Host, ready: RunnerProcess) -> None:
    """Before the limit of a model's files, which holds for its output too, fails its requests."""
    host.store.tick()
    assert ready.phase is Phase.READY
    os.ftruncate(ready.output.fd, MOST_OUTPUT + 1)
    ready.output._read_to = MOST_OUTPUT
    host.store.runners._shown = 0.0
    host.store.tick()
    assert host.forks.theirs
    assert host.forks.theirs.recv(64) == b"retire"
