"""Measure the server: python -m bench [--quick] [--only W1 W6 ...] [--callers N ...] [--peers] [--json FILE]

Prints a table of ratios beside their aims and writes all figures as JSON, from which `python -m bench.page` makes
docs/benchmarks.md. Server, load generator, limits and peers share the processors of this machine. They alternate, round
by round, so that other load affects each of them. Run it on an idle machine.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
    parser.add_argument("--quick", action="store_true", help="one short round of each, some minutes in all")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="W", help="some of it")
    parser.add_argument("--callers", nargs="+", type=int, default=[], metavar="N", help="only these numbers of callers")
    parser.add_argument("--peers", action="store_true", help="the engines and servers of .venv-peers as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of the figures (bench/results/DATE.json)")
    asked = parser.parse_args()
    there = make_samples(*dict.fromkeys(name for each in asked.only for name in WORKLOADS[each].samples))
    moment = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    found: list[Row] = []
    failed: list[Row] = []
    busy = psutil.cpu_percent(2.0)
    # A short path: Unix sockets lie below it, and their names have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as work:
        bench = Bench(asked.quick, Path(work), asked.peers, asked.callers)
        for name in asked.only:
            if missing := set(WORKLOADS[name].samples) - there:
                bench.not_run.append(f"{name}: the sample model {', '.join(sorted(missing))} could not be made")
                continue
            try:
                with bench.workload(name):
                    found += WORKLOADS[name].run(bench)
            except Exception as error:
                # The run goes on: the figures of the other workloads took minutes.
                traceback.print_exc()
                failed.append(Row(name, f"failed: {type(error).__name__}"))
    if not asked.peers:
        bench.not_run.append("peers: not asked for (make bench PEERS=1)")
    rows = [*found, *failed, *ping_rows(bench)]
    head = {
        "when": moment,
        **machine(asked.peers),
        "others": f"other processes kept {busy:.0f}% of them busy before, {psutil.cpu_percent(2.0):.0f}% after",
        "quick": asked.quick,
        "not run": bench.not_run,
    }
    print(headline(head))
    print(of_rows([vars(each) for each in rows]))
    for each in bench.not_run:
        print(f"not run: {each}")
    target: Path = asked.json or RESULTS / f"{moment}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    figures = {**head, "rows": [vars(each) for each in rows], "raw": bench.raw, "ping_ms": bench.pings}
    target.write_text(json.dumps(figures, indent=1, default=str) + "\n")
    print(f"all figures: {target}")
    return 1 if failed else 0


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
