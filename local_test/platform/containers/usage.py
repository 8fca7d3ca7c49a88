"""Processor time and memory of a container: of its first process and of all processes below it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve.machine import private_bytes

TICKS = os.sysconf("SC_CLK_TCK")  # per second of processor time


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container has used so far, and what it holds."""

    processor_seconds: float
    memory_bytes: int


def usage(pid: int) -> Usage | None:
    """The usage of a process and its descendants; None if it has ended or runs on another machine."""
    pids = list(_tree(pid))
    times = [found for each in pids if (found := _processor_seconds(each)) is not None]
    return Usage(sum(times), sum(map(private_bytes, pids))) if times else None


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def _processor_seconds(pid: int) -> float | None:
    """utime and stime, and those of ended children (proc(5), fields 14 to 17)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return sum(map(int, fields[11:15])) / TICKS
