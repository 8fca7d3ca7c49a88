"""What a workload gets: sizes, a place to work in, a line of progress, and somewhere to leave its raw figures."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.pinger import Pinger
from bench.stacks import Stack

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Row:
    """A line of the table; `reached` is None where there is no aim."""

    workload: str
    ours: str
    usual: str = ""
    limit: str = ""  # in process
    ratio: str = ""
    aim: str = ""
    reached: bool | None = None


@dataclass
class Context:
    quick: bool
    work: Path
    raw: dict[str, Any] = field(default_factory=dict)
    pings: dict[str, list[float]] = field(default_factory=dict)  # "ours", "usual" -> ms, over all workloads
    windows: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _begun: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self._begun:6.0f} s  {what}", file=sys.stderr, flush=True)

    def keep(self, key: str, value: Any) -> None:
        """A raw figure, for the JSON file."""
        self.raw.setdefault(key, []).append(value)

    @contextmanager
    def during(self, who: str) -> Iterator[None]:
        """Remember when this was: the pings of that time count as that stack's under load."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.windows.setdefault(who, []).append((began, time.monotonic()))

    @contextmanager
    def pinged(self, **stacks: Stack) -> Iterator[None]:
        """Ping these stacks meanwhile; `during` says what counts."""
        pingers = {who: Pinger(stack.port, self.work / f"pings-{who}") for who, stack in stacks.items()}
        self.windows.clear()
        try:
            yield
        finally:
            for who, pinger in pingers.items():
                pinger.stop()
                self.pings.setdefault(who, []).extend(pinger.times_ms(self.windows.get(who, [])))


def middle(values: list[float]) -> float:
    return median(values) if values else float("nan")
