"""Measure the server: python -m bench [--quick] [--only W1 W6 ...] [--callers N ...] [--peers] [--json FILE]

Prints a table of ratios beside their aims. Writes all figures as JSON after each row; `python -m bench.page` makes
docs/benchmarks.md from them. Server, load generator, limits and peers share the processors of this machine. They
alternate, round by round, so that other load affects each of them. Run it on an idle machine.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench import texts, workloads
from bench.core import Bench, Row, row
from bench.load import quantile
from bench.machine import headline, machine
from bench.stacks import make_samples
from bench.table import of_rows

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Workload:
    run: Callable[[Bench], Iterator[Row]]
    samples: tuple[str, ...]  # the sample models it needs


GPT2, BART, SMOLLM2, ROWS = "gpt2-full", "bart-large-cnn-full", "smollm2", "abalone-1"
WORKLOADS = {
    "W1": Workload(workloads.one_row, (ROWS,)),
    "W1b": Workload(workloads.bulk, (ROWS,)),
    "W2": Workload(texts.gpt2, (GPT2,)),
    "W3": Workload(workloads.cold, (ROWS, GPT2, BART)),
    "W4": Workload(workloads.starts, (ROWS, GPT2)),
    "W5": Workload(workloads.multi_model, (ROWS,)),
    "W6": Workload(texts.bart, (BART,)),
    "W6b": Workload(texts.bart_beams, (BART,)),
    "W7": Workload(texts.chat, (SMOLLM2,)),
    "W7b": Workload(texts.long_chat, (SMOLLM2,)),
    "W8": Workload(texts.t5, ("t5-base-full",)),
    "W9": Workload(texts.encoder, ("minilm",)),
    "W10": Workload(texts.mixed, (GPT2,)),
    "W11": Workload(texts.precisions, (GPT2, SMOLLM2)),
    "W12": Workload(texts.idle, (ROWS, GPT2)),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="W", help="some of it")
    parser.add_argument("--callers", nargs="+", type=int, default=[], metavar="N", help="only these numbers of callers")
    parser.add_argument("--peers", action="store_true", help="the engines and servers of .venv-peers as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of the figures (bench/results/DATE.json)")
    asked = parser.parse_args()
    there = make_samples(*dict.fromkeys(name for each in asked.only for name in WORKLOADS[each].samples))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # which ends the servers, as Ctrl-C does
    # A short path: Unix sockets lie below it, and their names have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as work:
        run = Run(Bench(asked.quick, Path(work), asked.peers, asked.callers), asked.json, psutil.cpu_percent(2.0))
        for name in asked.only:
            if missing := set(WORKLOADS[name].samples) - there:
                run.bench.not_run.append(f"{name}: the sample model {', '.join(sorted(missing))} could not be made")
            else:
                run.take(name)
        if not asked.peers:
            run.bench.not_run.append("peers: not asked for (make bench PEERS=1)")
        run.finish(psutil.cpu_percent(2.0))
    print(headline(run.head))
    print(of_rows(list(map(vars, run.rows))))
    for each in (*run.bench.checked, *(f"not run: {each}" for each in run.bench.not_run)):
        print(each)
    print("seconds: " + ", ".join(f"{name} {took:.0f}" for name, took in run.seconds.items()))
    print(f"all figures: {run.target}")
    return 1 if run.failed else 0


class Run:
    """The rows of a run. Its file is written after each row: a run that breaks off keeps what it has."""

    def __init__(self, bench: Bench, target: Path | None, busy: float) -> None:
        """`busy`: the percentage of the processors that other processes kept."""
        self.bench = bench
        self.failed: list[Row] = []
        self.seconds: dict[str, float] = {}  # that each workload took
        moment = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        self.target = target or RESULTS / f"{moment}.json"
        self._found: list[Row] = []
        self._others = f"other processes kept {busy:.0f}% of them busy before"
        self._machine = {"when": moment, **machine(bench.peers)}

    @property
    def rows(self) -> list[Row]:
        return [*self._found, *self.failed, *ping_rows(self.bench)]

    @property
    def head(self) -> dict[str, Any]:
        bench = self.bench
        found = {"others": self._others, "quick": bench.quick, "seconds": self.seconds}
        return {**self._machine, **found, "checked": bench.checked, "not run": bench.not_run}

    def take(self, name: str) -> None:
        """Runs a workload. When it fails, the run goes on: the figures of the others take minutes."""
        began = time.monotonic()
        try:
            with self.bench.workload(name):
                for each in WORKLOADS[name].run(self.bench):
                    self._found.append(each)
                    self._write()
        except Exception as error:
            traceback.print_exc()
            self.failed.append(Row(name, "-", limit=f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]))
        self.seconds[name] = time.monotonic() - began
        self._write()

    def finish(self, busy: float) -> None:
        """The last writing."""
        self._others += f", {busy:.0f}% after"
        self._write()

    def _write(self) -> None:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        rows = list(map(vars, self.rows))
        figures = {**self.head, "rows": rows, "raw": self.bench.raw, "ping_ms": self.bench.pings}
        part = self.target.with_name(f".{self.target.name}")
        part.write_text(json.dumps(figures, indent=1, default=str) + "\n")
        part.replace(self.target)


def ping_rows(bench: Bench) -> list[Row]:
    """/ping during all of the workloads."""
    ours, usual = (sorted(bench.pings[name]) for name in ("ours", "usual"))
    if not ours:
        return []
    p99 = quantile(ours, 0.99)
    beside = f"{quantile(usual, 0.99):.1f} ms" if usual else ""
    title = f"/ping, p99 while the above ran ({len(ours)} pings, slowest {ours[-1]:.0f} ms)"
    return [row(title, f"{p99:.1f} ms", beside, ratio=f"{p99:.1f} ms", value=p99, at_most="50 ms")]


if __name__ == "__main__":
    sys.exit(main())
