"""Logs of endpoints' containers: followed while they are written, and shipped to CloudWatch Logs."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

BATCH = 1 << 20  # bytes read from one log in one round
LINE = 256 << 10  # characters of a message, CloudWatch's limit of an event

Write = Callable[[Sequence[str]], None]


class FollowedLog:
    """A growing file. It stays readable when it is unlinked, so that the end of a container's log is shipped too."""

    def __init__(self, file: BinaryIO, write: Write, forget: Callable[["FollowedLog"], None]) -> None:
        self._file = file
        self._write = write
        self._forget = forget
        self._rest = b""
        self._lock = threading.Lock()  # guards the fields above: the monitor and the end of a container both ship

    def ship(self) -> None:
        """Writes the complete lines since the last call."""
        with self._lock:
            while not self._file.closed and self._ship():
                pass

    def close(self) -> None:
        """Writes the rest; to be called when the container has ended."""
        self.ship()
        with self._lock:
            if not self._file.closed:
                self._file.close()
                if self._rest:
                    self._write([self._rest.decode(errors="replace")])
        self._forget(self)

    def _ship(self) -> bool:
        data = self._file.read(BATCH)
        if not data:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE:
            lines, self._rest = [*lines, self._rest], b""
        messages = [each.decode(errors="replace")[:LINE] for each in lines if each.strip()]
        if messages:
            self._write(messages)
        return True


class LogShipper:
    """All logs that are followed; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logs: list[FollowedLog] = []

    def follow(self, path: Path, write: Write) -> FollowedLog:
        """Ships a file's lines, from its beginning on, until the result is closed."""
        followed = FollowedLog(path.open("rb"), write, self._forget)
        with self._lock:
            self._logs.append(followed)
        return followed

    def ship(self) -> None:
        """Ships all new lines."""
        with self._lock:
            logs = list(self._logs)
        for each in logs:
            each.ship()

    def _forget(self, followed: FollowedLog) -> None:
        with self._lock:
            if followed in self._logs:
                self._logs.remove(followed)
