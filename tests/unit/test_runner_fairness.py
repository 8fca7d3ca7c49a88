"""The order in which a runner decodes and answers, and what it refuses before it decodes."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve import settings
from serve.handlers.base import Reply, Request
from serve.http.addresses import INVOCATIONS
from serve.machine import OwnMemory
from serve.runner import large, loop
from serve.runner.arrival import Addressee, ColdStart
from serve.runner.jobs import Batches
from serve.runner.large import LargeBodies
from serve.runner.loop import Loop
from serve.runner.rest import Rest
from serve.slots import Slot
from tests.patience import PATIENCE

BIG = "big " + "x" * (large.SMALL + 1)


class Recorder:
    """Notes what it does. Its items are the first words of the bodies; `long` needs so many batches."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.decode_seconds, self.predict_seconds = 0.0, 0.0
        self.long: dict[str, int] = {}
        self.alone: set[str] = set()

    def decode(self, request: Request) -> str:
        item = request.body[:40].split()[0].decode()
        self.events.append(("decode", item))
        time.sleep(self.decode_seconds)
        return item

    def compatible(self, item: str) -> Any:
        return item if item in self.alone else None

    def predict(self, items: Sequence[str]) -> Sequence[Reply | None]:
        self.events.append(("predict", *items))
        time.sleep(self.predict_seconds)
        return [self._outcome(item) for item in items]

    def _outcome(self, item: str) -> Reply | None:
        self.long[item] = self.long.get(item, 1) - 1
        return None if self.long[item] > 0 else Reply(body=item.encode(), content_type="text/plain")


class Runner:
    """The loop of a runner in a thread, from `begin` on; requests may be sent before."""

    def __init__(self, directory: Path, recorder: Recorder, max_batch: int = 32) -> None:
        chosen = replace(settings.read({}), run_dir=directory)
        slot = Slot(Slot.create())
        listener = socket.socket(socket.AF_UNIX)
        self._path = str(directory / "m.sock")
        listener.bind(self._path)
        listener.listen(100)
        listener.setblocking(False)
        self._host, self._control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._loop = Loop(
            Batches(recorder, max_batch),  # type: ignore[arg-type]
            Addressee(["m"], "model_type", (INVOCATIONS,)),
            listener,
            self._control,
            slot,
            chosen,
            ColdStart.ended_now(slot),
            stepwise=False,
            rest=Rest(OwnMemory()),
        )
        self._thread = threading.Thread(target=self._loop.run)

    def send(self, body: str | bytes, *headers: str) -> "Call":
        return Call(self._path, body.encode() if isinstance(body, str) else body, headers)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        if not self._thread.ident:
            self.begin()
        self._host.send(b"retire")
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._host.close()
        self._control.close()


class Call:
    """A request that has been sent, as nginx does: the body goes on beside the test."""

    def __init__(self, path: str, body: bytes, headers: Sequence[str]) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(PATIENCE)
        self._sock.connect(path)
        lines = "".join(f"{each}\r\n" for each in headers)
        head = f"POST /invocations HTTP/1.1\r\nX-Request-Id: r\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        self._sender = threading.Thread(target=self._send, args=(head.encode() + body,), daemon=True)
        self._sender.start()
        if len(body) < 50_000:
            self._sender.join()

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            pass

    def answer(self) -> tuple[int, str]:
        got = b""
        while piece := self._sock.recv(1 << 16):
            got += piece
        self._sock.close()
        return int(got.split()[1]), got.partition(b"\r\n\r\n")[2].decode()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def start(tmp_path: Path, recorder: Recorder) -> Iterator[Callable[..., Runner]]:
    made: list[Runner] = []

    def run(**more: Any) -> Runner:
        made.append(Runner(tmp_path, recorder, **more))
        return made[-1]

    yield run
    for each in made:
        each.end()


def test_the_first_is_answered_before_the_second_is_decoded(start: Callable[..., Runner], recorder: Recorder) -> None:
    """Where one decoding takes as long as a turn may decode."""
    recorder.decode_seconds = 2 * loop.DECODE_NS / 1e9
    runner = start()
    calls = [runner.send(f"a{number}") for number in range(5)]
    runner.begin()

    assert [call.answer() for call in calls] == [(200, f"a{number}") for number in range(5)]
    assert recorder.events == [event for n in range(5) for event in (("decode", f"a{n}"), ("predict", f"a{n}"))]


