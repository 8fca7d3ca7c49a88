"""SIGTERM, as on scale-in and update: requests in hand are answered, then the container ends by itself."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from local_test.rehearse import sources
from local_test.rehearse.engine import Docked, docker, terminate
from local_test.rehearse.verdict import Breach, Doubt, LeftOut, NoAnswer, check

SETTLED = 0.5  # seconds of traffic before the signal
ARRIVED = 0.1  # seconds after which a request that was sent must have come in, on a busy machine too


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """What was seen when a container under traffic was told to end."""

    in_hand: int  # requests that were sent before the signal and not yet answered
    lost: list[str]  # what became of those that never were
    seconds: float  # until it had ended; the limit, if it had to be killed
    killed: bool
    exit_code: int


def stop(container: Docked) -> Stopped:
    """SIGTERM while callers invoke, and SIGKILL where that is not enough."""
    options = container.options
    lock, over = threading.Lock(), threading.Event()
    sent: dict[int, float] = {}  # caller -> when its latest request was sent
    signalled: list[float] = []  # when the signal was asked for, and when it had been given
    in_hand, lost = [0], list[str]()

    def call(caller: int) -> None:
        while not over.is_set() and not signalled:
            before = sent.get(caller)
            try:
                container.invoke(sent=lambda: sent.update({caller: time.monotonic()}))
                came = ""
            except NoAnswer as none:
                came = str(none)
            at = sent.get(caller)
            with lock:
                age = signalled[0] - at if signalled and at is not None and at != before else 0.0
                # Sent just before, and still on its way, it may be refused; answered before, it proves nothing.
                if age > ARRIVED if came else age > 0 and len(signalled) == 2:
                    in_hand[0] += 1
                    lost.extend([came] if came else [])

    with ThreadPoolExecutor(options.callers) as callers:
        calls = [callers.submit(call, number) for number in range(options.callers)]
        until = time.monotonic() + options.stop_limit
        while len(sent) < options.callers and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(SETTLED)
        with lock:
            signalled.append(time.monotonic())
        terminate(container.id)
        with lock:
            signalled.append(time.monotonic())
        until = signalled[0] + options.stop_limit
        while (runs := container.lives()) and time.monotonic() < until:
            time.sleep(0.05)
        took = time.monotonic() - signalled[0]
        if runs:
            docker("kill", container.id)
        over.set()
        for each in calls:
            each.result()
    return Stopped(in_hand=in_hand[0], lost=lost, seconds=took, killed=runs, exit_code=int(container.state["ExitCode"]))


@check(
    breaks="every scale-in, update and patch of an instance costs callers their requests",
    do="on SIGTERM stop accepting, finish what is in hand, then end; pass the signal on to the server",
    source=sources.RUN,
)
def stop_answers_what_is_in_hand(stopped: Stopped) -> str:
    """requests in hand at SIGTERM are answered"""
    if stopped.lost:
        raise Breach(f"{len(stopped.lost)} of {stopped.in_hand} lost: {stopped.lost[0]}")
    if not stopped.in_hand:
        raise LeftOut("no request was in hand: give a --payload that takes longer")
    return f"{stopped.in_hand} of {stopped.in_hand}"


@check(
    breaks="the platform kills it after 30 s: whatever was in hand or unwritten is lost, and each update waits as long",
    do="handle SIGTERM in process 1 (exec form, exec in scripts), with limits on how long the rest may take",
    source=sources.RUN,
)
def stops_in_time(stopped: Stopped) -> str:
    """after SIGTERM the container ends within 30 s"""
    if stopped.killed:
        raise Breach(f"killed after {stopped.seconds:.0f} s")
    seen = f"after {stopped.seconds:.1f} s, exit code {stopped.exit_code}"
    if stopped.exit_code not in (0, 143):
        raise Doubt(seen)
    return seen
