"""python -m deploy: from models and a spec to an endpoint, and back to nothing."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from deploy import endpoint, invoke, logs, plans, removal, roles, scaling, schedule, smoke, status
from deploy.aws import Aws, Failed, explained
from deploy.images import UNKNOWN_ACCOUNT
from deploy.progress import Progress
from deploy.spec import Spec, load
from deploy.table import SpecError

# Verbs of modules that bring their own add_arguments and run; imported when they are used.
OTHERS = {
    "pack": ("deploy.pack", "a directory of models as a reproducible model.tar.gz"),
    "put": ("deploy.artifacts", "archives to S3, under keys that hold their hash"),
    "models": ("deploy.models", "what lies below a prefix in S3; --remove takes it away"),
    "pipeline": ("deploy.pipeline", "train, register and deploy by SageMaker Pipelines, or here"),
}
DONE, FAILED, WRONG = 0, 1, 2
Make = Callable[[str | None], Aws]  # of a region


def main(arguments: list[str] | None = None, make: Make = Aws) -> int:
    """The exit code: 0 done or unchanged, 1 failed or rolled back, 2 a spec or a command that cannot be meant."""
    words = sys.argv[1:] if arguments is None else arguments
    given = parse(words)
    try:
        if given.verb in OTHERS:
            return int(importlib.import_module(OTHERS[given.verb][0]).run(given))
        return VERBS[given.verb](given, make)
    except SpecError as error:
        return _refused(f"{error}", WRONG)
    except Failed as error:
        return _refused(f"{error}", FAILED)
    except (ClientError, BotoCoreError) as error:
        return _refused(explained(error), FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return FAILED
    except KeyboardInterrupt:
        return _refused("stopped; what AWS has begun goes on: the same command takes it up again", FAILED)


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


def _up(given: argparse.Namespace, make: Make) -> int:
    spec = load(given.spec)
    if given.plan:
        with _naming(given.spec):
            return _plan(spec, given.region)
    progress = Progress(sys.stderr if given.json else sys.stdout)
    aws = make(given.region or spec.region)
    checks = smoke.load(given.smoke) if given.smoke else []
    check = (lambda: smoke.run(aws, spec, checks, progress)) if checks else None
    with _naming(given.spec):
        outcome = endpoint.up(spec, aws, progress, wait=not given.no_wait, smoke=check)
    if given.keep:
        schedule.ensure(aws, spec.name, given.keep, progress)
    if given.json:
        said = {"endpoint": spec.name, "config": outcome.config, "changed": outcome.changed, "changes": outcome.changes}
        print(json.dumps({**said, "waiting": outcome.waiting}))
        return DONE
    if outcome.waiting:
        print(f"not waiting: python -m deploy status {spec.name}")
    elif not outcome.changed:
        print("unchanged")
    else:
        target = " --target-model MODEL.tar.gz" if spec.multi_model(spec.variants[0]) else ""
        print(f"in service. Try: python -m deploy invoke {spec.name}{target} FILE")
        if not given.keep:
            print(f"bills until:     python -m deploy down {spec.name}")
    return DONE


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What AWS would refuse is wrong in a file too."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _plan(spec: Spec, region: str | None) -> int:
    wanted = plans.offline(spec, region or spec.region or os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    requests = [
        *({"CreateModel": each} for each in wanted.models.values()),
        {"CreateEndpointConfig": wanted.config},
        {"CreateEndpoint": wanted.endpoint},
        *({operation: request} for _, operation, request in scaling.beside(spec)),
    ]
    print(json.dumps(requests, indent=2))
    if UNKNOWN_ACCOUNT in json.dumps(requests):
        print(
            f"Account {UNKNOWN_ACCOUNT} and tags stand for what only AWS can say; names change with them.",
            file=sys.stderr,
        )
    return DONE


def _down(given: argparse.Namespace, make: Make) -> int:
    progress = Progress(sys.stderr if given.json else sys.stdout)
    removal.down(given.name, make(given.region), progress)
    if given.json:
        print(json.dumps({"endpoint": given.name, "changes": progress.changes, "left": []}))
    else:
        print(f"nothing of {given.name} is left")
    return DONE


def _status(given: argparse.Namespace, make: Make) -> int:
    said = status.status(make(given.region), given.name)
    print(json.dumps(said) if given.json else status.text(said))
    return DONE


def _traffic(given: argparse.Namespace, make: Make) -> int:
    progress = Progress(sys.stderr if given.json else sys.stdout)
    endpoint.traffic(given.name, dict(given.weights), make(given.region), progress)
    if given.json:
        print(json.dumps({"endpoint": given.name, "weights": dict(given.weights), "changed": bool(progress.changes)}))
    elif not progress.changes:
        print("unchanged")
    return DONE


def _invoke(given: argparse.Namespace, make: Make) -> int:
    return invoke.run(make(given.region), given)


def _logs(given: argparse.Namespace, make: Make) -> int:
    return logs.show(make(given.region), given.name, since=given.since, pattern=given.filter, follow=given.follow)


def _roles(given: argparse.Namespace, make: Make) -> int:
    spec = load(given.spec)
    aws = make(given.region or spec.region)
    print(json.dumps([each.said for each in roles.of_all(spec, aws.account, aws.region)], indent=2))
    return DONE


VERBS: dict[str, Callable[[argparse.Namespace, Make], int]] = {
    "up": _up,
    "down": _down,
    "status": _status,
    "traffic": _traffic,
    "invoke": _invoke,
    "logs": _logs,
    "roles": _roles,
}


def _weight(text: str) -> tuple[str, float]:
    variant, equals, weight = text.partition("=")
    try:
        number = float(weight)
    except ValueError:
        number = -1
    if not variant or not equals or not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not VARIANT=WEIGHT, such as A=9")
    return variant, number


def _refused(why: str, code: int) -> int:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}{why}{plain}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