def test_requests_that_are_decoded_quickly_share_a_batch(
    start: Callable[..., Runner], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that have arrived, as many as a batch has room for."""
    monkeypatch.setattr(loop, "DECODE_NS", PATIENCE * 1e9)
    runner = start(max_batch=8)
    calls = [runner.send(f"a{number}") for number in range(12)]
    runner.begin()

    assert {call.answer()[0] for call in calls} == {200}
    batches = [event for event in recorder.events if event[0] == "predict"]
    assert [len(event) - 1 for event in batches] == [8, 4]


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_small_request_is_not_behind_large_bodies(
    start: Callable[..., Runner], recorder: Recorder, encoding: str
) -> None:
    """The large ones are answered in their order, one after another."""
    recorder.decode_seconds = 2 * loop.DECODE_NS / 1e9
    runner = start()
    bodies = [f"big{number} {BIG}".encode() for number in range(4)]
    if encoding:
        calls = [runner.send(gzip.compress(each), "Content-Encoding: gzip") for each in bodies]
    else:
        calls = [runner.send(each) for each in bodies]
    small = runner.send("small")
    runner.begin()

    assert small.answer() == (200, "small")
    assert [call.answer()[0] for call in calls] == [200] * 4
    decoded = [event[1] for event in recorder.events if event[0] == "decode"]
    assert decoded.index("small") <= 1
    if encoding:  # each is here at once; of the others the order in which they are read to the end counts
        assert [each for each in decoded if each != "small"] == [f"big{number}" for number in range(4)]
    for before, after in zip(recorder.events, recorder.events[1:], strict=False):
        assert not before[1].startswith("big") or before[0] != "decode" or after[0] == "predict"


def test_what_cannot_be_answered_in_time_is_refused_before_it_is_decoded(
    start: Callable[..., Runner], recorder: Recorder
) -> None:
    """By what the last large body took; one past its deadline is not even unpacked."""
    recorder.predict_seconds = 0.5
    runner = start()
    runner.begin()
    assert runner.send(f"first {BIG}").answer()[0] == 200

    had = 57.8  # of 58 seconds
    near = runner.send(f"near {BIG}", f"X-Serve-Clock: {time.time()} {had} {had}").answer()
    damaged = gzip.compress(BIG.encode())[:-20]
    late = runner.send(damaged, "Content-Encoding: gzip", f"X-Serve-Clock: {time.time()} 59 59").answer()

    for status, body in (near, late):
        assert (status, json.loads(body)["type"]) == (503, "DeadlineExceededException"), body
    assert [event for event in recorder.events if event[0] == "decode"] == [("decode", "first")]


def test_a_job_of_many_batches_takes_turns_with_others(start: Callable[..., Runner], recorder: Recorder) -> None:
    """One that shares no batch: a small request waits for one of its batches. The next long one waits for its end."""
    recorder.long = {"long1": 4, "long2": 3}
    recorder.alone = {"long1", "long2"}
    runner = start()
    calls = [runner.send(each) for each in ("long1", "long2", "a")]
    runner.begin()

    assert [call.answer() for call in calls] == [(200, "long1"), (200, "long2"), (200, "a")]
    predicted = [event[1] for event in recorder.events if event[0] == "predict"]
    assert predicted.index("a") <= 3
    longs = [each for each in predicted if each != "a"]
    assert longs[-2:] == ["long2"] * 2  # its first batch was that in which it turned out to be long
    assert longs.index("long1") == 0


def test_a_long_job_shares_the_batches_of_others(start: Callable[..., Runner], recorder: Recorder) -> None:
    """Where they are compatible."""
    recorder.long = {"long": 3}
    runner = start()
    calls = [runner.send(each) for each in ("long", "a")]
    runner.begin()

    assert [call.answer() for call in calls] == [(200, "long"), (200, "a")]
    assert [event for event in recorder.events if event[0] == "predict"][-1] == ("predict", "long")


def test_large_bodies_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are read and not decoded have READ_BYTES together; one is read in any case."""

    class Body:
        def __init__(self, length: int) -> None:
            self.length = length

    monkeypatch.setattr(large, "READ_BYTES", 10)
    monkeypatch.setattr(large, "HELD", 4)
    queue = LargeBodies()
    bodies: list[Any] = [Body(30), Body(4), Body(5), Body(9)]
    for each in bodies:
        queue.add(each)
    assert (queue.full, len(queue)) == (True, 4)

    def read() -> list[Any]:
        found = []
        while one := queue.next_to_read():
            found.append(one)
        return found

    assert read() == bodies[:1]
    queue.completed(bodies[0])
    assert read() == []
    assert queue.take() is bodies[0]
    assert (queue.full, len(queue)) == (False, 3)
    assert read() == bodies[1:3]
    queue.broke(bodies[1])
    assert read() == []
    queue.completed(bodies[2])
    assert queue.take() is bodies[2]
    assert read() == bodies[3:]
    assert (len(queue), queue.reading, queue.ready) == (0, 1, False)
