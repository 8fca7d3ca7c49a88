"""Measure the server: python -m bench [--quick] [--only W1 W1b W2 W3 W4 W5] [--json FILE]

Prints a table of ratios beside their aims and writes the raw figures as JSON. Server, load generator and usual stack
share the processors of this machine. The stacks alternate, round by round, so that other load affects each of them. Run
it on an idle machine.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

import psutil

from bench.load import quantile
from bench.stacks import make_samples
from bench.workloads import CORES, WITH_TEXTS, WORKLOADS, Bench, Row

RESULTS = Path(__file__).parent / "results"
HEADS = ("workload", "ours", "usual", "in process", "ratio", "aim", "reached")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="W", help="some of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of the raw figures (bench/results/DATE.json)")
    asked = parser.parse_args()
    make_samples("abalone-1", *(["gpt2-full"] if WITH_TEXTS & set(asked.only) else []))
    moment = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    found: list[Row] = []
    failed: list[Row] = []
    busy = psutil.cpu_percent(2.0)
    # A short path: Unix sockets lie below it, and their names have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as work:
        bench = Bench(asked.quick, Path(work))
        for name in asked.only:
            try:
                with bench.workload(name):
                    found += WORKLOADS[name](bench)
            except Exception as error:
                # The run goes on: the figures of the other workloads took minutes.
                traceback.print_exc()
                failed.append(Row(name, f"failed: {type(error).__name__}"))
    others = f"others kept {busy:.0f}% of them busy before, {psutil.cpu_percent(2.0):.0f}% after"
    rows = [*found, *failed, *ping_rows(bench)]
    cpu = processor()
    print(f"{moment}  {cpu}, {CORES} cores, Python {platform.python_version()}; {others}" + "  QUICK" * asked.quick)
    print(table(rows))
    target: Path = asked.json or RESULTS / f"{moment}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    head = {"when": moment, "cpu": cpu, "cores": CORES, "others": others, "quick": asked.quick}
    figures = {**head, "rows": [vars(row) for row in rows], "raw": bench.raw, "ping_ms": bench.pings}
    target.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    print(f"raw figures: {target}")
    return 1 if failed else 0


def ping_rows(bench: Bench) -> list[Row]:
    """/ping during all of the workloads."""
    ours, usual = (sorted(bench.pings[name]) for name in ("ours", "usual"))
    if not ours:
        return []
    p99 = quantile(ours, 0.99)
    beside = f"{quantile(usual, 0.99):.1f} ms" if usual else ""
    count = f"{len(ours)} pings, slowest {ours[-1]:.0f} ms"
    return [Row("/ping, p99 while the above ran", f"{p99:.1f} ms", beside, "", count, "50 ms", p99 <= 50)]


def table(rows: list[Row]) -> str:
    """A Markdown table, aligned for a terminal."""
    reached = {True: "yes", False: "NO", None: ""}
    lines = [HEADS, *((*list(vars(row).values())[:-1], reached[row.reached]) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)


def processor() -> str:
    named = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    return named[1] if named else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
