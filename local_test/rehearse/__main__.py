"""Command line of the rehearsal: `python -m local_test.rehearse IMAGE_OR_URL`, installed as `sagemaker-rehearse`."""

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from local_test.rehearse.engine import EngineError
from local_test.rehearse.rehearsal import ALL, CannotRun, rehearse
from local_test.rehearse.report import Report
from local_test.rehearse.under_test import RehearsalOptions
from local_test.rehearse.verdict import Verdict, breached

DESCRIPTION = """\
Checks a container, of this repository or any other, against everything that SageMaker expects of it.
Exit status: 0 no check failed, 1 a check failed, 2 nothing could be checked."""
COMMAND = "sagemaker-rehearse"  # the console script
DEFAULTS = RehearsalOptions()
NAMES = [each.name for each in ALL]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a rehearsal and prints its verdicts. Returns the exit status."""
    with _signals_raise():
        return _run(_parser().parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        for each in ALL:
            print(f"{each.name:<30}{each.wants}")
        return 0
    try:
        options = _options(arguments)
    except ValueError as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return 2
    report, verdicts, began = Report(sys.stderr if arguments.json else sys.stdout), list[Verdict](), time.monotonic()
    try:
        # closing: containers are removed before this function does anything else, also after an interrupt.
        with contextlib.closing(rehearse(arguments.subject, options, arguments.only or (), report.progress)) as results:
            for verdict in results:
                verdicts.append(verdict)
                if not arguments.json:
                    report.row(verdict)
    except (CannotRun, EngineError) as reason:
        report.progress("")
        print(f"rehearse: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        report.progress("")
        return 130
    if arguments.json:
        report.progress("")
        print(json.dumps({"subject": arguments.subject, "checks": [dataclasses.asdict(each) for each in verdicts]}))
    else:
        report.end(verdicts, time.monotonic() - began)
    return int(breached(verdicts))


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise, so that the rehearsal removes its containers before the process exits.

    The handlers are set explicitly: a process that a shell starts in the background inherits SIGINT as ignored.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: lambda *_: sys.exit(143)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _options(arguments: argparse.Namespace) -> RehearsalOptions:
    """The options of the command line. Raises ValueError with the next step."""
    if not arguments.subject:
        raise ValueError("name an image, or http://HOST:PORT; --help lists the options")
    unknown = [name for name in arguments.only or () if name not in NAMES]
    if unknown:
        raise ValueError(f"unknown check: {', '.join(unknown)}; --list prints all checks")
    try:
        payload = Path(arguments.payload).read_bytes() if arguments.payload else None
    except OSError as error:
        raise ValueError(f"--payload: {error}") from None
    model = Path(arguments.model) if arguments.model else None
    if model and "://" not in arguments.subject and not model.is_dir():
        raise ValueError(f"--model {model}: no such directory")
    guessed = "text/csv" if str(arguments.payload).endswith(".csv") else "application/json"
    return RehearsalOptions(
        env=dict(each.partition("=")[::2] for each in arguments.env or ()),
        payload=payload,
        content_type=arguments.content_type or guessed,
        target=arguments.target,
        model=model,
        multi_model=arguments.multi_model,
        memory_mb=arguments.memory_mb,
        scarce_mb=arguments.scarce_mb,
        startup_limit=arguments.startup_limit,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND if Path(sys.argv[0]).name == COMMAND else "python -m local_test.rehearse",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "subject", nargs="?", metavar="IMAGE_OR_URL", help="an image, which Docker runs, or http://HOST:PORT"
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="mounted as /opt/ml/model, and loaded by the multi-model checks; with a URL: the path on the server",
    )
    parser.add_argument("--payload", metavar="FILE", help="body of a request that must be answered with 200")
    parser.add_argument(
        "--content-type", metavar="TYPE", help="of the payload (text/csv for *.csv, else application/json)"
    )
    parser.add_argument(
        "--env", action="append", metavar="NAME=VALUE", help="variable of the container; may be repeated"
    )
    parser.add_argument("--target", default="", metavar="NAME", help="TargetModel, for a container with several models")
    parser.add_argument(
        "--multi-model",
        action="store_true",
        help="check the multi-model API (default for an image with the label)",
    )
    parser.add_argument(
        "--memory-mb", type=int, default=DEFAULTS.memory_mb, metavar="MB", help="memory of the container (%(default)s)"
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
    parser.add_argument("--only", action="append", metavar="CHECK", help="run only this check; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")
    parser.add_argument("--list", action="store_true", help="print all checks and what each requires")
    return parser


if __name__ == "__main__":
    sys.exit(main())
