"""What a runner tells the host of those at work."""

import socket
import time
from pathlib import Path
from typing import Any

from serve.handlers.base import Request
from serve.http.wire import Connection
from serve.runner.jobs import Answers, ConnectionJob
from serve.slots import Slots


class Counted(dict[int, Any]):
    """Jobs by file descriptor, and how often all of them were looked at."""

    looked = 0

    def values(self) -> Any:
        self.looked += 1
        return super().values()


class NoPoll:
    def forget(self, fd: int) -> None:
        pass


def test_a_batch_is_not_looked_through_for_each_of_its_members(tmp_path: Path) -> None:
    """The newest arrival at work is told, whatever order they begin in, and again when the newest has left."""
    slot = Slots(tmp_path / "slots", create=True).slot(70)
    answers = Answers("m", NoPoll(), slot, 60.0, lambda _: None)  # type: ignore[arg-type]
    answers._joined = joined = Counted()
    now = time.monotonic()
    peers, jobs = [], []
    for age in range(50):
        ours, theirs = socket.socketpair()
        peers.append(theirs)
        jobs.append(ConnectionJob(answers, Connection(ours), Request(body=b"", content_type=""), now - age))
        joined[ours.fileno()] = jobs[-1]

    def told() -> float:
        """Seconds since the arrival that the host is told of."""
        return round(time.time() - slot.get("begun_arrival_epoch_ms") / 1e3 - (time.monotonic() - now))

    for job in jobs[:-1]:
        job.begin(now)
    assert (joined.looked, told()) == (0, 0)
    for job in jobs[:10]:
        answers.end(job, b"x", 200)
    jobs[-1].begin(now)
    assert (joined.looked, told()) == (1, 10)

    for job, peer in zip(jobs, peers, strict=True):
        job.connection.close()
        peer.close()
