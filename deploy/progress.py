"""Progress on a terminal or in a file: a line for each change, and the state of a long wait."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

REMIND = 30.0  # seconds after which an unchanged state is printed again, where lines cannot be overwritten
FIRST, LONGEST = 0.2, 10.0  # seconds between two polls: the first pause, and the longest


class Progress:
    """Lines to a terminal or a file. `changes` are the lines of changes so far."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self.terminal = self._out.isatty()
        self.changes: list[str] = []

    def changed(self, line: str) -> None:
        self.changes.append(line)
        self.say(line)

    def say(self, line: str) -> None:
        self._out.write(f"\r\033[K{line}\n" if self.terminal else f"{line}\n")
        self._out.flush()

    @contextmanager
    def waiting(self, subject: str) -> Iterator[Callable[[str], None]]:
        """Gives the block a function that shows the latest state of a wait; it may be called at any rate."""
        begun, printed, last = time.monotonic(), 0.0, ""

        def show(state: str) -> None:
            nonlocal printed, last
            now = time.monotonic()
            line = f"{subject}: {state} ({elapsed(now - begun)})"
            if self.terminal:  # cut to the width: a wrapped line cannot be overwritten
                self._out.write(f"\r\033[K\033[2m{line[: max(1, _columns(self._out) - 1)]}\033[0m")
                self._out.flush()
            elif state != last or now - printed > REMIND:
                self.say(line)
                printed, last = now, state

        try:
            yield show
        finally:
            if self.terminal:
                self._out.write("\r\033[K")
                self._out.flush()


def _columns(out: TextIO) -> int:
    return os.get_terminal_size(out.fileno()).columns or 80  # 0: the terminal does not report its width


def polls(longest: float = LONGEST) -> Iterator[None]:
    """Endless iterations with a pause between them, each longer than the one before, to the longest."""
    pause = FIRST
    while True:
        yield
        time.sleep(pause)
        pause = min(pause * 1.2, longest)


@contextmanager
def counted(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives the block a function that counts bytes done, from any thread; the share is shown on a terminal's stderr."""
    lock, done = threading.Lock(), 0
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with Progress(sys.stderr).waiting(title) as show:

        def count(size: int) -> None:
            nonlocal done
            with lock:
                done += size
                show(f"{100 * done // max(total, 1)} % of {sized(total)}")

        yield count


def sized(size: float) -> str:
    """Bytes with three digits and a decimal unit, for example 1.25 kB."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def elapsed(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
