"""The long run: right calls, hostile inputs and kills at the same time, for as many calls as asked.

Each call is compared with its known answer. An error is explained if it names a cause, and if that cause was given: a
runner that was killed, a worker of nginx that was killed. Memory and descriptors of each process are sampled.
"""

import itertools
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.machine import private_bytes
from tests.storm import hostile
from tests.storm.callers import Callers, Client, Outcome, counted, pinging
from tests.storm.faults import is_unexplained
from tests.storm.fleet import Fleet, Question, working_set
from tests.storm.subjects import Subject

MB = 1 << 20
CALLERS, ATTACKERS = 16, 4
MODELS = {"own": 3, "trees": 3, "linear": 2, "text": 1}
MB_EACH = {"own": 28, "trees": 14, "linear": 20, "text": 30}  # that a loaded model holds, about
ROOM = 0.66  # of all models: so that each new working set evicts others
SET, EVERY = 4, 400  # models that are asked at a time; calls after which one of them is replaced
WARM = 300.0  # seconds for the first answer of a model
NEAR = 3.0  # seconds before its end within which a kill explains an error
# Growth from the first to the last third of the samples that is no leak: allocators and caches settle.
MAY_GROW_MB, MAY_OPEN = 24, 40
SAMPLE = 1.0  # seconds
VICTIMS = ("runner",) * 8 + ("web worker", "nginx worker")


def budget_mb(models: Mapping[str, int]) -> int:
    """The budget for so many models of each kind."""
    return int(ROOM * sum(MB_EACH[kind] * count for kind, count in models.items()))


@dataclass(frozen=True, slots=True)
class Plan:
    calls: int
    seconds: float  # over which the calls are spread, and after which the run ends
    kills: int
    inputs: int
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Kill:
    at: float
    part: str


@dataclass(slots=True, kw_only=True)
class Growth:
    """Memory and descriptors of one process: medians of the first and the last third of its samples."""

    part: str
    samples: int
    first_mb: float
    last_mb: float
    most_mb: float
    first_files: int
    last_files: int

    @property
    def flat(self) -> bool:
        return self.last_mb - self.first_mb <= MAY_GROW_MB and self.last_files - self.first_files <= MAY_OPEN


@dataclass(slots=True, kw_only=True)
class Report:
    form: str
    seconds: float
    calls: int
    outcomes: dict[str, int]
    wrong: list[str]
    unexplained: list[str]
    kills: dict[str, int]
    evictions: int
    loads: int
    inputs: dict[str, int]  # by kind
    statuses: dict[str, int]  # of hostile inputs
    hostile_problems: list[str]
    pings: int
    failed_pings: int  # not 200, or over 2 s
    worst_ping: float
    slowest: float
    growth: list[Growth]
    runners_mb: float  # the largest sum
    last_runners_mb: float  # when all was quiet
    endings: list[str]
    seed: int

    @property
    def grown(self) -> list[Growth]:
        return [each for each in self.growth if not each.flat]

    @property
    def faults(self) -> list[str]:
        """What must not be, on any machine; times are not among it."""
        return [
            *(f"wrong answer: {each}" for each in self.wrong),
            *(f"unexplained: {each}" for each in self.unexplained),
            *(f"hostile input: {each}" for each in self.hostile_problems),
            *(f"the server ended: {each}" for each in self.endings),
            *(f"grown: {each}" for each in self.grown),
        ]

    def as_figures(self) -> dict[str, Any]:
        return asdict(self)


class Samples(threading.Thread):
    """Memory and descriptors of every process, once a second."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(daemon=True)
        self._subject = subject
        self._over = threading.Event()
        self._of: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self.runners: list[int] = []  # the sum of all, in bytes

    def run(self) -> None:
        while not self._over.wait(SAMPLE):
            parts = self._subject.parts()
            self.runners.append(sum(map(private_bytes, parts.pop("runner"))))
            for part, pids in parts.items():
                for pid in pids:
                    try:
                        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                    except OSError:
                        continue
                    self._of.setdefault((part, pid), []).append((private_bytes(pid), files))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def growth(self) -> list[Growth]:
        """Of the processes that lived for at least half of the run; a killed worker's successor did not."""
        most = max((len(each) for each in self._of.values()), default=0)
        return [_growth(part, each) for (part, _), each in self._of.items() if len(each) >= max(6, most / 2)]


def _growth(part: str, samples: Sequence[tuple[int, int]]) -> Growth:
    third = len(samples) // 3
    first, last = samples[:third], samples[-third:]
    return Growth(
        part=part,
        samples=len(samples),
        first_mb=statistics.median(memory for memory, _ in first) / MB,
        last_mb=statistics.median(memory for memory, _ in last) / MB,
        most_mb=max(memory for memory, _ in samples) / MB,
        first_files=int(statistics.median(files for _, files in first)),
        last_files=int(statistics.median(files for _, files in last)),
    )


