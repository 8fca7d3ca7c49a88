"""Counters that processes share without messages, one writer a field.

Each runner has a slot: a page of memory that it shares with the host, and with no other process. The host reads it to
choose an eviction victim, or to detect that the runner is stuck. The fields are aligned 8-byte numbers, so that a
reader never sees half of one. A model's own code can write any number there: the host reads the page as a `RunnerSlot`,
and only what concerns this model depends on it.

The host's own words (its heartbeat, its state, the reason) and the counts of the web workers are in a file of the run
directory. No process maps this file, so that none is hurt if it is truncated; its writers restore it.
"""

import os
import struct
import time
from enum import IntEnum
from pathlib import Path

from serve import shared_pages

FIELDS = (
    "pid",
    "in_flight",
    "last_used",  # time.monotonic_ns() of the newest arrival or answer
    "busy_since",  # time.monotonic_ns() when the current turn of work began; 0 between turns
    # When the newest request whose work has begun arrived at nginx, in milliseconds since 1970; 0: none yet. The host
    # compares it with the arrival of a request that broke off: a later one cannot have begun, and is safe to retry.
    "begun_arrival_epoch_ms",
    "turns",  # of the runner's loop: an idle runner makes one every BEAT seconds
    "exhausted",  # consecutive answers with status 507
    "spare_bytes",  # of caches that the runner frees when the host asks for memory
    "pending_bytes",  # that the runner will still take: its handler's upkeep
    "requests",  # answered or refused
    "client_errors",
    "server_errors",
    "batches",
    "receive_ns",  # time until nginx had the whole body, summed over requests
    "load_wait_ns",  # time that requests waited for a load, summed
    "queue_ns",  # time in the queue, summed over requests
    "work_ns",  # inside the handler, summed over decodings and batches
    "batch_items",
    "streams",
    "device_bytes",  # of a GPU's memory, that this runner holds now; 0: it uses none
    # Written by the host: the time (time.monotonic_ns()) in which no runner of the model was ready. 0: there was none,
    # or this runner is the one that ends it.
    "cold_since",
    "cold_until",
)
AT = {name: index for index, name in enumerate(FIELDS)}
PAGE = 4096
BEAT = 3.0  # seconds
MOST = 1 << 53  # the largest number that JSON's readers take exactly
MOST_NS = 1 << 62  # of a sum of nanoseconds: a century
_PAST_NS = {"last_used", "busy_since"}


class Slot:
    """A runner's counters, by name; in `numbers` by the number in AT, where each request counts."""

    __slots__ = ("numbers",)

    def __init__(self, fd: int) -> None:
        """`fd`: of the page that `create` has made; it may be closed afterwards. Raises OSError."""
        self.numbers = shared_pages.mapped(fd, PAGE).cast("q")

    @staticmethod
    def create() -> int:
        """The page of a new runner: a descriptor. All its counters are 0. Raises OSError."""
        return shared_pages.create("counters", PAGE)

    def get(self, name: str) -> int:
        return int(self.numbers[AT[name]])

    def set(self, name: str, value: int) -> None:
        self.numbers[AT[name]] = value

    def add(self, name: str, value: int = 1) -> None:
        self.numbers[AT[name]] += value


class RunnerSlot(Slot):
    """The host's view of a runner's counters: each number is one that an honest runner could have written."""

    __slots__ = ()

    def get(self, name: str) -> int:
        value = int(self.numbers[AT[name]])
        if value <= 0:
            return 0
        if name in _PAST_NS:
            return min(value, time.monotonic_ns())
        if name == "begun_arrival_epoch_ms":
            return min(value, int(time.time() * 1e3))
        return min(value, MOST_NS if name.endswith("_ns") else MOST)


class State(IntEnum):
    STARTING = 0
    READY = 1
    DRAINING = 2
    ENDING = 3  # a process that all models need has ended


FILES_LOST = 4  # the exit status of a host whose sockets are gone; its last heartbeat says which
_WORDS = struct.Struct("<qqH400s")  # of the host: its state, the time of its heartbeat, and the length of the reason
_HEADER = 512
WEB_SLOTS = 64
WEB_FIELDS = ("requests", "client_errors", "server_errors")
_WEB = struct.Struct(f"<{len(WEB_FIELDS)}q")


class Slots:
    """The file of the host's words and the web workers' counts. The launcher creates it, once; others open it."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            fresh = path.with_suffix(".new")
            fresh.write_bytes(bytes(_HEADER + _WEB.size * WEB_SLOTS))
            fresh.rename(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if create:
            self.beat(State.STARTING, "starting")  # otherwise the silence would count from boot

    def beat(self, state: State, message: str) -> None:
        """The host's heartbeat, with its state and the reason."""
        raw = message.encode(errors="replace")[:400]
        os.pwrite(self._fd, _WORDS.pack(state, time.monotonic_ns(), len(raw), raw), 0)

    def pulse(self) -> tuple[State, float, str]:
        """The host's state, the seconds since its last heartbeat, and the reason."""
        found = os.pread(self._fd, _WORDS.size, 0)
        try:
            state, beat, length, raw = _WORDS.unpack(found)
            return State(state), (time.monotonic_ns() - beat) / 1e9, raw[:length].decode(errors="replace")
        except (struct.error, ValueError):  # until the host's next heartbeat
            return State.STARTING, 0.0, "the file of counters in the run directory is damaged"

    def web(self, number: int) -> "WebCounts":
        """The counts of a web worker, which is their only writer, from where an earlier worker of this number ended."""
        return WebCounts(self._fd, number)

    def web_totals(self) -> dict[str, int]:
        """The counts of all web workers."""
        found = os.pread(self._fd, _WEB.size * WEB_SLOTS, _HEADER).ljust(_WEB.size * WEB_SLOTS, b"\0")
        rows = _WEB.iter_unpack(found)
        return {
            name: sum(min(max(count, 0), MOST) for count in counts)
            for name, counts in zip(WEB_FIELDS, zip(*rows, strict=True), strict=True)
        }


class WebCounts:
    """The counts of one web worker."""

    def __init__(self, fd: int, number: int) -> None:
        self._fd = fd
        self._at = _HEADER + _WEB.size * number
        found = os.pread(fd, _WEB.size, self._at).ljust(_WEB.size, b"\0")
        self._counts = dict(zip(WEB_FIELDS, (min(max(each, 0), MOST) for each in _WEB.unpack(found)), strict=True))

    def add(self, *names: str) -> None:
        """Count one more of each."""
        for name in names:
            self._counts[name] += 1
        os.pwrite(self._fd, _WEB.pack(*self._counts.values()), self._at)
