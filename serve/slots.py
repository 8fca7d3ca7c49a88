"""Counters that processes share without messages: one mmap'd file, one slot for each process, one writer a field.

The host reads a runner's slot to choose an eviction victim, or to detect that it is stuck. Web workers read the header
to answer /ping. The file is in the run directory and not in /dev/shm, which serverless inference does not have. The
fields are aligned 8-byte numbers, so that a reader never sees half of one.
"""

import mmap
import os
import time
from enum import IntEnum
from pathlib import Path

HEADER = 512
FIELDS = (
    "pid",
    "in_flight",
    "last_used",  # time.monotonic_ns() of the newest arrival or answer
    "busy_since",  # time.monotonic_ns() when the current turn of work began; 0 between turns
    # When the newest request whose work has begun arrived at nginx, in milliseconds since 1970; 0: none yet. The host
    # compares it with the arrival of a request that broke off: a later one cannot have begun, and is safe to retry.
    "begun_arrival_epoch_ms",
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
SLOT = 8 * len(FIELDS)
WEB_SLOTS = 64  # the first slots are those of web workers
SLOTS = 4096
AT = {name: index for index, name in enumerate(FIELDS)}


class State(IntEnum):
    STARTING = 0
    READY = 1
    DRAINING = 2
    ENDING = 3  # a process that all models need has ended


class Slots:
    """The mapped file. The launcher creates it, once; other processes open it."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if create:
            fresh = path.with_suffix(".new")
            fresh.write_bytes(bytes(HEADER + SLOT * SLOTS))
            fresh.rename(path)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), HEADER + SLOT * SLOTS)
        self._numbers = memoryview(self._map).cast("q")
        if create:
            self.beat(State.STARTING, "starting")  # otherwise the silence would count from boot

    def slot(self, index: int) -> "Slot":
        return Slot(self._numbers[(HEADER + SLOT * index) // 8 : (HEADER + SLOT * (index + 1)) // 8])

    def beat(self, state: State, message: str) -> None:
        """The host's heartbeat, with its state and the reason."""
        raw = message.encode()[:400]
        self._map[16:18] = len(raw).to_bytes(2, "little")
        self._map[18 : 18 + len(raw)] = raw
        self._numbers[0] = state
        self._numbers[1] = time.monotonic_ns()

    def pulse(self) -> tuple[State, float, str]:
        """The host's state, the seconds since its last heartbeat, and the reason."""
        length = int.from_bytes(self._map[16:18], "little")
        message = self._map[18 : 18 + length].decode(errors="replace")
        return State(self._numbers[0]), (time.monotonic_ns() - self._numbers[1]) / 1e9, message


class Slot:
    """One process's counters, by name; in `numbers` by the number in AT, where each request counts."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: memoryview) -> None:
        self.numbers = numbers

    def get(self, name: str) -> int:
        return int(self.numbers[AT[name]])

    def set(self, name: str, value: int) -> None:
        self.numbers[AT[name]] = value

    def add(self, name: str, value: int = 1) -> None:
        self.numbers[AT[name]] += value

    def clear(self) -> None:
        for index in range(len(FIELDS)):
            self.numbers[index] = 0
        self.set("pid", os.getpid())

    def all(self) -> dict[str, int]:
        return dict(zip(FIELDS, self.numbers.tolist(), strict=True))
