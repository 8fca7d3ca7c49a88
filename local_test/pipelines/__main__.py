"""python -m local_test.pipelines: run a pipeline on this machine, as `deploy pipeline NAME|FILE run --local` does."""

import argparse
import signal
import sys
from collections.abc import Sequence

from deploy.cli import EXIT_CODES, add_local_arguments, add_parameter_argument, add_picture_argument, guarded
from deploy.pipelines.definitions import PIPELINES


def main(argv: Sequence[str] | None = None) -> int:
    """Run one pipeline; the exit code. SIGINT, SIGTERM and SIGHUP stop it and all its jobs."""
    given = parser().parse_args(argv)

    def run() -> int:
        from deploy.errors import Failed

        try:
            from local_test.pipelines import runner
        except ModuleNotFoundError as error:
            raise Failed(f"missing package {error.name}: `make platform` installs it; stop that with Ctrl-C") from error
        return runner.run(given)

    stopped = f"{given.name} was stopped, with all its jobs"
    return guarded(run, stopped, (signal.SIGTERM, signal.SIGHUP))


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m local_test.pipelines",
        description="Runs a pipeline on this machine. AWS_ENDPOINT_URL, if set, names the emulator to run it on.",
        epilog=EXIT_CODES,
    )
    whole.add_argument("name", metavar="NAME|FILE", help=f"{', '.join(PIPELINES)}; FILE.json or module.py")
    add_parameter_argument(whole)
    add_local_arguments(whole)
    add_picture_argument(whole)
    return whole


if __name__ == "__main__":
    sys.exit(main())
