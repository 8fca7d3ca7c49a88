"""The command line of deploy: parses the arguments, runs a verb, and maps errors to exit codes.

At module level only light modules are imported. boto3 takes most of a second to import, and a Ctrl-C during that time
must already be handled.
"""

import argparse
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import Failed, SpecError, unknown
from deploy.pipelines.definitions import PIPELINES
from deploy.progress import Progress

if TYPE_CHECKING:
    from deploy.aws import Aws
    from deploy.invoke import Check
    from deploy.spec import Spec

DONE, FAILED, INVALID, DRIFT = 0, 1, 2, 3
EXIT_CODES = "exit codes: 0 done or unchanged, 1 failed or rolled back, 2 invalid spec or command, 3 drift (diff)"
Connect = Callable[[str | None], "Aws"]  # region -> clients

PIPELINE_ACTIONS = {
    "upsert": "create or update it in AWS: roles, function, script, model group, definition",
    "start": "start an execution; equal definition and parameters are the same execution, unless --again",
    "follow": "print each change of the last execution, or of --execution, until it ends",
    "steps": "print the state of each step",
    "roles": "print the two roles that upsert creates, and the rights that its user needs, as JSON",
    "show": "print the steps as a tree; --picture writes a Mermaid diagram; --execution adds the states",
    "run": "upsert, start and follow; --local: on this machine",
    "on-approval": "deploy the endpoint of a spec whenever a package of its group is approved; --remove ends that",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. The entry point of the console script."""
    return run(sys.argv[1:] if argv is None else argv)


def run(argv: Sequence[str], connect: Connect | None = None) -> int:
    """Run one command with these clients of AWS; the exit code. Raises SystemExit for an invalid command line."""

    def verb() -> int:
        given = parser().parse_args(argv)
        if given.verb == "pipeline" and given.name != "new" and given.action not in PIPELINE_ACTIONS:
            raise SpecError(unknown(given.action, list(PIPELINE_ACTIONS), "action"))
        return VERBS[given.verb](given, connect or _connect)

    return guarded(verb, "interrupted: changes that AWS has accepted continue; run the same command again to resume")


def guarded(action: Callable[[], int], interrupted: str, signals: Sequence[signal.Signals] = ()) -> int:
    """The action's exit code, or that of its error, whose message goes to stderr.

    SIGINT and `signals` interrupt the action, whatever the parent process has set for them: a shell starts its
    background jobs with SIGINT ignored.
    """
    try:
        with _interruptible(signal.SIGINT, *signals):
            return _explained(action)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return FAILED


@contextmanager
def _interruptible(*signals: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: a handler that was not set from Python
                signal.signal(number, handler)


def _explained(action: Callable[[], int]) -> int:
    try:
        code = action()
        sys.stdout.flush()  # a closed pipe is an error here, not at Python's exit
        return code
    except SpecError as error:
        return _refused(str(error), INVALID)
    except Failed as error:
        return _refused(str(error), FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout at exit
        return FAILED
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in ("boto3", "botocore"):
            raise
        return _refused("boto3 is not installed: pip install 'sagemaker-serve[deploy]'", INVALID)
    except Exception as error:
        from deploy import aws

        explained = aws.explained_any(error)
        if explained is None:
            raise
        return _refused(explained, FAILED)


def _refused(why: str, code: int) -> int:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}{why}{plain}", file=sys.stderr)
    return code


def _connect(region: str | None) -> "Aws":
    from deploy.aws import Aws

    return Aws(region)


# The parser


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    whole = argparse.ArgumentParser(
        prog="python -m deploy",
        description="Creates, updates and deletes a SageMaker endpoint from one spec file.",
        epilog=EXIT_CODES,
    )
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--region", help="default: the spec's, then AWS_DEFAULT_REGION")
    common.add_argument("--json", action="store_true", help="print the result as JSON on stdout, the rest on stderr")

    def verb(name: str, does: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=does, description=does, parents=parents, epilog=EXIT_CODES)

    at = verb("up", "create or update the endpoint of a spec; an endpoint that is up to date is `unchanged`", common)
    at.add_argument("spec", type=Path, help="endpoint.toml")
    at.add_argument("--plan", action="store_true", help="print as JSON what a new endpoint needs, create nothing")
    at.add_argument("--no-wait", action="store_true", help="return as soon as AWS has accepted the change")
    at.add_argument("--smoke", type=Path, metavar="FILE", help="calls that must succeed, else roll back")
    at.add_argument("--for", dest="keep", type=_duration, metavar="4h", help="delete the endpoint after 90m, 4h, 2d")
    verb("down", "delete everything that was created for an endpoint", common).add_argument("name", help="the endpoint")
    verb("status", "print the state of an endpoint", common).add_argument("name", help="the endpoint")
    verb(
        "diff", "compare a spec with what is in AWS, and change nothing; exit code 3 if they differ", common
    ).add_argument("spec", type=Path, help="endpoint.toml")
    does = "update the endpoint of a spec to the image and models that another endpoint serves, tested by smoke calls"
    at = verb("promote", does, common)
    at.add_argument("staging", type=Path, help="endpoint.toml of the endpoint that serves and tests them")
    at.add_argument("production", type=Path, help="endpoint.toml of the endpoint that gets them")
    at.add_argument("--smoke", type=Path, metavar="FILE", help="calls for both; default: the smoke file of each spec")
    at = verb("traffic", "change the weights of the variants, without a new configuration", common)
    at.add_argument("name", help="the endpoint")
    at.add_argument("weights", nargs="+", type=_weight, metavar="VARIANT=WEIGHT")
    _add_invoke_arguments(verb("invoke", "call the endpoint once", common))
    at = verb("logs", "print the containers' log from CloudWatch", common)
    at.add_argument("name", help="the endpoint")
    at.add_argument("--since", type=float, default=60, metavar="MINUTES", help="(%(default)s)")
    at.add_argument("--filter", default="", help="CloudWatch's filter pattern, for example ERROR")
    at.add_argument("--follow", "-f", action="store_true", help="print new lines until Ctrl-C")
    verb("roles", "print the roles that a spec needs, as JSON for an administrator", common).add_argument(
        "spec", type=Path, help="endpoint.toml"
    )
    at = verb("pack", "pack a directory of models into a reproducible archive")
    at.add_argument("directory", metavar="DIR", type=Path)
    at.add_argument("name", metavar="NAME", nargs="?", help="the model's name; default: the directory's")
    at.add_argument("--out", metavar="DIR", type=Path, default=Path(), help="where NAME.tar.gz goes; default: here")
    at = verb("put", "upload models to S3, under keys that contain their hash")
    at.add_argument("files", metavar="FILE", nargs="+", type=Path, help="archives, or directories to pack first")
    at.add_argument("to", metavar="S3URI", help="s3://bucket/prefix/")
    at.add_argument("--uncompressed", action="store_true", help="upload a directory file by file: for a bundle")
    at.add_argument("--region", help="of the bucket and the endpoint; default: boto3's")
    at = verb("models", "list the models below a prefix in S3 or in the model registry, or remove some")
    at.add_argument("at", metavar="S3URI", nargs="?", help="s3://bucket/prefix/")
    at.add_argument(
        "--packages", metavar="GROUP", nargs="?", const="", help="list the model packages of a group, or all"
    )
    at.add_argument("--remove", metavar="NAME", nargs="+", default=[], help="NAME.tar.gz, or NAME/ of a bundle")
    at.add_argument("--region", help="of the bucket; default: boto3's")
    at.add_argument("--json", action="store_true", help="a list of objects")
    at = verb("approve", "approve a model package, so that a spec with its group deploys it", common)
    at.add_argument("arn", metavar="ARN", help="of the model package: `models --packages` lists them")
    at.add_argument("--reject", action="store_true", help="reject it instead")
    at.add_argument("--note", metavar="TEXT", help="the reason, kept with the model package")
    _add_pipeline_arguments(verb("pipeline", "train, register and deploy by SageMaker Pipelines"))
    return whole


def _add_invoke_arguments(at: argparse.ArgumentParser) -> None:
    at.add_argument("name", help="the endpoint")
    at.add_argument("file", help="the body; - is stdin; for an asynchronous endpoint also s3://BUCKET/KEY")
    at.add_argument("--target-model", metavar="MODEL", help="multi-model endpoints: the model's key below the prefix")
    at.add_argument("--variant", help="the variant that answers, regardless of the weights")
    at.add_argument("--type", help="Content-Type; default: from the file's suffix")
    at.add_argument("--accept", help="the format of the response")
    at.add_argument(
        "--attributes", help="X-Amzn-SageMaker-Custom-Attributes: `model_type=NAME` selects a model of a bundle"
    )
    at.add_argument("--stream", action="store_true", help="print the response as it arrives")


def _add_pipeline_arguments(at: argparse.ArgumentParser) -> None:
    at.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = "\n".join(f"  {action:<11} {does}" for action, does in PIPELINE_ACTIONS.items())
    at.usage = "%(prog)s NAME|FILE ACTION [options]\n       %(prog)s new DIRECTORY"
    at.epilog = f"actions:\n{actions}\n\n{EXIT_CODES}"
    at.add_argument(
        "name",
        metavar="NAME|FILE",
        help=f"{', '.join(PIPELINES)}; FILE.json, a definition; or module.py with `definition`, or `pipeline` of the "
        "SageMaker SDK; `new DIRECTORY` writes a pipeline of one's own to start from",
    )
    at.add_argument("action", metavar="ACTION", help="see below")
    at.add_argument("spec", nargs="?", type=Path, metavar="SPEC", help="on-approval: endpoint.toml")
    at.add_argument("--plan", action="store_true", help="on-approval: print the requests as JSON, create nothing")
    at.add_argument("--remove", action="store_true", help="on-approval: delete the rule, the function and its role")
    add_parameter_argument(at)
    at.add_argument("--bucket", help="upsert, run, roles: the bucket of all its data, artifacts and models")
    at.add_argument("--role", help="upsert: ARN of a role for the jobs and the endpoint; default: create one")
    at.add_argument("--function-role", help="upsert: ARN of a role for the function; default: create one")
    at.add_argument("--again", action="store_true", help="start: a new execution although nothing has changed")
    at.add_argument("--execution", help="follow, steps, show: an execution's ARN, or `last`")
    add_picture_argument(at)
    at.add_argument("--region", help="default: AWS_DEFAULT_REGION")
    at.add_argument("--local", action="store_true", help="run: on this machine, without an AWS account")
    add_local_arguments(at)


def add_parameter_argument(at: argparse.ArgumentParser) -> None:
    at.add_argument("--param", action="append", default=[], type=_parameter, metavar="NAME=VALUE")


def add_local_arguments(at: argparse.ArgumentParser) -> None:
    at.add_argument("--runtime", choices=("auto", "docker", "process"), help="run --local: where jobs run (auto)")
    at.add_argument("--image", help="run --local: the image in Docker (sagemaker-serve, of `make image`)")
    at.add_argument("--data", type=Path, help="run --local: CSV, the label first; default: Abalone")


def add_picture_argument(at: argparse.ArgumentParser) -> None:
    at.add_argument(
        "--picture", type=Path, metavar="FILE", help="write a Mermaid diagram, coloured by state; FILE.md: fenced"
    )


def _weight(text: str) -> tuple[str, float]:
    variant, equals, weight = text.partition("=")
    try:
        number = float(weight)
    except ValueError:
        number = -1
    if not variant or not equals or not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not VARIANT=WEIGHT, for example A=9")
    return variant, number


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([1-9]\d*)([mhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90m, 4h or 2d")
    return timedelta(**{{"m": "minutes", "h": "hours", "d": "days"}[found[2]]: int(found[1])})


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


# The verbs


def _up(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import endpoint, invoke, packages, spec

    wanted = spec.load(given.spec)
    if given.plan:
        with _naming(given.spec):
            return _plan(wanted, given, connect)
    progress = _progress(given)
    aws = connect(given.region or wanted.region)
    checks = _smoke_calls(wanted, given.smoke, given.spec)
    wanted = packages.resolved(wanted, aws)
    smoke = (lambda: invoke.run_checks(aws, wanted, checks, progress)) if checks else None
    with _naming(given.spec):
        outcome = endpoint.up(wanted, aws, progress, wait=not given.no_wait, keep=given.keep, smoke=smoke)
    if given.json:
        fields = ("endpoint", "config", "changed", "changes", "waiting")
        print(json.dumps({field: getattr(outcome, field) for field in fields}))
    elif outcome.waiting:
        print(f"not waiting: python -m deploy status {wanted.name}")
    elif not outcome.changed:
        print("unchanged")
    else:
        target = " --target-model MODEL.tar.gz" if wanted.multi_model(wanted.variants[0]) else ""
        print(f"in service. Try: python -m deploy invoke {wanted.name}{target} FILE")
        if not given.keep:
            print(f"billed until:    python -m deploy down {wanted.name}")
    return DONE


def _smoke_calls(wanted: "Spec", given: Path | None, spec: Path) -> "list[Check]":
    """The calls of --smoke, else of the spec's own file, which is named relative to the spec."""
    from deploy import invoke

    path = given or (spec.parent / wanted.smoke if wanted.smoke else None)
    return invoke.load_checks(path) if path else []


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error that AWS's service model finds names the spec file too."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def _plan(spec: "Spec", given: argparse.Namespace, connect: Connect) -> int:
    from deploy import packages, plan, preview
    from deploy.aws import NO_CREDENTIALS, NO_NETWORK

    region, known, why = given.region or spec.region, True, ""
    try:
        aws = connect(region)
        account, region = aws.account, aws.region
        spec = packages.resolved(spec, aws)
        wanted = plan.plan(spec, aws)
    except (*NO_CREDENTIALS, *NO_NETWORK, Failed) as error:
        if isinstance(error, Failed) and "missing region" not in str(error):
            raise
        account, region = plan.UNKNOWN_ACCOUNT, region or os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        spec = packages.unresolved(spec, region)
        wanted, known, why = plan.offline(spec, region), plan.is_known_offline(spec), str(error).partition("\n")[0]
    requests = [{operation: each} for operation, each in preview.creations(spec, wanted, account, region, given.keep)]
    text = json.dumps(requests, indent=2)
    print(text if known else preview.without_hashes(spec, wanted, text))
    if not known:
        print(
            f"AWS was not asked ({why}): account {account} and tags of images are placeholders, and so are the hashes "
            f"in names, {preview.HASH}. With credentials the plan has the names of the objects that `up` makes.",
            file=sys.stderr,
        )
    return DONE


def _down(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import endpoint

    progress = _progress(given)
    endpoint.down(given.name, connect(given.region), progress)
    if given.json:
        print(json.dumps({"endpoint": given.name, "changes": progress.changes, "left": []}))
    else:
        print(f"nothing of {given.name} is left")
    return DONE


def _status(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import status

    report = status.report(connect(given.region), given.name)
    print(json.dumps(report) if given.json else status.text(report))
    return DONE


def _diff(given: argparse.Namespace, connect: Connect) -> int:
    from dataclasses import asdict

    from deploy import drift, packages, spec

    wanted = spec.load(given.spec)
    aws = connect(given.region or wanted.region)
    with _naming(given.spec):
        found = drift.differences(packages.resolved(wanted, aws), aws)
    if given.json:
        print(json.dumps({"endpoint": wanted.name, "drift": [asdict(each) for each in found]}))
    else:
        print("\n".join(each.line for each in found) or "no drift")
    return DRIFT if found else DONE


def _promote(given: argparse.Namespace, connect: Connect) -> int:
    from dataclasses import asdict

    from deploy import packages, promote, spec

    staging, production = spec.load(given.staging), spec.load(given.production)
    before = _smoke_calls(staging, given.smoke, given.staging)
    after = _smoke_calls(production, given.smoke, given.production) or before
    if not before:
        raise SpecError(
            f"{given.staging}: smoke is missing: the file of calls that test {staging.name}, or --smoke FILE"
        )
    regions = [given.region or each.region for each in (staging, production)]
    aws, progress = connect(regions[0]), _progress(given)
    if (regions[1] or aws.region) != aws.region:
        raise SpecError(f"{given.production}: region {regions[1]}: images and models are promoted within {aws.region}")
    staging = packages.resolved(staging, aws)
    with _naming(given.production):
        done = promote.promote(staging, production, aws, progress, before=before, after=after)
    if given.json:
        outcome = {field: getattr(done.outcome, field) for field in ("endpoint", "config", "changed", "changes")}
        artifacts = {name: asdict(each) for name, each in done.artifacts.items()}
        print(json.dumps({**outcome, "artifacts": artifacts, "versions": done.versions}))
        return DONE
    print("promoted" if done.outcome.changed else "unchanged")
    print(f"keep it in {given.production}:", *promote.pinned(done.artifacts), sep="\n  ")
    return DONE


def _traffic(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import endpoint

    progress, weights = _progress(given), dict(given.weights)
    endpoint.move(given.name, weights, connect(given.region), progress)
    if given.json:
        print(json.dumps({"endpoint": given.name, "weights": weights, "changed": bool(progress.changes)}))
    elif not progress.changes:
        print("unchanged")
    return DONE


def _invoke(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import invoke

    return invoke.run(connect(given.region), given)


def _logs(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import status

    return status.show_log(
        connect(given.region), given.name, since=given.since, pattern=given.filter, follow=given.follow
    )


def _roles(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import packages, plan, roles, spec

    wanted = spec.load(given.spec)
    aws = connect(given.region or wanted.region)
    wanted = packages.resolved(wanted, aws)
    with _naming(given.spec):
        plan.offline(wanted, aws.region)
    print(json.dumps([each.document for each in roles.of_all(wanted, aws.account, aws.region)], indent=2))
    return DONE


def _pack(given: argparse.Namespace, _: Connect) -> int:
    from deploy.models import archives

    return archives.run(given)


def _put(given: argparse.Namespace, _: Connect) -> int:
    from deploy.models import store

    return store.put(given)


def _models(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import packages
    from deploy.models import store

    if (given.at is None) == (given.packages is None):
        raise SpecError("models: give s3://bucket/prefix/, or --packages [GROUP]")
    if given.packages is None:
        return store.models(given)
    if given.remove:
        raise SpecError("--remove: only models in S3 can be removed")
    found = packages.report(connect(given.region), given.packages or None)
    print(json.dumps(found) if given.json else packages.text(found))
    return DONE


def _approve(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import packages

    status = packages.REJECTED if given.reject else packages.APPROVED
    changed = packages.decide(connect(given.region), given.arn, status, given.note, _progress(given))
    if given.json:
        print(json.dumps({"arn": given.arn, "status": status, "changed": changed}))
    elif not changed:
        print("unchanged")
    return DONE


def _pipeline(given: argparse.Namespace, connect: Connect) -> int:
    from deploy.pipelines import command

    if given.action == "on-approval":
        return _on_approval(given, connect)
    return command.run(given, connect)


def _on_approval(given: argparse.Namespace, connect: Connect) -> int:
    from deploy import spec
    from deploy.pipelines import approval

    if given.spec is None:
        raise SpecError(f"the spec is missing: python -m deploy pipeline {given.name} on-approval SPEC")
    wanted = spec.load(given.spec)
    aws, progress = connect(given.region or wanted.region), Progress()
    with _naming(given.spec):
        checks = _smoke_calls(wanted, None, given.spec)
        if given.plan:
            requests = approval.requests(wanted, checks, aws)
            print(json.dumps([{operation: each} for operation, each in requests], indent=2))
            return DONE
        if given.remove:
            approval.remove(wanted.name, aws, progress)
        else:
            approval.ensure(wanted, checks, aws, progress)
    if not progress.changes:
        print("unchanged")
    return DONE


def _progress(given: argparse.Namespace) -> Progress:
    return Progress(sys.stderr if given.json else sys.stdout)


VERBS: dict[str, Callable[[argparse.Namespace, Connect], int]] = {
    "up": _up,
    "down": _down,
    "status": _status,
    "diff": _diff,
    "promote": _promote,
    "traffic": _traffic,
    "invoke": _invoke,
    "logs": _logs,
    "roles": _roles,
    "pack": _pack,
    "put": _put,
    "models": _models,
    "approve": _approve,
    "pipeline": _pipeline,
}
