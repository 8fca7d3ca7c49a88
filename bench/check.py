"""Compare handlers with plain libraries: python -m bench.check [--write]

Each ratio is the processor time of the limit (transformers' `generate`, a plain forward pass, numpy and XGBoost) over
that of this server's handler, in one process, on one thread, alternating. Exit status 1 if a ratio is 30% worse than
the committed one in bench/check.json. A busy machine changes processor times little, and both sides alike. Kernels
are those of AVX2 on every x86 machine, so that one set of figures holds for machines with and without AMX.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.child import Child
from bench.machine import machine
from bench.ratios import Ratios
from bench.table import markdown

COMMITTED = Path(__file__).parent / "check.json"
WORST = 0.7  # of the committed ratio
ROUNDS, TRIES = 2, 5  # a ratio that is too low after two rounds is of ten before it fails


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the ratios to bench/check.json")
    asked = parser.parse_args()
    kind = platform.machine()
    committed = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    expected: dict[str, float] = committed.get(kind, {}).get("ratios", {})
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as work, Child(Ratios, Path(work)) as ratios:
        names: list[str] = ratios.ask("names")
        rounds = ROUNDS * TRIES if asked.write else ROUNDS
        found = measured(
            names, {} if asked.write else expected, lambda name: float(ratios.ask("measure", name, rounds))
        )
    worse = {} if asked.write else too_low(found, expected)
    lines = [
        (name, f"{ratio:.2f}", f"{expected[name]:.2f}" if name in expected else "", "NO" if name in worse else "yes")
        for name, ratio in found.items()
    ]
    print(markdown(("work", "times the limit", "committed", "holds"), lines))
    print(f"{time.monotonic() - began:.0f} s")
    if asked.write:
        made = {"made": {**machine(), "date": time.strftime("%Y-%m-%d")}, "ratios": rounded(found)}
        COMMITTED.write_text(json.dumps(committed | {kind: made}, indent=1) + "\n")
        return 0
    if not expected:
        print(f"{COMMITTED.name} has no figures for {kind}: nothing is compared (--write makes them)")
    for name, least in worse.items():
        print(f"{name}: {found[name]:.2f} times the limit; at least {least:.2f} is expected. Find the change that made")
        print("  this work slower; if it is meant to be, write the figures anew: python -m bench.check --write")
    return 1 if worse else 0


def measured(names: list[str], expected: Mapping[str, float], measure: Callable[[str], float]) -> dict[str, float]:
    """The ratio of each case. One that is too low is measured again: a ratio counts all rounds of its case so far."""
    found = {}
    for name in names:
        for _ in range(TRIES):
            found[name] = measure(name)
            if not too_low({name: found[name]}, expected):
                break
    return found


def too_low(found: Mapping[str, float], expected: Mapping[str, float]) -> dict[str, float]:
    """The cases whose ratio is 30% worse than expected, with the least that holds. A case without figures holds."""
    least = {name: expected[name] * WORST for name in found if name in expected}
    return {name: bound for name, bound in least.items() if found[name] < bound}


def rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {name: round(ratio, 2) for name, ratio in found.items()}


if __name__ == "__main__":
    sys.exit(main())
