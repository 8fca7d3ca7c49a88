"""Many callers at once, and what was seen of a container meanwhile."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from local_test.rehearse.answer import Answer
from local_test.rehearse.verdict import NoAnswer

PING_EVERY = 0.05  # seconds


@dataclass(slots=True)
class Busy:
    """What was seen while many callers invoked at once."""

    statuses: dict[int, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    pings: list[Answer] = field(default_factory=list)
    silent_pings: list[str] = field(default_factory=list)
    slowest_accept: float = 0.0


def busy(invoke: Callable[[], Answer], ping: Callable[[], Answer], callers: int, seconds: float) -> Busy:
    """Callers invoke without a pause for some seconds; as long as one does, /ping is asked beside them."""
    seen, lock = Busy(), threading.Lock()
    until = time.monotonic() + seconds

    def call(_: int) -> None:
        more = True  # at least once, however late this thread comes
        while more:
            try:
                answer = invoke()
            except NoAnswer as none:
                with lock:
                    seen.dropped.append(str(none))
            else:
                with lock:
                    seen.statuses[answer.status] = seen.statuses.get(answer.status, 0) + 1
                    seen.slowest_accept = max(seen.slowest_accept, answer.connecting)
            more = time.monotonic() < until

    with ThreadPoolExecutor(callers) as threads:
        calls = [threads.submit(call, number) for number in range(callers)]
        over = False
        while not over:
            over = all(each.done() for each in calls)
            try:
                seen.pings.append(ping())
            except NoAnswer as none:
                seen.silent_pings.append(str(none))
            time.sleep(PING_EVERY)
        for each in calls:
            each.result()
    return seen
