"""`python -m local_test.rehearse IMAGE_OR_URL`: what SageMaker would find in a container, without it.

Exits 0 when nothing is breached, 1 on a breach, 2 when there was nothing to rehearse.
"""

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
import time
from pathlib import Path

from local_test.rehearse.engine import EngineError
from local_test.rehearse.rehearsal import ALL, CannotRun, rehearse
from local_test.rehearse.report import Report
from local_test.rehearse.under_test import RehearsalOptions
from local_test.rehearse.verdict import Verdict, breached

DEFAULTS = RehearsalOptions()
NAMES = [each.name for each in ALL]


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.list:
        for each in ALL:
            print(f"{each.name:<30}{each.wants}")
        return 0
    try:
        options = _options(given)
    except ValueError as wrong:
        print(f"rehearse: {wrong}", file=sys.stderr)
        return 2
    table, verdicts, begun = Report(sys.stderr if given.json else sys.stdout), list[Verdict](), time.monotonic()
    try:
        # closing: what runs is removed before anything else happens, also when this is interrupted.
        with contextlib.closing(rehearse(given.subject, options, given.only or (), table.progress)) as coming:
            for verdict in coming:
                verdicts.append(verdict)
                if not given.json:
                    table.row(verdict)
    except (CannotRun, EngineError) as reason:
        table.progress("")
        print(f"rehearse: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        table.progress("")
        return 130
    if given.json:
        table.progress("")
        print(json.dumps({"subject": given.subject, "checks": [dataclasses.asdict(each) for each in verdicts]}))
    else:
        table.end(verdicts, time.monotonic() - begun)
    return int(breached(verdicts))


def _options(given: argparse.Namespace) -> RehearsalOptions:
    """ValueError with the next step where something is not as it must be."""
    if not given.subject:
        raise ValueError("name an image, or http://HOST:PORT; --help tells the rest")
    unknown = [name for name in given.only or () if name not in NAMES]
    if unknown:
        raise ValueError(f"no such check: {', '.join(unknown)}; --list shows them")
    try:
        payload = Path(given.payload).read_bytes() if given.payload else None
    except OSError as error:
        raise ValueError(f"--payload: {error}") from None
    model = Path(given.model) if given.model else None
    if model and "://" not in given.subject and not model.is_dir():
        raise ValueError(f"--model {model}: no such directory")
    env = dict(each.partition("=")[::2] for each in given.env or ())
    return RehearsalOptions(
        env=env,
        payload=payload,
        content_type=given.content_type or ("text/csv" if str(given.payload).endswith(".csv") else "application/json"),
        target=given.target,
        model=model,
        multi_model=given.multi_model,
        memory_mb=given.memory_mb,
        scarce_mb=given.scarce_mb,
        startup_limit=given.startup_limit,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local_test.rehearse", description=__doc__)
    parser.add_argument(
        "subject", nargs="?", metavar="IMAGE_OR_URL", help="an image (Docker runs it), or http://HOST:PORT"
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="mounted as /opt/ml/model, and loaded by the multi-model part; with a URL: as the server sees it",
    )
    parser.add_argument("--payload", metavar="FILE", help="body of a request that must be answered 200")
    parser.add_argument("--content-type", metavar="TYPE", help="of the payload (application/json; text/csv for *.csv)")
    parser.add_argument("--env", action="append", metavar="NAME=VALUE", help="of the container; may be repeated")
    parser.add_argument("--target", default="", metavar="NAME", help="TargetModel, for a container with several models")
    parser.add_argument(
        "--multi-model",
        action="store_true",
        help="rehearse the multi-model API (default: with an image that has the label)",
    )
    parser.add_argument(
        "--memory-mb", type=int, default=DEFAULTS.memory_mb, metavar="MB", help="the container's memory (%(default)s)"
    )
    parser.add_argument(
        "--scarce-mb",
        type=int,
        default=DEFAULTS.scarce_mb,
        metavar="MB",
        help="memory in which loads must end in 507 (%(default)s)",
    )
    parser.add_argument(
        "--startup-limit",
        type=float,
        default=DEFAULTS.startup_limit,
        metavar="S",
        help="seconds until /ping must be 200 (%(default)g)",
    )
    parser.add_argument("--only", action="append", metavar="CHECK", help="this check alone; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--list", action="store_true", help="the checks, and what each wants")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores in background jobs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # containers are removed on the way out
    sys.exit(main())
