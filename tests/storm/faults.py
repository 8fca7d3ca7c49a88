"""The matrix: each part of the server is killed, stopped and starved while callers wait for answers.

A fault lasts HOLD seconds, except for a kill. In the state "busy" it strikes while 16 callers wait; in the state "idle"
while no request is in progress, and the callers begin a moment later.
"""

import contextlib
import os
import random
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.storm.callers import Callers, Client, Outcome, Ping, counted, pinging
from tests.storm.fleet import Fleet, Question, make
from tests.storm.subjects import PARTS, InContainer, Processes, Subject, in_its_namespace, running

CALLERS = 16
HOLD = 8.0  # seconds that a process is stopped or starved: longer than the silence after which /ping is 503
SLICE, SHARE = 0.1, 0.05  # a starved process runs 5 of 100 ms
SLOW = 2.0  # seconds: a call that takes longer counts as hurt until its end
BUSY_CALL = 0.1  # seconds that the model of own code works, so that its process is at work when the fault strikes
CALM = 1.0  # seconds of right answers after which the server has recovered
GIVE_UP = 90.0
NOTICED = 0.3  # seconds from the end of a server until it is noted
MODELS = {"own": 2, "trees": 2}  # none needs PyTorch, whose import would be most of each recovery
VICTIM = "own-0"  # the model whose runner the faults strike
CLOCK = Path(__file__).with_name("clock.c")


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    strike: Callable[[Subject, int], Callable[[], None]]  # with the process; returns what ends the fault
    lasts: float = HOLD


def _kill(subject: Subject, pid: int) -> Callable[[], None]:
    os.kill(pid, signal.SIGKILL)
    return lambda: None


def _stop(subject: Subject, pid: int) -> Callable[[], None]:
    os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    return go_on


def _starve_of_processor(subject: Subject, pid: int) -> Callable[[], None]:
    """Stopped and continued, as cpulimit does it: no group of processes is needed, which a container may not have."""
    over = threading.Event()

    def throttle() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                over.wait(SLICE * (1 - SHARE))
                os.kill(pid, signal.SIGCONT)
                over.wait(SLICE * SHARE)

    thread = threading.Thread(target=throttle, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return end


def _limit(pid: int, what: int, now: int) -> Callable[[], None]:
    _, hard = before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (now, hard))

    def lift() -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)

    return lift


def _starve_of_files(subject: Subject, pid: int) -> Callable[[], None]:
    """It can open nothing more than it has open."""
    highest = max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())
    return _limit(pid, resource.RLIMIT_NOFILE, highest + 1)


def _starve_of_memory(subject: Subject, pid: int) -> Callable[[], None]:
    """Its address space cannot grow."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return _limit(pid, resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE"))


FAULTS = [
    Fault("killed", _kill, 0.0),
    Fault("stopped", _stop),
    Fault("long stop", _stop, 15.0),  # longer than the host waits for a turn of an idle runner
    Fault("little processor", _starve_of_processor),
    Fault("no more files", _starve_of_files),
    Fault("no more memory", _starve_of_memory),
]


def _turn_clock(seconds: int) -> Callable[[Subject, int], Callable[[], None]]:
    def turn(subject: Subject, _: int) -> Callable[[], None]:
        with _clock_file().open("r+b") as clock:  # in place: processes have mapped the file
            clock.write(seconds.to_bytes(8, "little", signed=True))
        return lambda: None  # it stays turned: setting it back would be a second fault

    return turn


def _fill_run_dir(subject: Subject, _: int) -> Callable[[], None]:
    """Nothing more can be written in the run directory's file system."""
    filler = subject.run_dir / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))

    def empty() -> None:
        with contextlib.suppress(OSError):
            filler.unlink()

    return empty


SURROUNDINGS = [
    Fault("clock one hour ahead", _turn_clock(3600), 0.0),
    Fault("clock one hour back", _turn_clock(-3600), 0.0),
    Fault("run directory full", _fill_run_dir),
]
RUN_DIR_MB = 8
LIMITS = [
    "--memory=700m",
    "--memory-swap=700m",
    "--pids-limit=64",
    "--ulimit=nofile=256:256",
    "--read-only",
    f"--tmpfs=/tmp:size={RUN_DIR_MB}m",
]