class LongRun:
    def __init__(self, subject: Subject, fleet: Fleet, plan: Plan, progress: Callable[[str], None]) -> None:
        self._subject, self._fleet, self._plan, self._progress = subject, fleet, plan, progress
        self._lock = threading.Lock()
        self._calls = 0
        self._began = 0.0
        self._over = threading.Event()
        self._random = [random.Random((plan.seed, caller).__repr__()) for caller in range(CALLERS)]
        self._kills: list[Kill] = []
        self._results: list[hostile.Result] = []
        self._told: set[str] = set()

    def run(self) -> Report:
        self._warm()
        samples = Samples(self._subject)
        self._began = began = time.monotonic()
        samples.start()
        callers = Callers(lambda: self._subject.port, CALLERS, self._question)
        others = [threading.Thread(target=self._attack, args=(number,), daemon=True) for number in range(ATTACKERS)]
        others.append(threading.Thread(target=self._kill, daemon=True))
        for each in others:
            each.start()
        with pinging(lambda: self._subject.port) as pinger:
            while not callers.join(timeout=5.0):
                self._tell(callers)
            seconds = time.monotonic() - began
            self._over.set()
            for each in others:
                each.join()
        samples.stop()
        self._subject.wait_ready()
        return self._report(seconds, callers.all(), pinger.pings, samples)

    def _warm(self) -> None:
        """Ask each model until it answers: the imports of the frameworks are no growth, and may take a minute."""
        client = Client(lambda: self._subject.port)
        for name in self._fleet.names:
            until = time.monotonic() + WARM
            while (found := client.ask(self._fleet.ask(name, self._random[0]))).kind != "right":
                assert found.kind == "error", found
                assert time.monotonic() < until, found
                time.sleep(0.5)
            self._progress(f"{name} has answered after {found.seconds:.1f} s")
        client.close()

    # What is done.

    def _question(self, caller: int) -> Question | None:
        """The next call, not before its time: the calls are spread over the seconds of the run."""
        plan = self._plan
        with self._lock:
            call, self._calls = self._calls, self._calls + 1
        due = self._began + call * plan.seconds / plan.calls
        if call >= plan.calls or max(due, time.monotonic()) > self._began + plan.seconds:
            return None
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        random_ = self._random[caller]
        return self._fleet.ask(random_.choice(self._asked_now()), random_)

    def _attack(self, attacker: int) -> None:
        """The inputs of one attacker. They go to the models of the moment: not each may cost a load."""
        plan = self._plan
        series = hostile.inputs(plan.seed * 100 + attacker, self._asked_now)
        for number in range(plan.inputs // ATTACKERS):
            due = self._began + number * plan.seconds * ATTACKERS / plan.inputs
            if self._over.wait(max(0.0, due - time.monotonic())):
                return
            result = hostile.send(self._subject.port, next(series))
            with self._lock:
                self._results.append(result)

    def _asked_now(self) -> list[str]:
        return working_set(self._fleet.names, self._calls, size=SET, every=EVERY)

    def _kill(self) -> None:
        random_ = random.Random(self._plan.seed)
        for number in itertools.count(1):
            due = self._began + number * self._plan.seconds / (self._plan.kills + 1)
            if number > self._plan.kills or self._over.wait(max(0.0, due - time.monotonic())):
                return
            part = random_.choice(VICTIMS)
            pids = self._subject.parts()[part]
            if not pids:
                continue
            self._kills.append(Kill(time.monotonic(), part))
            try:
                os.kill(random_.choice(sorted(pids)), signal.SIGKILL)
            except ProcessLookupError:
                self._kills.pop()

    def _tell(self, callers: Callers) -> None:
        """The state of the run in a line, and what has become a fault since the last line."""
        found = callers.all()
        faults = [f"{each.model}: {each.kind} {each.told}: {each.text}" for each in found if not self._explained(each)]
        faults += [f"hostile input: {each.kind}: {each.problem}" for each in self._results if self._is_problem(each)]
        self._progress(
            f"{time.monotonic() - self._began:.0f} s: {len(found)} calls, {len(self._kills)} kills, "
            f"{len(self._results)} hostile inputs, {len(faults)} faults, {len(self._subject.endings)} ends"
        )
        for each in [each for each in faults if each not in self._told]:
            self._progress(f"  {each[:600]}")
            self._told.add(each)

    # What came of it.

    def _report(self, seconds: float, found: list[Outcome], pings: Sequence[Any], samples: Samples) -> Report:
        models = self._subject.models()
        results = self._results
        return Report(
            form=self._subject.form,
            seconds=seconds,
            calls=len(found),
            outcomes=dict(counted(found)),
            wrong=[f"{each.model}: {each.text}" for each in found if each.kind == "wrong"],
            unexplained=[
                f"{each.model}: {each.kind} {each.status}: {each.text}" for each in found if not self._explained(each)
            ],
            kills=dict(Counter(each.part for each in self._kills)),
            evictions=sum(each["evictions"] for each in models.values()),
            loads=sum(each["loads"] for each in models.values()),
            inputs=dict(Counter(each.kind for each in results)),
            statuses=dict(Counter(str(each.status) for each in results)),
            hostile_problems=[f"{each.kind}: {each.problem}" for each in results if self._is_problem(each)],
            pings=len(pings),
            failed_pings=sum(each.status != 200 or each.seconds > 2 for each in pings),
            worst_ping=max((each.seconds for each in pings), default=0.0),
            slowest=max((each.seconds for each in found), default=0.0),
            growth=samples.growth(),
            runners_mb=max(samples.runners, default=0) / MB,
            last_runners_mb=sum(map(private_bytes, self._subject.parts()["runner"])) / MB,
            endings=[f"status {each.status}: {each.last_line}" for each in self._subject.endings],
            seed=self._plan.seed,
        )

    def _killed(self, part: str, outcome: Outcome | hostile.Result) -> bool:
        return any(each.part == part and outcome.began - NEAR < each.at < outcome.ended for each in self._kills)

    def _explained(self, outcome: Outcome) -> bool:
        """Whether what a caller got follows from what was done to the server."""
        if outcome.kind == "right":
            return True
        if outcome.kind == "lost":  # a worker of nginx takes its connections with it
            return self._killed("nginx worker", outcome)
        if outcome.kind != "error" or is_unexplained(outcome):
            return False
        if outcome.type == "RunnerDiedException":
            return self._killed("runner", outcome)
        return outcome.status in (503, 507)

    def _is_problem(self, result: hostile.Result) -> bool:
        if result.problem.startswith(hostile.NO_ANSWER):
            return not self._killed("nginx worker", result)
        return bool(result.problem)
