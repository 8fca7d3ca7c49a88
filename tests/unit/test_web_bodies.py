"""Bodies that a web worker reads: large ones one after another, small ones beside them."""

import gzip
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from flask import Flask

from serve import settings
from serve.errors import BadRequest, PayloadTooLarge, QueueFull, UnsupportedMediaType
from serve.http import wire
from serve.web import bodies
from serve.web.bodies import SMALL, WAITING, Bodies
from tests.patience import PATIENCE

LARGE = gzip.compress(b"x" * (2 * SMALL))
APP = Flask("test")


def read(reader: Bodies, body: bytes, encoding: str = "gzip", clock: str = "") -> bytes:
    headers = {"Content-Encoding": encoding} if encoding else {}
    with APP.test_request_context(method="POST", data=body, headers={**headers, "X-Serve-Clock": clock}):
        return reader.read()


@pytest.fixture
def reader() -> Bodies:
    return Bodies(settings.read({"SERVE_RUN_DIR": "/run/x", "SERVE_MAX_PAYLOAD_MB": "4"}))


class Gate:
    """Stops `wire.decompressed` in bodies that unfold to more than SMALL, and counts those that are inside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.most, self.total = 0, 0, 0
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self._whole: Callable[..., bytes] = wire.decompressed
        monkeypatch.setattr(wire, "decompressed", self._decompressed)

    def _decompressed(self, body: bytes, encoding: str, most: int, *members: int) -> bytes:
        if most <= SMALL:
            return self._whole(body, encoding, most, *members)
        self.inside += 1
        self.total += 1
        self.most = max(self.most, self.inside)
        self.entered.release()
        assert self.open.wait(PATIENCE)
        unpacked = self._whole(body, encoding, most, *members)
        self.inside -= 1
        return unpacked


def test_small_bodies_are_read_beside_a_large_one(reader: Bodies, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two large ones are never read at once."""
    gate = Gate(monkeypatch)
    monkeypatch.setattr(bodies, "PATIENCE", PATIENCE)
    with ThreadPoolExecutor(4) as threads:
        large: list[Future[bytes]] = [threads.submit(read, reader, LARGE) for _ in range(3)]
        assert gate.entered.acquire(timeout=PATIENCE)
        small = [read(reader, gzip.compress(b"small")), read(reader, b"plain", "")]
        assert not any(each.done() for each in large)
        gate.open.set()
        assert [len(each.result()) for each in large] == [2 * SMALL] * 3
    assert small == [b"small", b"plain"]
    assert (gate.most, gate.total) == (1, 3)


def test_a_large_body_that_cannot_be_read_in_time_is_refused(reader: Bodies, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with Retry-After, before it is read: at its deadline, or at once if too many wait already."""
    gate = Gate(monkeypatch)
    monkeypatch.setattr(bodies, "PATIENCE", PATIENCE)
    hour_old = f"{time.time()} 3600.0 3599.0"
    with ThreadPoolExecutor(WAITING + 1) as threads:
        first = threads.submit(read, reader, LARGE)
        assert gate.entered.acquire(timeout=PATIENCE)
        with pytest.raises(QueueFull, match="to be read") as late:
            read(reader, LARGE, clock=hour_old)
        waiting = [threads.submit(read, reader, LARGE) for _ in range(WAITING)]
        while reader._waiting < WAITING:
            assert not any(each.done() for each in waiting)
            time.sleep(0.001)
        with pytest.raises(QueueFull, match=f"{WAITING} large bodies wait") as full:
            read(reader, LARGE)
        assert gate.total == 1
        gate.open.set()
        assert [len(each.result()) for each in (first, *waiting)] == [2 * SMALL] * (WAITING + 1)
    assert late.value.retry_after == full.value.retry_after == 1
    assert "TargetModel" in full.value.hint


@pytest.mark.parametrize(
    ("body", "encoding", "error"),
    [
        (gzip.compress(b"x" * (5 * SMALL)), "gzip", PayloadTooLarge),
        (b"x" * (2 * SMALL), "br", UnsupportedMediaType),
        (LARGE[:-9], "gzip", BadRequest),
        (b"nothing of the kind", "gzip", BadRequest),
        (gzip.compress(b"") * (wire.MEMBERS + 1), "gzip", BadRequest),
    ],
)
def test_an_invalid_body_frees_its_turn(reader: Bodies, body: bytes, encoding: str, error: type[Exception]) -> None:
    """The next one is read."""
    with pytest.raises(error):
        read(reader, body, encoding)
    assert len(read(reader, LARGE)) == 2 * SMALL
