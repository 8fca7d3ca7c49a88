"""Log of the platform's actions, one line each, for people or as JSON Lines, with a summary of all calls at the end."""

import json
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

ACTION, SUBJECT = 9, 32  # widths of columns
NEWEST = 200  # events that are kept for the page
RED, GREEN, YELLOW, PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
COLOURS = {
    **dict.fromkeys(("load", "ready", "hit"), GREEN),
    **dict.fromkeys(("507", "unload", "lost", "slow", "unknown", "process"), YELLOW),
    **dict.fromkeys(("error", "failed", "bad-ping", "replace", "killed"), RED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Totals of all calls. Times are in ms, and None if there are no measurements."""

    calls: int
    loads: int
    hits: int
    hit_rate: float | None  # share of the answered calls of multi-model endpoints
    unloads: int  # to free memory
    full: int  # loads that the container refused with 507
    errors: dict[str, int] = field(default_factory=dict)  # error name, with the original status -> count
    cold_p50: float | None = None
    cold_p99: float | None = None
    warm_p50: float | None = None
    warm_p99: float | None = None

    def __str__(self) -> str:
        rate = "" if self.hit_rate is None else f" ({self.hit_rate:.1%})"
        errors = ", ".join(f"{count} x {name}" for name, count in sorted(self.errors.items())) or "none"
        lines = [
            f"calls    {self.calls}, errors: {errors}",
            f"models   {self.loads} loads, {self.hits} hits{rate}, {self.full} x 507, {self.unloads} unloaded",
        ]
        for name, middle, worst in (
            ("cold", self.cold_p50, self.cold_p99),
            ("warm", self.warm_p50, self.warm_p99),
        ):
            if middle is not None and worst is not None:
                lines.append(f"{name:<8} p50 {_ms(middle)}, p99 {_ms(worst)}")
        return "\n".join(lines)


class Events:
    """Thread-safe. Each event is written to `out` immediately."""

    def __init__(self, out: TextIO, *, as_json: bool = False) -> None:
        self._out = out
        self._as_json = as_json
        self._coloured = not as_json and out.isatty()
        self._lock = threading.Lock()  # guards the fields below, and keeps lines apart
        self._actions: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._cold, self._warm, self._hits = array("d"), array("d"), 0
        self._newest: deque[dict[str, Any]] = deque(maxlen=NEWEST)

    def emit(self, action: str, subject: str, detail: str = "", *, seconds: float | None = None, **more: Any) -> None:
        """Writes one event: the action, its subject, the result and the duration. `more` appears in JSON only."""
        event = {"time": round(time.time(), 3), "event": action, "subject": subject, "detail": detail}
        took = {} if seconds is None else {"ms": round(seconds * 1000, 1)}
        event = {**{key: value for key, value in event.items() if value != ""}, **took, **more}
        text = json.dumps(event) if self._as_json else line(action, subject, detail, seconds, coloured=self._coloured)
        with self._lock:
            self._actions[action] += 1
            self._newest.append(event)
            try:
                print(text, file=self._out, flush=True)
            except (OSError, ValueError):
                pass  # the output is closed; the platform keeps running

    @property
    def newest(self) -> list[dict[str, Any]]:
        """The last events, the newest first."""
        with self._lock:
            return list(reversed(self._newest))

    @property
    def count(self) -> int:
        """The number of events and of calls so far."""
        with self._lock:
            return self._actions.total() + len(self._cold) + len(self._warm) + self._errors.total()

    def call_answered(self, seconds: float, *, cold: bool | None = None) -> None:
        """Counts an answered call. `cold`: whether its model had to be loaded; None for a container with one model."""
        with self._lock:
            (self._cold if cold else self._warm).append(seconds * 1000)
            self._hits += cold is False

    def call_failed(self, error: str) -> None:
        """Counts a call that ended in an error, by the error's name."""
        with self._lock:
            self._errors[error] += 1

    @property
    def summary(self) -> Summary:
        """The totals so far."""
        with self._lock:
            cold, warm = sorted(self._cold), sorted(self._warm)
            answered = self._hits + len(cold)  # by multi-model endpoints
            return Summary(
                calls=len(cold) + len(warm) + self._errors.total(),
                loads=self._actions["load"],
                hits=self._hits,
                hit_rate=self._hits / answered if answered else None,
                unloads=self._actions["unload"],
                full=self._actions["507"],
                errors=dict(self._errors),
                cold_p50=quantile(cold, 0.5),
                cold_p99=quantile(cold, 0.99),
                warm_p50=quantile(warm, 0.5),
                warm_p99=quantile(warm, 0.99),
            )

    def print_summary(self) -> None:
        """Writes the summary as the last line or lines."""
        summary = self.summary
        text = json.dumps({"event": "summary", **asdict(summary)}) if self._as_json else str(summary)
        with self._lock:
            print(text, file=self._out, flush=True)


def line(action: str, subject: str, detail: str, seconds: float | None, *, coloured: bool = False) -> str:
    """One event in aligned columns: `load     abalone-1.tar.gz    41 ms`."""
    took = "" if seconds is None else f"{_ms(seconds * 1000):>9}"
    shown = f"{action:<{ACTION}}"
    if coloured and action in COLOURS:
        shown = COLOURS[action] + shown + PLAIN
    return f"{shown}{subject:<{SUBJECT}}{took}{'  ' if took and detail else ' ' if detail else ''}{detail}".rstrip()


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The value at this share of an ordered list, None for an empty list."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"
