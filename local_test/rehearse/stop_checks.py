"""SIGTERM, as on scale-in and update: requests in flight are answered, then the container exits."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from local_test.rehearse import sources
from local_test.rehearse.engine import EngineContainer, docker, terminate
from local_test.rehearse.verdict import Breach, CheckWarning, NoAnswer, Skipped, check

LOAD = 0.5  # seconds of traffic before the signal
ARRIVED = 0.1  # seconds after which the container must have received a sent request, also on a busy machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Observations of a container that gets SIGTERM under load."""

    in_flight: int  # requests that were sent and not yet answered at the signal
    lost: list[str]  # the reason for each of them without an answer
    seconds: float  # until the exit; the time limit, if the container was killed
    killed: bool
    exit_code: int


def stop(container: EngineContainer) -> Stopped:
    """Sends SIGTERM while callers invoke, and SIGKILL after the time limit."""
    options = container.options
    lock, over = threading.Lock(), threading.Event()
    sent: dict[int, float] = {}  # caller -> time at which its latest request was sent
    signalled: list[float] = []  # times before and after sending the signal
    in_flight, lost = [0], list[str]()

    def call(caller: int) -> None:
        while not over.is_set() and not signalled:
            before = sent.get(caller)
            try:
                container.invoke(sent=lambda: sent.update({caller: time.monotonic()}))
                failure = ""
            except NoAnswer as none:
                failure = str(none)
            at = sent.get(caller)
            with lock:
                age = signalled[0] - at if signalled and at is not None and at != before else 0.0
                # A request that may not have arrived at the signal may be refused. One that was answered before it does
                # not count.
                if age > ARRIVED if failure else age > 0 and len(signalled) == 2:
                    in_flight[0] += 1
                    lost.extend([failure] if failure else [])

    with ThreadPoolExecutor(options.callers) as callers:
        calls = [callers.submit(call, number) for number in range(options.callers)]
        until = time.monotonic() + options.stop_limit
        while len(sent) < options.callers and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(LOAD)
        with lock:
            signalled.append(time.monotonic())
        terminate(container.id)
        with lock:
            signalled.append(time.monotonic())
        until = signalled[0] + options.stop_limit
        while (alive := container.alive()) and time.monotonic() < until:
            time.sleep(0.05)
        took = time.monotonic() - signalled[0]
        if alive:
            docker("kill", container.id)
        over.set()
        for each in calls:
            each.result()
    return Stopped(
        in_flight=in_flight[0], lost=lost, seconds=took, killed=alive, exit_code=int(container.state["ExitCode"])
    )


@check(
    breaks="every scale-in, update and patch of an instance loses requests",
    do="on SIGTERM stop accepting, answer the requests in flight, then exit; forward the signal to the server",
    source=sources.RUN,
)
def stop_answers_requests_in_flight(stopped: Stopped) -> str:
    """requests in flight at SIGTERM are answered"""
    if stopped.lost:
        raise Breach(f"{len(stopped.lost)} of {stopped.in_flight} lost: {stopped.lost[0]}")
    if not stopped.in_flight:
        raise Skipped("no request was in flight: give a --payload that takes longer")
    return f"{stopped.in_flight} of {stopped.in_flight}"


@check(
    breaks="the platform kills it after 30 s: requests in flight and unwritten data are lost, and updates take longer",
    do="handle SIGTERM in process 1 (exec form, exec in scripts), with a time limit for the requests in flight",
    source=sources.RUN,
)
def stops_in_time(stopped: Stopped) -> str:
    """after SIGTERM the container exits within 30 s"""
    if stopped.killed:
        raise Breach(f"killed after {stopped.seconds:.0f} s")
    seen = f"after {stopped.seconds:.1f} s, exit code {stopped.exit_code}"
    if stopped.exit_code not in (0, 143):
        raise CheckWarning(seen)
    return seen
