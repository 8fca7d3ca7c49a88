"""What each verb does, and the one place where all that can go wrong becomes words and an exit code."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from deploy import (
    command_line,
    endpoint,
    invoke,
    logs,
    plans,
    policies,
    removal,
    scaling,
    schedule,
    smoke,
    status,
    traffic,
)
from deploy.aws import SIGN_IN, Aws, Failed, explained
from deploy.images import UNKNOWN_ACCOUNT
from deploy.progress import Progress
from deploy.spec import Spec
from deploy.spec_file import load
from deploy.table import SpecError

DONE, FAILED, WRONG = 0, 1, 2
Make = Callable[[str | None], Aws]  # of a region


def run(words: list[str], make: Make = Aws) -> int:
    """The exit code."""
    given = command_line.parse(words)
    try:
        if given.verb in command_line.OTHERS:
            return int(importlib.import_module(command_line.OTHERS[given.verb][0]).run(given))
        return VERBS[given.verb](given, make)
    except SpecError as error:
        return refused(f"{error}", WRONG)
    except Failed as error:
        return refused(f"{error}", FAILED)
    except (ClientError, BotoCoreError) as error:
        return refused(explained(error), FAILED)
    except RuntimeError as error:  # botocore has no class of its own for this one
        if "credentials are still expired" not in str(error):
            raise
        return refused(f"{error}\n  {SIGN_IN}", FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return FAILED


def refused(why: str, code: int) -> int:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}{why}{plain}", file=sys.stderr)
    return code


def _up(given: argparse.Namespace, make: Make) -> int:
    spec = load(given.spec)
    if given.plan:
        with _naming(given.spec):
            return _plan(spec, given.region)
    progress = Progress(sys.stderr if given.json else sys.stdout)
    aws = make(given.region or spec.region)
    checks = smoke.load(given.smoke) if given.smoke else []
    check = (lambda: smoke.run(aws, spec, checks, progress)) if checks else None
    # At once, not at the end: whoever closes the lid meanwhile is to pay for four hours all the same.
    begun = (lambda: schedule.ensure(aws, spec.name, given.keep, progress)) if given.keep else None
    with _naming(given.spec):
        outcome = endpoint.up(spec, aws, progress, wait=not given.no_wait, begun=begun, smoke=check)
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
    traffic.move(given.name, dict(given.weights), make(given.region), progress)
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
    with _naming(given.spec):
        plans.offline(spec, aws.region)
    print(json.dumps([each.said for each in policies.of_all(spec, aws.account, aws.region)], indent=2))
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
