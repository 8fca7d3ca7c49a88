"""python -m local_test.platform: SageMaker on this machine, until Ctrl-C."""

import argparse
import json
import signal
import sys
import tempfile
import threading
from pathlib import Path

from local_test.platform.emulator import Emulator
from local_test.platform.events import Events
from local_test.platform.options import Options

USE = """\
A SageMaker platform on this machine: S3, Model, EndpointConfig, Endpoint and InvokeEndpoint, by unmodified boto3.
Containers are run by Docker where an engine answers; otherwise this repository's server plays every image."""
PORT = 4566
SIZES = {"k": 1 / 1024, "m": 1, "g": 1024}


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    events = Events(sys.stdout, as_json=given.json)
    with tempfile.TemporaryDirectory(prefix="platform-") as work:
        options = Options(work=Path(work), port=given.port, runtime=given.runtime, memory_mb=given.memory)
        try:
            platform = Emulator(options, events, seed=given.seed)
        except (OSError, SystemExit) as why:  # werkzeug's way to say that the port is taken is sys.exit
            print(f"cannot listen on port {given.port} ({why}): choose another with --port", file=sys.stderr)
            return 1
        with platform:
            print(json.dumps(platform.environment) if given.json else banner(platform), flush=True)
            stop.wait()
            if not given.json:
                print("stopping all endpoints", flush=True)
    events.say_summary()
    return 0


def banner(platform: Emulator) -> str:
    exports = "\n".join(f"export {name}={value}" for name, value in platform.environment.items())
    return (
        f"SageMaker, played at {platform.url}. In another shell:\n\n{exports}\n\n"
        f"{sys.executable} -m local_test.multi_model_example   # or any boto3 script, unmodified\n"
        "aws sagemaker list-endpoints\n\n"
        f"Images are run by {platform.runs_by}. What the platform does, as it does it (Ctrl-C ends it):"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m local_test.platform", description=USE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=PORT, help="of the endpoint URL; 0: one that is free (%(default)s)")
    parser.add_argument("--runtime", choices=("docker", "process", "auto"), default="auto")
    parser.add_argument("--memory", type=megabytes, default="2g", help="that each container may use (%(default)s)")
    parser.add_argument("--seed", type=int, help="of the choice between variants, to have the same again")
    parser.add_argument("--json", action="store_true", help="events as JSON, a line each")
    return parser.parse_args(arguments)


def megabytes(text: str) -> int:
    """`2g`, `512m`: as docker run has it; a bare number is MB."""
    number, unit = (text[:-1], text[-1].lower()) if text and text[-1].isalpha() else (text, "m")
    if unit not in SIZES or not number.replace(".", "", 1).isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2g or 512m")
    return int(float(number) * SIZES[unit])


if __name__ == "__main__":
    sys.exit(main())
