"""What all workloads share: the rows of the table, and the run with its processes and raw figures."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from bench.child import Child
from bench.load import LoadGenerator, Measured
from bench.memory import Reader
from bench.stacks import Ours, Stack, Usual
from bench.table import times

T = TypeVar("T")

CORES = len(os.sched_getaffinity(0))
MB = 1e6
PING_EVERY, PING_FAILED = 0.05, 10.0  # seconds; a failed ping counts as a slow one
CSV, JSON = "text/csv", "application/json"


@dataclass(frozen=True)
class Row:
    """A line of the table; `reached` is None where there is no aim."""

    workload: str
    ours: str
    usual: str = ""
    limit: str = ""  # in process, and peers
    ratio: str = ""
    aim: str = ""
    reached: bool | None = None
    ratios: dict[str, float] = field(default_factory=dict, compare=False)  # for the charts: this server over each other
    memory: dict[str, float] = field(default_factory=dict, compare=False)  # of a language model (memory.limit)


class Bench:
    """What the workloads share: raw figures and pings; the directory and the processes of the one that runs."""

    def __init__(self, quick: bool, root: Path, peers: bool = False, callers: Sequence[int] = ()) -> None:
        self.quick = quick
        self.peers = peers  # whether engines and servers of .venv-peers take part
        self.not_run: list[str] = []  # peers, and why
        self.checked: list[str] = []  # how many tokens of peers and of this server equal those of `generate`
        self.work = root
        self._callers = callers
        self.raw: dict[str, Any] = {}
        self.pings: dict[str, list[float]] = {"ours": [], "usual": []}  # milliseconds, over all workloads
        self._root = root
        self._generator = Child(LoadGenerator)
        self._reader: Child | None = None  # of the workload that runs: it holds half a gigabyte
        self._started = ExitStack()
        self._begun = time.monotonic()

    @contextmanager
    def workload(self, name: str) -> Iterator[None]:
        """Runs a workload in a directory of its own, and stops what it has started."""
        self.work = self._root / name.lower()
        self.work.mkdir()
        try:
            with self._started:
                yield
        finally:
            self._reader = None

    def start(self, context: AbstractContextManager[T]) -> T:
        """Enters a context until the end of the workload."""
        return self._started.enter_context(context)

    def reads_now(self) -> float:
        """GB/s at which memory is read by as many threads as there are cores."""
        self._reader = self._reader or self.start(Child(Reader, threads=CORES))
        return float(self._reader.ask("gigabytes_per_second"))

    def both(self, models: Path) -> tuple[Ours, Usual]:
        """Starts this server and the usual stack, with the same models."""
        ours, usual = self.start(Ours(models, self.work / "ours")), self.start(Usual(models, self.work / "usual"))
        ours.wait_ready()
        usual.wait_ready()
        return ours, usual

    def progress(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun:6.0f} s  {text}", file=sys.stderr, flush=True)

    def rounds(self, text: str, count: int) -> Iterator[int]:
        """Counts so many rounds, a single one of a quick run, and reports each."""
        for number in range(1 if self.quick else count):
            self.progress(f"{text}, round {number + 1}")
            yield number

    @contextmanager
    def pinging(self, stack: Stack) -> Iterator[None]:
        """Sends GET /ping 20 times a second meanwhile: the pings of a stack under load."""
        done = threading.Event()
        times_ms = self.pings[stack.name]

        def ping() -> None:
            due = time.monotonic()
            while not done.wait(max(0.0, due - time.monotonic())):
                began = time.monotonic()
                good = stack.pings()
                times_ms.append((time.monotonic() - began if good else PING_FAILED) * 1e3)
                due = max(due + PING_EVERY, time.monotonic())

        with ThreadPoolExecutor(1) as thread:
            thread.submit(ping)
            try:
                yield
            finally:
                done.set()

    def wants(self, callers: int) -> bool:
        """Whether this number of callers is to be measured."""
        return not self._callers or callers in self._callers

    def load(self, stack: Stack, messages: Sequence[bytes], connections: int, **until: Any) -> Measured:
        """Sends the messages in turns for some `seconds`, or `each` times on each connection; then none may fail."""
        made: Measured = self._generator.ask("run", stack.port, messages, connections, **until)
        assert not ("each" in until and made.errors), f"{stack.name}: {made.errors} responses were errors"
        return made

    def measure(self, stack: Stack, messages: Sequence[bytes], connections: int, **until: Any) -> Measured:
        """The same, with pings of a stack that has a /ping: mosec has none."""
        with self.pinging(stack) if stack.name in self.pings else nullcontext():
            return self.load(stack, messages, connections, **until)


def row(workload: str, *shown: str, ratio: str = "", value: float = 0, at_least: str = "", at_most: str = "") -> Row:
    """A row of texts: ours, of the usual stack, in process. A value reaches its aim by the number in the aim's text."""
    ours, usual, limit = (*shown, "", "")[:3]
    aim = at_least or at_most
    if not aim:
        return Row(workload, ours, usual, limit, ratio)
    number = float(re.findall(r"[\d.]+", aim)[0])
    return Row(workload, ours, usual, limit, ratio, aim, value >= number if at_least else value <= number)


def compared(
    title: str,
    rates: dict[str, float],
    unit: str,
    aims: dict[str, float],
    *,
    missing: Mapping[str, str] = MappingProxyType({}),
    memory: Mapping[str, float] = MappingProxyType({}),
) -> Row:
    """A row of rates: higher is better. The first aim whose limit was run decides. `missing`: why peers have none."""
    ratios = {who: rates["ours"] / rate for who, rate in rates.items() if who != "ours"}
    aim = next(((who, least) for who, least in aims.items() if who in ratios), None)
    beside = [f"{who} {rate:,.0f}" for who, rate in rates.items() if who != "ours"]
    beside += [f"{who} - ({why})" for who, why in missing.items()]
    shown = ", ".join(f"{times(ratio)} {who}" for who, ratio in ratios.items())
    return Row(
        title,
        f"{rates['ours']:,.0f} {unit}",
        limit=", ".join(beside),
        ratio=shown,
        aim=f"{aim[1]:g} x {aim[0]}" if aim else "",
        reached=ratios[aim[0]] >= aim[1] if aim else None,
        ratios=ratios,
        memory=dict(memory),
    )
