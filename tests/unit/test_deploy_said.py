"""What is said while one waits, and of what went wrong."""

import io
import os
from typing import Any

import pytest

from deploy import logs
from deploy.progress import Progress


class Terminal(io.StringIO):
    """Of forty columns."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1


def test_a_wait_is_one_line_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer one would wrap, and what wraps cannot be overwritten."""
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
    out = Terminal()
    with Progress(out).waiting("endpoint " + "n" * 54) as show:
        show("Updating, Creating")
    line = out.getvalue().partition("\033[2m")[2].partition("\033[0m")[0]
    assert line == ("endpoint " + "n" * 54)[:39]


class Logged:
    """An account whose endpoint's log has these events: stream and words."""

    def __init__(self, *events: tuple[str, str]) -> None:
        self._events = events

    def client(self, _: str) -> "Logged":
        return self

    def get_paginator(self, _: str) -> "Logged":
        return self

    def paginate(self, **_: Any) -> list[dict[str, Any]]:
        return [{"events": [{"timestamp": 0, "logStreamName": name, "message": said} for name, said in self._events]}]


def test_the_last_words_are_those_of_the_containers_that_began_last() -> None:
    """Another fleet, which is in service and answers all the time, does not bury them."""
    old = [("A/old", f"GET {number}") for number in range(1000)]
    aws = Logged(*old[:500], ("A/new-1", "no such setting"), ("A/new-2", "no such setting"), *old[500:])
    said = logs.last(aws, "x", 10)  # type: ignore[arg-type]
    assert [line.split("  ", 1)[1] for line in said] == ["no such setting"] * 2
