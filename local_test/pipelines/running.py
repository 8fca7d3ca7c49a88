"""What an execution has running on this machine, so that Ctrl-C ends all of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Running:
    """Processes, containers and instances, each by what ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._ends: dict[object, Callable[[], None]] = {}
        self._stopped = False

    @contextmanager
    def held(self, end: Callable[[], None]) -> Iterator[None]:
        """While the block runs, `stop` calls `end`, from another thread; of what comes after a stop, at once."""
        mine = object()
        with self._lock:
            self._ends[mine] = end
            late = self._stopped
        try:
            if late:
                end()
            yield
        finally:
            with self._lock:
                del self._ends[mine]

    def stop(self) -> None:
        """Returns when each was told; whoever holds it waits for its end."""
        with self._lock:
            self._stopped = True
            ends = list(self._ends.values())
        for end in ends:
            end()
