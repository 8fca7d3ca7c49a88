"""Faults and a long run against the server; writes docs/reliability.md.

python -m tests.storm matrix [--only WORD ...]   kills, stops and starves each part of the server under 16 callers
python -m tests.storm long [--seconds S] ...     right calls, hostile inputs and kills at the same time
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.storm import faults, long_run, page
from tests.storm.fleet import make
from tests.storm.subjects import InContainer, Processes, Subject, running


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.storm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--image", metavar="NAME", help="a container of this image in place of processes")
    common.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    common.add_argument("--no-page", action="store_true", help="do not write docs/reliability.md")
    verbs = parser.add_subparsers(dest="verb", required=True)
    matrix = verbs.add_parser("matrix", parents=[common], help="each fault for each part")
    matrix.add_argument("--only", nargs="+", default=[], metavar="WORD", help="the cases that have one of these words")
    long = verbs.add_parser("long", parents=[common], help="the long run")
    long.add_argument("--seconds", type=float, default=3600.0, help="over which the calls are spread; then it ends")
    long.add_argument("--calls", type=int, default=1_000_000)
    long.add_argument("--kills", type=int, help="one for 1,000 calls")
    long.add_argument("--inputs", type=int, help="hostile ones: one for ten calls")
    long.add_argument("--kinds", nargs="+", default=list(long_run.MODELS), choices=long_run.MODELS, help="of models")
    long.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory(prefix="storm-") as work:
        Path(work).chmod(0o755)  # a container's user is another one
        return (_matrix if asked.verb == "matrix" else _long)(asked, Path(work))


def _keep(file: Path | None, figures: Any) -> None:
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n")


def _matrix(asked: argparse.Namespace, work: Path) -> int:
    rows: list[faults.Row] = []
    opened: Callable[[], AbstractContextManager[faults.Matrix]]
    opened = lambda: faults.in_container(work, asked.image) if asked.image else faults.as_processes(work)  # noqa: E731
    with opened() as matrix:
        wanted = faults.cases(asked.only)
        for number, case in enumerate(wanted, 1):
            began = time.monotonic()
            print(f"{number}/{len(wanted)} {case}: ", end="", flush=True)
            rows.append(matrix.run(case))
            print(f"{page.summary(rows[-1])} ({time.monotonic() - began:.0f} s)", flush=True)
            for text in rows[-1].unexplained:
                print(f"    {text[:300]}", flush=True)
            _keep(asked.json, faults.as_figures(rows))
    if not asked.no_page:
        page.write("Docker" if asked.image else "processes", page.matrix(rows))
    return 1 if any(row.wrong or row.recovery is None for row in rows) else 0


def _long(asked: argparse.Namespace, work: Path) -> int:
    calls, kills, inputs = asked.calls, asked.kills, asked.inputs
    plan = long_run.Plan(
        calls=calls,
        seconds=asked.seconds,
        kills=calls // 1000 if kills is None else kills,
        inputs=calls // 10 if inputs is None else inputs,
        seed=asked.seed,
    )
    kinds = {kind: count for kind, count in long_run.MODELS.items() if kind in asked.kinds}
    if len(kinds) < len(long_run.MODELS):
        kinds = dict.fromkeys(kinds, sum(long_run.MODELS.values()) // len(kinds))
    fleet = make(work / "models", kinds)
    environ = {"SERVE_MEMORY_BUDGET_MB": str(long_run.budget_mb(kinds))}
    subject: Subject = (
        InContainer(fleet.directory, environ, asked.image, []) if asked.image else Processes(fleet.directory, environ)
    )
    with running(subject):
        report = long_run.LongRun(subject, fleet, plan, lambda line: print(line, flush=True)).run()
    print(page.long_run(report, kinds))
    for each in report.faults[:40]:
        print(each[:400])
    _keep(asked.json, report.as_figures())
    if not asked.no_page:
        page.write("long run", page.long_run(report, kinds))
    return 1 if report.faults or report.failed_pings else 0


if __name__ == "__main__":
    sys.exit(main())
