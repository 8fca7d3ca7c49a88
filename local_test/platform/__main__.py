"""Command line of the emulator: `python -m local_test.platform`, installed as `sagemaker-here`."""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from local_test.platform.emulator import Emulator
from local_test.platform.events import Events
from local_test.platform.options import Options

DESCRIPTION = """\
SageMaker on this machine, for unmodified boto3: S3, Model, EndpointConfig, Endpoint and InvokeEndpoint.
A browser shows what runs there.
A Docker engine runs the containers. Without one, this repository's server runs in place of every image."""
COMMAND = "sagemaker-here"  # the console script
PORT = 4566
MEGABYTES = {"k": 1 / 1024, "m": 1, "g": 1024}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the emulator until SIGINT or SIGTERM, then prints a summary. Returns 1 if the port cannot be used."""
    arguments = parse(argv)
    # A pipe and not a threading.Event: its set() deadlocks if the signal arrives while wait() holds the same lock.
    stopped, stop = os.pipe()
    # Set explicitly: a process that a shell starts in the background inherits SIGINT as ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.write(stop, b"."))
    events = Events(sys.stdout, as_json=arguments.json)
    with tempfile.TemporaryDirectory(prefix="platform-") as work:
        options = Options(
            work=Path(work),
            state=arguments.state,
            port=arguments.port,
            runtime=arguments.runtime,
            memory_mb=arguments.memory,
            clock_speed=arguments.clock_speed,
            images=("sagemaker-serve", *arguments.image),
        )
        try:
            emulator = Emulator(options, events, seed=arguments.seed)
        except (OSError, SystemExit) as error:  # werkzeug calls sys.exit when the port is in use
            print(f"cannot listen on port {arguments.port} ({error}): choose another with --port", file=sys.stderr)
            return 1
        with emulator:
            print(json.dumps(emulator.environment) if arguments.json else banner(emulator), flush=True)
            if emulator.pipelines.shared:
                said = "used by another emulator: this one keeps pipelines in memory; choose another with --state"
                events.emit("state", str(arguments.state), said)
            os.read(stopped, 1)
            if not arguments.json:
                print("stopping all endpoints", flush=True)
    events.print_summary()
    return 0


def banner(emulator: Emulator) -> str:
    """The first lines of the output: the variables to export, and commands to try."""
    exports, proxy = (
        "\n".join(f"export {name}={value}" for name, value in variables.items())
        for variables in (emulator.environment, emulator.proxy)
    )
    return (
        f"SageMaker emulator at {emulator.url}. In another shell:\n\n{exports}\n\n"
        f"# For code that calls AWS at a literal address, as get_execution_role() does:\n{proxy}\n\n"
        f"{sys.executable} -m local_test.multi_model_example   # or any boto3 script, unmodified\n"
        "aws sagemaker list-endpoints\n\n"
        f"A page shows what runs here: {emulator.url}/\n"
        f"Images are run by {emulator.runs_by}. Events (Ctrl-C stops the emulator):"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits with status 2 for one that is not valid."""
    parser = argparse.ArgumentParser(
        prog=COMMAND if Path(sys.argv[0]).name == COMMAND else "python -m local_test.platform",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=PORT, help="port of the endpoint URL; 0: a free port (%(default)s)")
    parser.add_argument(
        "--runtime",
        choices=("docker", "process", "auto"),
        default="auto",
        help="what runs an image; auto: docker if an engine answers, else process (%(default)s)",
    )
    parser.add_argument("--memory", type=megabytes, default="2g", help="memory limit of each container (%(default)s)")
    parser.add_argument(
        "--clock-speed",
        type=speed,
        default=1.0,
        help="60: a minute of alarms, scaling policies and updates' waits lasts a second (%(default)g)",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="NAME",
        help="a name of this repository's image, without registry and tag, beside sagemaker-serve; may be repeated",
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=state_directory(),
        metavar="DIRECTORY",
        help="where pipelines and their executions are kept between runs (%(default)s)",
    )
    parser.add_argument("--seed", type=int, help="seed of the random choice between variants, for repeatable runs")
    parser.add_argument("--json", action="store_true", help="print events as JSON Lines")
    return parser.parse_args(argv)


def state_directory() -> Path:
    """The directory of this user: specifications.freedesktop.org/basedir-spec"""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / COMMAND


def megabytes(text: str) -> int:
    """A memory size in MB, written as for docker run: `2g`, `512m`; a bare number is MB."""
    number, unit = (text[:-1], text[-1].lower()) if text and text[-1].isalpha() else (text, "m")
    if unit not in MEGABYTES or not number.replace(".", "", 1).isdigit():
        raise argparse.ArgumentTypeError(f"invalid size {text!r}: use a form such as 2g or 512m")
    return int(float(number) * MEGABYTES[unit])


def speed(text: str) -> float:
    """How much faster the platform's clock runs, 1 or more."""
    try:
        given = float(text)
    except ValueError:
        given = 0.0
    if not 1 <= given <= 3600:
        raise argparse.ArgumentTypeError(f"invalid speed {text!r}: use a number from 1 (real time) to 3600")
    return given


if __name__ == "__main__":
    sys.exit(main())
