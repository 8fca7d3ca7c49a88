"""GET /ping 20 times a second, from a process of its own, while the workloads run.

A line for each answer: when it was asked (time.monotonic()), the seconds it took, its status (0: none).
"""

import contextlib
import http.client
import subprocess
import sys
import time
from pathlib import Path

EVERY = 0.05
PATIENCE = 10.0


class Pinger:
    """Pings a port until it is stopped; `times_ms` holds the times of the answers."""

    def __init__(self, port: int, notes: Path) -> None:
        self._notes = notes
        self._process = subprocess.Popen([sys.executable, "-m", "bench.pinger", str(port), str(notes)])

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def times_ms(self, windows: list[tuple[float, float]]) -> list[float]:
        """How long each /ping took that was asked within one of the windows of time.monotonic(), in order of length."""
        with contextlib.suppress(FileNotFoundError):
            lines = [line.split() for line in self._notes.read_text().splitlines() if line.count(" ") == 2]
            asked = [(float(at), float(took), int(status)) for at, took, status in lines]
            return sorted(
                (took if status == 200 else PATIENCE) * 1e3
                for at, took, status in asked
                if any(begin <= at <= end for begin, end in windows)
            )
        return []


def main(port: int, notes: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    due = time.monotonic()
    with notes.open("w", buffering=1) as file:
        while True:
            due = max(due + EVERY, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            try:
                connection.request("GET", "/ping")
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            file.write(f"{began:.6f} {time.monotonic() - began:.6f} {status}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
