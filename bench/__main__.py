"""Measure the server: python -m bench [--quick] [--only W1 W1b W2 W3 W4 W5] [--json FILE]

Prints a table of ratios with the aims beside them and keeps the raw figures as JSON. Server, load generator and the
stack it is compared with share this machine's processors; the stacks take turns, round by round, so that what else
happens on the machine meets all of them. Nothing else should run meanwhile.
"""

import argparse
import json
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench import bulk, cold, multi_model, rows, starts, table, texts
from bench.context import CORES, Context, Row
from bench.load import quantile
from bench.stacks import make_samples, workplace

WORKLOADS = {"W1": rows.run, "W1b": bulk.run, "W2": texts.run, "W3": cold.run, "W4": starts.run, "W5": multi_model.run}
TEXTS = {"W2", "W3", "W4"}  # with a GPT-2 of full size, half a gigabyte
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each: to see that it runs")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="W", help="some of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the raw figures go (bench/results/DATE.json)")
    asked = parser.parse_args(arguments)
    make_samples("abalone-1", *(["gpt2-full"] if TEXTS & set(asked.only) else []))
    moment = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    found: list[Row] = []
    failed: list[Row] = []
    busy_before = busy()
    with workplace() as work:
        context = Context(asked.quick, work)
        for name in asked.only:
            try:
                found += WORKLOADS[name](context)
            except Exception as error:
                # Minutes of figures are not thrown away because one of them could not be had.
                traceback.print_exc()
                failed.append(Row(name, f"failed: {type(error).__name__}"))
        found += failed
        found += ping_rows(context)
    others = f"others kept {busy_before:.0%} of them busy before, {busy():.0%} after"
    head = {"when": moment, "cpu": processor(), "cores": CORES, "others": others, "quick": asked.quick}
    print(
        f"{moment}  {head['cpu']}, {CORES} cores, Python {platform.python_version()}; {others}"
        + "  QUICK" * asked.quick
    )
    print(table.text(found))
    target = asked.json or RESULTS / f"{moment}.json"
    keep(target, {**head, "rows": [vars(row) for row in found], "raw": context.raw, "ping_ms": context.pings})
    print(f"raw figures: {target}")
    return 1 if failed else 0


def ping_rows(context: Context) -> list[Row]:
    """/ping while all of it ran."""
    times = {who: sorted(found) for who, found in context.pings.items()}
    if not times.get("ours"):
        return []
    p99 = {who: quantile(found, 0.99) for who, found in times.items()}
    usual = f"{p99['usual']:.1f} ms" if times.get("usual") else ""
    count = f"{len(times['ours'])} pings, slowest {times['ours'][-1]:.0f} ms"
    return [
        Row("/ping, p99 while the above ran", f"{p99['ours']:.1f} ms", usual, "", count, "50 ms", p99["ours"] <= 50)
    ]


def busy(seconds: float = 2.0) -> float:
    """The share of all processors that is in use while we do nothing."""
    before = cpu_times()
    time.sleep(seconds)
    spent = [after - earlier for after, earlier in zip(cpu_times(), before, strict=True)]
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))  # idle, and waiting for disks


def cpu_times() -> list[int]:
    return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def keep(target: Path, figures: dict[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(figures, indent=1, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
