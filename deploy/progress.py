"""What is said while something is done: a line for each change, and what a long wait waits for."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

REMIND = 30.0  # seconds after which a wait is told again where no line can be overwritten
FIRST, LONGEST = 0.2, 10.0  # seconds between two looks at what is waited for: more each time


class Progress:
    """To a terminal or a file. `changes` are all lines that told of one."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self.changes: list[str] = []

    def changed(self, what: str) -> None:
        self.changes.append(what)
        self.say(what)

    def say(self, line: str) -> None:
        self._out.write(f"\r\033[K{line}\n" if self._terminal else f"{line}\n")
        self._out.flush()

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[str], None]]:
        """The block calls what it gets with the latest status, as often as it likes."""
        begun, told, last = time.monotonic(), 0.0, ""

        def show(status: str) -> None:
            nonlocal told, last
            now = time.monotonic()
            line = f"{what}: {status} ({elapsed(now - begun)})"
            if self._terminal:  # a line that wraps cannot be overwritten
                self._out.write(f"\r\033[K\033[2m{line[: max(1, _columns(self._out) - 1)]}\033[0m")
                self._out.flush()
            elif status != last or now - told > REMIND:
                self.say(line)
                told, last = now, status

        try:
            yield show
        finally:
            if self._terminal:
                self._out.write("\r\033[K")
                self._out.flush()


def _columns(out: TextIO) -> int:
    return os.get_terminal_size(out.fileno()).columns or 80  # 0 is a terminal that does not know


def looks() -> Iterator[None]:
    """Endless turns, with a pause between them that grows."""
    pause = FIRST
    while True:
        yield
        time.sleep(pause)
        pause = min(pause * 1.2, LONGEST)


def elapsed(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
