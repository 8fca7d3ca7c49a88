"""`python -m serve [VERB]`, installed as `sagemaker-serve [VERB]`: the server, a training job, and tools."""

import difflib
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from serve import __version__, failed_start, log, settings
from serve.failed_start import FailedStart
from serve.settings import BadSetting, Settings

if TYPE_CHECKING:
    import argparse

VERBS = {
    "serve": "start the server (the default)",
    "train": "train an XGBoost model, or run a script that trains",
    "conf": "print the nginx.conf that the server would use",
    "settings": "print every setting with its value and its source",
    "convert": "convert a pickled or old model file into one that holds data only",
}
DETAILS = {
    "serve": "Start the server. It runs until SIGTERM or Ctrl-C. Every setting is an environment variable, such as"
    " SERVE_MODEL_DIR for the directory of the models and SAGEMAKER_BIND_TO_PORT for the port.",
    "train": "Train an XGBoost model on the data and the hyperparameters under SERVE_ML_ROOT (/opt/ml), or run the"
    " script that the hyperparameter sagemaker_program names.",
    "convert": "Convert SOURCE in a sandbox. A TARGET that ends in .ubj or .json is for XGBoost: SOURCE is a pickle, or"
    " a file from before XGBoost 3.1. A TARGET that ends in .skops is for scikit-learn: SOURCE is a file that pickle or"
    " joblib wrote.",
}
# The processes that the server and a training job start for themselves. None of them imports argparse.
PARTS = ("host", "forkserver", "runner", "training")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status: 0 done, 1 failed, 2 a wrong command line or setting."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in PARTS:
        verb, rest = words[0], words[1:]
    else:
        given = _parsed(words)
        verb, rest = given.verb, []
        if verb == "convert":  # reads no setting
            from serve.convert import command

            return command.run(given.source, given.target)
    try:
        chosen = settings.read()
    except BadSetting as error:
        print(f"serve: {error}", file=sys.stderr)
        if verb == "train":
            from serve.train import job

            job.write_failure(settings.ml_root(), str(error))
        return 2
    log.start("launcher" if verb == "serve" else verb, chosen.log_level)
    try:
        return _run_part(verb, rest, chosen) if verb in PARTS else _run(verb, chosen)
    except FailedStart as failed:
        assert chosen.run_dir is not None  # the host's
        failed_start.write(chosen.run_dir, failed)
        return failed_start.STATUS
    except BadSetting as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2


def _parsed(words: list[str]) -> "argparse.Namespace":
    """The command line. Exits with status 0 for --help and --version, with 2 for what is not a command line."""
    import argparse

    called = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        prog="python -m serve" if called == "__main__.py" else called,
        description="An inference server for many models, and its tools.",
        epilog="VERB --help describes one verb. Settings are environment variables: see the verb `settings`.",
    )
    parser.add_argument("--version", action="version", version=f"sagemaker-serve {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    below = {
        verb: verbs.add_parser(verb, help=line, description=DETAILS.get(verb, f"{line.capitalize()}."))
        for verb, line in VERBS.items()
    }
    below["convert"].add_argument("source", metavar="SOURCE", type=Path, help="the file to convert")
    below["convert"].add_argument("target", metavar="TARGET", type=Path, help="the file to write, which must not exist")
    if words and words[0] not in (*VERBS, "-h", "--help", "--version"):
        if words[0].startswith("-"):
            parser.error(f"unknown option: {words[0]}; settings are environment variables, such as SERVE_MODEL_DIR")
        close = difflib.get_close_matches(words[0], VERBS, n=1)
        parser.error(f"unknown verb: {words[0]}" + (f"; did you mean {close[0]}?" if close else "; see --help"))
    return parser.parse_args(words or ["serve"])


# Each part imports only what it needs: the web tier no framework, the launcher next to nothing.


def _run(verb: str, chosen: Settings) -> int:
    if verb == "serve":
        from serve import launcher

        try:
            return launcher.run(chosen)
        except FileNotFoundError as error:
            print(f"serve: {error}", file=sys.stderr)
            return 2
    if verb == "train":
        from serve.train import job

        return job.run(chosen)
    if verb == "conf":
        from serve import nginx
        from serve.catalog.scan import at_start

        run_dir = chosen.run_dir or Path(os.environ.get("TMPDIR", "/tmp"))
        print(nginx.rendered(replace(chosen, run_dir=run_dir), at_start(chosen)))
        return 0
    for name, source in chosen.sources.items():
        print(f"{name:<16} {getattr(chosen, name)!s:<28} {source}")
    return 0


def _run_part(part: str, rest: list[str], chosen: Settings) -> int:
    if part == "host":
        from serve.catalog import submitted
        from serve.catalog.scan import publish

        submitted.fetch(chosen)
        found = publish(chosen)  # before the host's own imports: launcher and web workers wait for it
        from serve.host import server

        return server.run(chosen, found)
    if part == "forkserver":
        from serve.host import forkserver

        channel, *modules = rest
        end = modules.index("--")
        forkserver.run(socket.socket(fileno=int(channel)), modules[:end], modules[end + 1 :], chosen)
        return 0
    if part == "runner":
        from serve.runner import main as runner

        runner.begin(list(map(int, rest[:7])), chosen, rest[7:])
        return 0
    from serve.train import booster, script

    return script.run(chosen) if script.is_asked(chosen) else booster.run(chosen)


if __name__ == "__main__":
    sys.exit(main())
