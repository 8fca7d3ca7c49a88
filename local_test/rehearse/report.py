"""Verdicts for people: one line each, more where something is wrong, colours and progress on a terminal only."""

import textwrap
from collections.abc import Iterable
from typing import TextIO

from local_test.rehearse.verdict import Verdict

COLOURS = {"pass": "32", "FAIL": "31;1", "warn": "33", "skip": "2"}
NAME = 30  # columns


class Report:
    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._reasons: dict[str, list[str]] = {}  # why checks were left out -> which

    def progress(self, doing: str) -> None:
        """What is being done, on the line that the next verdict takes."""
        if self._terminal:
            print(f"\r\x1b[K      {doing}", end="", file=self._out, flush=True)
            if not doing:
                print("\r\x1b[K", end="", file=self._out, flush=True)

    def row(self, verdict: Verdict) -> None:
        if verdict.outcome == "skip":  # told together, at the end
            self._reasons.setdefault(verdict.seen, []).append(verdict.name)
            return
        self.progress("")
        print(f"{self._coloured(verdict.outcome)}  {verdict.name:<{NAME}} {verdict.seen}", file=self._out, flush=True)
        if verdict.outcome in ("FAIL", "warn"):
            for what in ("wants", "breaks", "do", "source"):
                lines = textwrap.wrap(getattr(verdict, what), 100, break_long_words=False, break_on_hyphens=False)
                print(f"{'':6}{what:<8}" + f"\n{'':14}".join(lines), file=self._out, flush=True)

    def end(self, verdicts: Iterable[Verdict], seconds: float) -> None:
        self.progress("")
        for reason, names in self._reasons.items():
            shown = ", ".join(names) if len(names) < 4 else f"{len(names)} checks, {names[0]} to {names[-1]}"
            print(f"{self._coloured('skip')}  {shown}: {reason}", file=self._out)
        count = dict.fromkeys(COLOURS, 0)
        for each in verdicts:
            count[each.outcome] += 1
        told = [
            f"{count['pass']} passed",
            f"{count['FAIL']} breached",
            f"{count['warn']} warnings",
            f"{count['skip']} left out",
        ]
        print(f"{', '.join(told)}, in {seconds:.0f} s", file=self._out)

    def _coloured(self, outcome: str) -> str:
        return f"\x1b[{COLOURS[outcome]}m{outcome}\x1b[0m" if self._terminal else outcome