_clock_dir: list[Path] = []


def _clock_file() -> Path:
    return _clock_dir[0] / "offset"


def clock_environment(seen_at: str | None = None) -> dict[str, str]:
    """The environment in which a server's wall clock can be turned; {} where no C compiler is installed.

    `seen_at`: where a container has the directory.
    """
    if not _clock_dir:
        directory = Path(tempfile.mkdtemp(prefix="storm-clock-"))
        directory.chmod(0o755)
        library = directory / "clock.so"
        try:
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, CLOCK], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return {}
        _clock_dir.append(directory)
    if not _clock_file().exists():
        _clock_file().write_bytes(bytes(8))
    where = seen_at or str(_clock_dir[0])
    return {"LD_PRELOAD": f"{where}/clock.so", "STORM_CLOCK": f"{where}/offset"}


@dataclass(slots=True, kw_only=True)
class Row:
    """A case of the matrix and what callers saw of it."""

    form: str
    part: str
    fault: str
    state: str
    calls: int
    wrong: int
    lost: int
    told: dict[str, int]  # errors, by status and type
    slowest: float  # seconds of the slowest call that was answered
    recovery: float | None  # seconds until all calls were answered again; None: not within GIVE_UP
    server: str  # "" or how it ended and its last line
    worst_ping: float
    failed_pings: int  # not 200, or over 2 s, while the server ran
    unexplained: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Case:
    part: str
    fault: Fault
    state: str

    def __str__(self) -> str:
        return f"{self.part}, {self.fault.name}, {self.state}"


def cases(words: list[str]) -> list[Case]:
    """All cases, or those that have one of the words in their name."""
    every = [Case(part, fault, state) for part in PARTS for fault in FAULTS for state in ("busy", "idle")]
    every += [Case("the machine", fault, "busy") for fault in SURROUNDINGS]
    return [case for case in every if not words or any(word in str(case) for word in words)]


