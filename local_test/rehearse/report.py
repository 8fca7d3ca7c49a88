"""Report of the verdicts for people: one line each, details of failures and warnings, colours on a terminal only."""

import textwrap
from collections.abc import Iterable
from typing import TextIO

from local_test.rehearse.verdict import Verdict

COLOURS = {"pass": "32", "FAIL": "31;1", "warn": "33", "skip": "2"}
NAME = 30  # width of a column
WIDTH = 100  # of the details


class Report:
    """Prints each verdict when it arrives, and a summary at the end."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._skipped: dict[str, list[str]] = {}  # reason -> names of the checks

    def progress(self, activity: str) -> None:
        """Shows the current activity on a terminal, on the line of the next verdict; "" clears it."""
        if self._terminal:
            print(f"\r\x1b[K      {activity}", end="", file=self._out, flush=True)
            if not activity:
                print("\r\x1b[K", end="", file=self._out, flush=True)

    def row(self, verdict: Verdict) -> None:
        """Prints a verdict. Skipped checks are printed together at the end."""
        if verdict.outcome == "skip":
            self._skipped.setdefault(verdict.seen, []).append(verdict.name)
            return
        self.progress("")
        print(f"{self._coloured(verdict.outcome)}  {verdict.name:<{NAME}} {verdict.seen}", file=self._out, flush=True)
        if verdict.outcome in ("FAIL", "warn"):
            for label in ("wants", "breaks", "do", "source"):
                lines = textwrap.wrap(getattr(verdict, label), WIDTH, break_long_words=False, break_on_hyphens=False)
                print(f"{'':6}{label:<8}" + f"\n{'':14}".join(lines), file=self._out, flush=True)

    def end(self, verdicts: Iterable[Verdict], seconds: float) -> None:
        """Prints the skipped checks and the totals."""
        self.progress("")
        for reason, names in self._skipped.items():
            shown = ", ".join(names) if len(names) < 4 else f"{len(names)} checks, {names[0]} to {names[-1]}"
            print(f"{self._coloured('skip')}  {shown}: {reason}", file=self._out)
        count = dict.fromkeys(COLOURS, 0)
        for each in verdicts:
            count[each.outcome] += 1
        totals = [
            f"{count['pass']} passed",
            f"{count['FAIL']} failed",
            f"{count['warn']} warnings",
            f"{count['skip']} skipped",
        ]
        print(f"{', '.join(totals)}, in {seconds:.0f} s", file=self._out)

    def _coloured(self, outcome: str) -> str:
        return f"\x1b[{COLOURS[outcome]}m{outcome}\x1b[0m" if self._terminal else outcome
