"""The emulator's events, for people and as JSON Lines."""

import io
import json

from local_test.platform.events import Events, line, quantile


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_aligned() -> None:
    """Action, subject, duration, detail."""
    assert line("load", "abalone-1.tar.gz", "", 0.0412) == "load     abalone-1.tar.gz                    41 ms"
    assert line("507", "gpt2.tar.gz", "-> unload bart.tar.gz -> retry", None) == (
        "507      gpt2.tar.gz                      -> unload bart.tar.gz -> retry"
    )


def test_colours_are_for_terminals() -> None:
    """A file has no colours."""
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        Events(out).emit("load", "a")
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in file.getvalue()


def test_json_has_one_object_per_line() -> None:
    """Without empty members."""
    out = io.StringIO()
    Events(out, as_json=True).emit("load", "a", seconds=0.0412, id="x")
    event = json.loads(out.getvalue())
    assert event.pop("time") > 0
    assert event == {"event": "load", "subject": "a", "ms": 41.2, "id": "x"}


def test_a_closed_output_stops_nothing() -> None:
    """`... | head` closes the pipe."""
    out = io.StringIO()
    events = Events(out)
    out.close()
    events.emit("load", "a")
    assert events.summary.loads == 1


def test_the_summary_counts() -> None:
    """A call of a container with one model is neither a hit nor a load."""
    out = io.StringIO()
    events = Events(out)
    events.emit("load", "a")
    events.emit("507", "b")
    events.emit("unload", "a")
    events.call_answered(0.5, cold=True)
    for number in range(99):
        events.call_answered((number + 1) / 1024, cold=False)
    events.call_answered(0.1)
    events.call_failed("ModelError 400")
    summary = events.summary
    assert (summary.calls, summary.loads, summary.hits, summary.full, summary.unloads) == (102, 1, 99, 1, 1)
    assert summary.hit_rate == 0.99
    assert summary.errors == {"ModelError 400": 1}
    assert (summary.cold_p50, summary.warm_p50) == (500.0, 51 / 1024 * 1000)
    assert str(summary).splitlines()[0] == "calls    102, errors: 1 x ModelError 400"
    events.print_summary()
    assert "99 hits (99.0%)" in out.getvalue()


def test_a_summary_without_calls_has_no_figures() -> None:
    """It does not divide by zero."""
    summary = Events(io.StringIO()).summary
    assert (summary.calls, summary.hit_rate, summary.cold_p50) == (0, None, None)
    assert quantile([], 0.5) is None
