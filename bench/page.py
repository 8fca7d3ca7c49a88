"""Write docs/benchmarks.md and its charts from the figures of runs: python -m bench.page [RUN.json ...]

Each RUN is a file of `python -m bench`. Its rows replace those of the same name in bench/figures.json, which is
committed. The page keeps its own text; the parts between `<!-- measured: ... -->` and `<!-- end -->` are written anew.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.chart import svg
from bench.machine import headline
from bench.table import of_rows

ROOT = Path(__file__).parents[1]
FIGURES = Path(__file__).parent / "figures.json"
PAGE = ROOT / "docs" / "benchmarks.md"
CHARTS = PAGE.parent / "benchmarks"
BLOCK = re.compile(r"(<!-- measured: ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
KEPT = ("when", "cpu", "sets", "cores", "versions", "others", "quick", "seconds", "checked", "not run")

Run = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN.json", help="newer figures, the newest last")
    parser.add_argument("--alone", action="store_true", help="forget all older figures")
    asked = parser.parse_args()
    runs: list[Run] = [] if asked.alone or not FIGURES.exists() else json.loads(FIGURES.read_text())
    for path in asked.runs:
        runs = taken(runs, json.loads(path.read_text()))
    FIGURES.write_text(json.dumps(runs, indent=1) + "\n")
    CHARTS.mkdir(exist_ok=True)
    for path, text in written(runs, PAGE.read_text()).items():
        path.write_text(text)
    return 0


def taken(runs: Sequence[Run], newer: Mapping[str, Any]) -> list[Run]:
    """The runs with the rows of a newer one, which replace rows of the same name. A run without rows is dropped."""
    names = {row["workload"] for row in newer["rows"]}
    kept = [run | {"rows": [row for row in run["rows"] if row["workload"] not in names]} for run in runs]
    last = {key: newer[key] for key in KEPT if key in newer} | {"rows": newer["rows"]}
    return [run for run in (*kept, last) if run["rows"]]


def written(runs: Sequence[Run], page: str) -> dict[Path, str]:
    """The page and its charts, by path."""
    files: dict[Path, str] = {}

    def block(found: re.Match[str]) -> str:
        name, *workloads = found[2].split()
        text = _machines(runs) if name == "machines" else _figures(runs, name, workloads, files)
        return f"{found[1]}{text}{found[3]}"

    files[PAGE] = BLOCK.sub(block, page)
    return files


def _machines(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        of = ", ".join(dict.fromkeys(row["workload"].split()[0].rstrip(",") for row in run["rows"]))
        lines.append(f"- {of}: {headline(run)}\n")
        if took := run.get("seconds"):
            each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
            lines.append(f"- that run took {sum(took.values()) / 60:.0f} minutes: {each}\n")
        lines += [f"- {checked}\n" for checked in run.get("checked", ())]
    missing = dict.fromkeys(each for run in runs for each in run["not run"])
    return "".join([*lines, *(f"- not run: {each}\n" for each in missing)])


def _natural(name: str) -> list[str | int]:
    """A key that sorts 4 callers before 16."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _figures(runs: Sequence[Run], name: str, workloads: Sequence[str], files: dict[Path, str]) -> str:
    """A chart of all rows with ratios, the table, and the workloads without rows."""
    rows = [row for run in runs for row in run["rows"] if row["workload"].split()[0] in workloads]
    order = {workload: number for number, workload in enumerate(workloads)}
    rows.sort(key=lambda row: (order[row["workload"].split()[0]], _natural(row["workload"])))
    cases = [(row["workload"].partition(" ")[2], row["ratios"]) for row in rows if row["ratios"]]
    most = {(row["workload"].partition(" ")[2], "generate"): row["memory"]["most"] for row in rows if row.get("memory")}
    shown = ""
    if cases:
        title = f"this server's speed, in times of others: {name}"
        files[CHARTS / f"{name}.svg"] = svg(title, cases, most)
        shown = f"\n![{title}; the table has the figures](benchmarks/{name}.svg)\n"
    measured = {row["workload"].split()[0] for row in rows}
    missing = ", ".join(each for each in workloads if each not in measured)
    table = f"\n{of_rows(rows)}\n" if rows else ""
    return f"{shown}{table}\nNot measured: {missing}.\n\n" if missing else f"{shown}{table}\n"


if __name__ == "__main__":
    sys.exit(main())
