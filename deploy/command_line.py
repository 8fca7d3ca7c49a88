"""The words after `python -m deploy`."""

import argparse
import importlib
from pathlib import Path

from deploy import invoke, logs, schedule

# Verbs of modules that bring their own add_arguments and run; imported when they are used.
OTHERS = {
    "pack": ("deploy.pack", "a directory of models as a reproducible model.tar.gz"),
    "put": ("deploy.artifacts", "archives to S3, under keys that hold their hash"),
    "models": ("deploy.models", "what lies below a prefix in S3; --remove takes it away"),
    "pipeline": ("deploy.pipeline", "train, register and deploy by SageMaker Pipelines, or here"),
}


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy", description="A SageMaker endpoint from a spec file.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--region", help="else the spec's, else AWS_DEFAULT_REGION")
    common.add_argument("--json", action="store_true", help="the result as JSON on stdout, all else on stderr")

    def verb(name: str, what: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=what, description=what, parents=[common])

    at = verb("up", "make the endpoint what its spec says; repeated, it says `unchanged`")
    at.add_argument("spec", type=Path, help="endpoint.toml")
    at.add_argument(
        "--plan", action="store_true", help="print the requests as JSON and send none; needs no credentials"
    )
    at.add_argument("--no-wait", action="store_true", help="return when AWS has taken the change on")
    at.add_argument("--smoke", type=Path, metavar="FILE", help="calls that must succeed, else back to what was before")
    at.add_argument(
        "--for", dest="keep", type=schedule.duration, metavar="4h", help="delete the endpoint after 90m, 4h, 2d"
    )
    for name, what in (("down", "delete all that belongs to an endpoint"), ("status", "what runs, and why not")):
        verb(name, what).add_argument("name", help="of the endpoint")
    at = verb("traffic", "other weights of the variants, at once")
    at.add_argument("name", help="of the endpoint")
    at.add_argument("weights", nargs="+", type=_weight, metavar="VARIANT=WEIGHT")
    invoke.add_arguments(verb("invoke", "one call of the endpoint"))
    logs.add_arguments(verb("logs", "what the containers say"))
    at = verb("roles", "the roles that a spec needs, as JSON for an administrator")
    at.add_argument("spec", type=Path, help="endpoint.toml")
    for name, (module, what) in OTHERS.items():
        at = verbs.add_parser(name, help=what, description=what)
        if words[:1] == [name]:
            importlib.import_module(module).add_arguments(at)
    return parser.parse_args(words)


def _weight(text: str) -> tuple[str, float]:
    variant, equals, weight = text.partition("=")
    try:
        number = float(weight)
    except ValueError:
        number = -1
    if not variant or not equals or not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not VARIANT=WEIGHT, such as A=9")
    return variant, number
