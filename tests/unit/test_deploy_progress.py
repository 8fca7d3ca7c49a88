"""The output of a wait, and of bytes counted."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from deploy.progress import Progress, counted, sized


class Terminal(io.StringIO):
    """A terminal of forty columns."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1


def test_a_wait_is_one_line_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer line would wrap, and a wrapped line cannot be overwritten."""
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
    out = Terminal()
    with Progress(out).waiting("endpoint " + "n" * 54) as show:
        show("Updating, Creating")
    line = out.getvalue().partition("\033[2m")[2].partition("\033[0m")[0]
    assert line == ("endpoint " + "n" * 54)[:39]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1254, "1.25 kB"),
        (999_500, "1 MB"),
        (3 << 30, "3.22 GB"),
        (5e12, "5 TB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit(size: float, text: str) -> None:
    assert sized(size) == text


def test_counted_bytes_are_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of several threads add up; the line is cleared at the end."""
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    monkeypatch.setattr("sys.stderr", out := Terminal())
    with counted("put x", 2000) as count, ThreadPoolExecutor(4) as threads:
        list(threads.map(count, [500] * 4))
    assert "put x: 100 % of 2 kB (0 s)" in out.getvalue()
    assert out.getvalue().endswith("\r\033[K")


def test_counted_bytes_are_not_shown_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with counted("put x", 2000) as count:
        count(2000)
    assert capsys.readouterr() == ("", "")
