"""docs/reliability.md: each run writes its own block of the page."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from docs.reference import table
from tests.storm.faults import Row
from tests.storm.long_run import Report

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = ("part", "fault", "state", "calls", "lost", "errors", "slowest", "recovery", "/ping", "the server")


def summary(row: Row) -> str:
    """A case in a line."""
    recovery = "never" if row.recovery is None else f"{row.recovery:.1f} s"
    return (
        f"{row.calls} calls, {row.wrong} wrong, {row.lost} lost, {_told(row.told)}, slowest {row.slowest:.1f} s, "
        f"recovery {recovery}, ping {row.worst_ping:.2f} s, {row.failed_pings} failed; {row.server or 'went on'}"
    )


def _told(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {error}" for error, count in sorted(errors.items())) or "none"


def matrix(rows: Sequence[Row]) -> str:
    """The table of a run of the matrix."""
    cells = [
        (
            row.part,
            row.fault,
            row.state,
            str(row.calls),
            str(row.lost),
            _told(row.told),
            f"{row.slowest:.1f} s",
            "not within 90 s" if row.recovery is None else f"{row.recovery:.1f} s",
            f"{row.worst_ping:.2f} s" + (f", {row.failed_pings} failed" if row.failed_pings else ""),
            f"ended, {row.server}" if row.server else "went on",
        )
        for row in rows
    ]
    calls, wrong = sum(row.calls for row in rows), sum(row.wrong for row in rows)
    lines = [f"{moment()}: {len(rows)} cases, {calls} calls, {wrong} wrong answers.", "", table(HEAD, cells)]
    return "\n".join(lines)


def long_run(report: Report, models: Mapping[str, int]) -> str:
    """The figures of a long run."""
    inputs = ", ".join(f"{count} {kind}" for kind, count in sorted(report.inputs.items()))
    kills = ", ".join(f"{count} of a {part}" for part, count in sorted(report.kills.items()))
    cells = [
        ("length", f"{report.seconds:.0f} s"),
        ("models", ", ".join(f"{count} {kind}" for kind, count in models.items())),
        ("calls", f"{report.calls} of 16 callers"),
        ("wrong answers", str(len(report.wrong))),
        ("outcomes", ", ".join(f"{count} {kind}" for kind, count in sorted(report.outcomes.items()))),
        ("unexplained", str(len(report.unexplained))),
        ("kills", f"{sum(report.kills.values())}: {kills}"),
        ("loads, evictions", f"{report.loads}, {report.evictions}"),
        ("hostile inputs", f"{sum(report.inputs.values())}: {inputs}"),
        ("hostile inputs with an unexplained result", str(len(report.hostile_problems))),
        (
            "/ping",
            f"{report.pings} times, slowest {report.worst_ping:.2f} s, {report.failed_pings} over 2 s or not 200",
        ),
        ("slowest call", f"{report.slowest:.1f} s"),
        ("ends of the server", str(len(report.endings))),
        ("memory of all runners", f"at most {report.runners_mb:.0f} MB, at the end {report.last_runners_mb:.0f} MB"),
    ]
    growth = [
        (
            each.part,
            f"{each.first_mb:.1f} MB",
            f"{each.last_mb:.1f} MB",
            f"{each.most_mb:.1f} MB",
            str(each.first_files),
            str(each.last_files),
        )
        for each in sorted(report.growth, key=lambda each: each.part)
    ]
    head = ("process", "memory, first third", "last third", "at most", "descriptors, first third", "last third")
    return "\n".join([f"{moment()}.", "", table(("", ""), cells), table(head, growth)])


def moment() -> str:
    """Day and machine, and how busy it was: the load is of the server, the callers and all other processes."""
    load = os.getloadavg()[2]
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return f"{day}, {os.cpu_count()} processors, load of the last 15 minutes {load:.0f}"


def write(block: str, text: str) -> None:
    """Replace a block of the page."""
    start, end = f"<!-- storm: {block} -->\n", "<!-- end -->"
    pattern = re.escape(start) + ".*?" + re.escape(end)
    found = PAGE.read_text()
    assert re.search(pattern, found, re.DOTALL), f"{PAGE} has no block {start!r}"
    PAGE.write_text(re.sub(pattern, lambda _: start + text.rstrip("\n") + "\n" + end, found, flags=re.DOTALL))