class Matrix:
    """Runs cases against one server after the other: a server that a fault has ended is started again."""

    def __init__(self, subject: Subject, fleet: Fleet) -> None:
        self._subject, self._fleet = subject, fleet
        self._random = [random.Random(number) for number in range(CALLERS)]

    def run(self, case: Case) -> Row:
        subject = self._subject
        subject.wait_ready()
        self._warm()
        endings = len(subject.endings)
        callers = Callers(lambda: subject.port, CALLERS, self._question)
        with pinging(lambda: subject.port) as pinger:
            time.sleep(1.0)
            if case.state == "idle":
                callers.pause()
            pid = self._pid(case.part)
            struck = time.monotonic()
            end = case.fault.strike(subject, pid)
            try:
                if case.state == "idle":
                    time.sleep(0.3)
                    callers.resume()
                time.sleep(case.fault.lasts)
            finally:
                end()
            self._await_calm(callers)
        callers.stop()
        return self._row(case, struck, callers.all(), pinger.pings, endings)

    def _question(self, caller: int) -> Question:
        random_ = self._random[caller]
        if caller < CALLERS // 4:
            return self._fleet.ask(VICTIM, random_, seconds=BUSY_CALL)
        return self._fleet.ask(random_.choice([name for name in self._fleet.names if name != VICTIM]), random_)

    def _warm(self) -> None:
        """Load all models: a cold start is no effect of a fault."""
        client = Client(lambda: self._subject.port)
        for name in self._fleet.names:
            until = time.monotonic() + GIVE_UP
            while (found := client.ask(self._fleet.ask(name, self._random[0]))).kind != "right":
                assert found.kind != "wrong", found
                assert time.monotonic() < until, found
                time.sleep(0.2)
        client.close()

    def _pid(self, part: str) -> int:
        parts = self._subject.parts()
        if part == "the machine":
            return 0
        if part != "runner":
            return parts[part][0]
        # The model answers with its process id, in the container's own count.
        import http.client
        import json

        connection = http.client.HTTPConnection("127.0.0.1", self._subject.port, timeout=30)
        question = self._fleet.ask(VICTIM, self._random[0])
        connection.request("POST", question.path, question.body, dict(question.headers))
        wanted = json.loads(connection.getresponse().read())["pid"]
        connection.close()
        return next(pid for pid in parts["runner"] if in_its_namespace(pid) == wanted)

    def _await_calm(self, callers: Callers) -> None:
        """Wait until every caller has had only right answers, none of them slow, for CALM seconds."""
        since, until = time.monotonic(), time.monotonic() + GIVE_UP
        while time.monotonic() < until:
            time.sleep(0.1)
            found = callers.all()
            if hurt := [each.ended for each in found if _hurt(each) and each.ended > since]:
                since = max(hurt)
            recent = [[each for each in own if each.began > since] for own in callers.outcomes]
            if time.monotonic() > since + CALM and all(recent):
                return

    def _row(self, case: Case, struck: float, found: list[Outcome], pings: list[Ping], endings: int) -> Row:
        after = [each for each in found if each.ended > struck]
        hurt = [each for each in after if _hurt(each)]
        errors = [each for each in after if each.kind == "error"]
        ended = self._subject.endings[endings:]
        last = max((each.ended for each in after), default=struck)
        recovered = max((each.ended for each in hurt), default=struck)
        down = [(each.at - NOTICED, self._next_right(after, each.at)) for each in ended]
        # Docker's proxy accepts connections for a container that has ended.
        refused = [each for each in after if each.kind == "lost" and any(a < each.began < b for a, b in down)]
        up = [each for each in pings if each.began > struck and not any(a < each.began < b for a, b in down)]
        return Row(
            form=self._subject.form,
            part=case.part,
            fault=case.fault.name,
            state=case.state,
            calls=sum(each.kind != "refused" for each in after) - len(refused),
            wrong=sum(each.kind == "wrong" for each in found),
            lost=sum(each.kind == "lost" for each in after) - len(refused),
            told=dict(counted(errors)),
            slowest=max((each.seconds for each in after if each.kind in ("right", "error")), default=0.0),
            recovery=None if last - recovered < CALM / 2 else max(0.0, recovered - struck),
            server="; ".join(f"status {each.status}: {each.last_line}" for each in ended),
            worst_ping=max((each.seconds for each in up), default=0.0),
            failed_pings=sum(each.status != 200 or each.seconds > 2 for each in up),
            unexplained=[f"{each.model}: {each.kind}: {each.text}" for each in found if is_unexplained(each)][:5],
        )

    @staticmethod
    def _next_right(found: list[Outcome], moment: float) -> float:
        return min((each.ended for each in found if each.kind == "right" and each.began > moment), default=moment)


def is_unexplained(outcome: Outcome) -> bool:
    """Whether an answer is wrong, or an error that names no cause."""
    return outcome.kind == "wrong" or (outcome.kind == "error" and outcome.type in ("", "InternalServerException"))


def _hurt(outcome: Outcome) -> bool:
    return outcome.kind != "right" or outcome.seconds > SLOW


@contextmanager
def as_processes(work: Path) -> Iterator[Matrix]:
    """The matrix for a server of this checkout."""
    fleet = make(work / "models", MODELS)
    run_dir_mb = RUN_DIR_MB if os.geteuid() == 0 else 0
    with running(Processes(fleet.directory, clock_environment(), run_dir_mb=run_dir_mb)) as subject:
        yield Matrix(subject, fleet)


@contextmanager
def in_container(work: Path, image: str) -> Iterator[Matrix]:
    """The matrix for a container with LIMITS."""
    fleet = make(work / "models", MODELS)
    work.chmod(0o755)
    clock = clock_environment("/storm")
    mounted = [f"--volume={_clock_dir[0]}:/storm:ro"] if clock else []
    with running(InContainer(fleet.directory, clock, image, [*LIMITS, *mounted])) as subject:
        yield Matrix(subject, fleet)


def as_figures(rows: list[Row]) -> list[Mapping[str, Any]]:
    return [asdict(row) for row in rows]
