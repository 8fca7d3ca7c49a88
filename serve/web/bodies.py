"""The bodies that a web worker reads to find a model's name: small ones at once, large ones one after another.

A body of 25 kB may unfold to 25 MB, which takes 0.1 s of a processor and twice its size in memory. So a worker reads
one such body at a time; the other threads stay free for small requests.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flask import request

from serve.errors import BadRequest, PayloadTooLarge, QueueFull, ServeError
from serve.http import wire
from serve.http.clock import parse_clock
from serve.settings import Settings

THREADS = 16  # of a web worker
WAITING = 12  # of them at most wait for a large body
SMALL = 1 << 20  # bytes, unpacked; they take 2 ms
PATIENCE = 5.0  # seconds; nginx waits 10 s for a web worker
_MEMBERS = 16  # of a small body


class Bodies:
    """One for all threads of a worker."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.payload_bytes
        self._request_limit = settings.request_limit
        self._turn = threading.Lock()
        self._waiting = 0
        self._counting = threading.Lock()

    def read(self) -> bytes:
        """The body of Flask's request, unpacked.

        Raises QueueFull if too many large ones wait, or one would wait too long; else as `wire.decompressed` does.
        """
        encoding = request.headers.get("Content-Encoding", "")
        if (request.content_length or 0) > SMALL:
            with self._large():
                return wire.decompressed(request.get_data(cache=False), encoding, self._limit)
        body = request.get_data(cache=False)
        if not encoding:
            return body
        try:
            return wire.decompressed(body, encoding, min(SMALL, self._limit), _MEMBERS)
        except (PayloadTooLarge, BadRequest):  # too large to be read at once; or invalid, and the next line says why
            with self._large():
                return wire.decompressed(body, encoding, self._limit)

    @contextmanager
    def _large(self) -> Iterator[None]:
        clock = parse_clock(request.headers.get("X-Serve-Clock", ""))
        left = PATIENCE
        if clock:
            left = min(left, clock.arrived_epoch + clock.receive + self._request_limit - time.time())
        with self._counting:
            if self._waiting >= WAITING:
                raise self._full(f"{WAITING} large bodies wait to be read")
            self._waiting += 1
        try:
            if not self._turn.acquire(timeout=max(0.0, left)):
                raise self._full(f"a large body has waited for {max(0.0, left):.1f} s to be read")
        finally:
            with self._counting:
                self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    @staticmethod
    def _full(message: str) -> ServeError:
        hint = "retry later; name the model in the header TargetModel: then no web worker reads the body"
        return QueueFull(message, hint=hint, retry_after=1)
