"""An endpoint brought to what its spec says, from wherever it is.

Every step may be the last (a crash, a kill, credentials that expire): doing all again goes on from there.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from deploy import configurations, plans, policies, requests, roles, rollout, scaling
from deploy.aws import Aws, Failed, is_busy, is_missing, is_there_already
from deploy.configurations import PAUSE, TRIES
from deploy.ownership import must_be_ours, tags
from deploy.progress import Progress
from deploy.requests import Desired
from deploy.service import Request
from deploy.settling import IN_PROGRESS, Endpoint, arrived, delete, described, settled, why
from deploy.spec import Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What `up` has done. Without waiting it may still be under way."""

    endpoint: str
    config: str
    changed: bool
    waiting: bool = False
    changes: list[str] = field(default_factory=list)


Step = Callable[[], object]  # raises Failed


def up(
    spec: Spec,
    aws: Aws,
    progress: Progress,
    *,
    wait: bool = True,
    begun: Step | None = None,
    smoke: Step | None = None,
) -> Outcome:
    """Returns when the endpoint is as the spec says, or with `wait=False` when AWS has taken it on.

    `begun` is called as soon as the endpoint is there or on its way: from then on it costs. Raises Failed where AWS
    rolls it back, or it does not come up.
    """
    begun = begun or (lambda: None)
    wanted = _made(spec, aws, progress)
    for attempt in range(TRIES):
        before = described(aws, spec.name)
        if before is not None:
            must_be_ours(aws, before)
            if wait and before["EndpointStatus"] in IN_PROGRESS:
                before = settled(aws, spec.name, progress)
                wanted = _made(spec, aws, progress)  # another's `up` sweeps what it does not need, rights too
        config = wanted.endpoint["EndpointConfigName"]
        if before is not None and not wait and _coming(before) == config:
            begun()
            return Outcome(endpoint=spec.name, config=config, changed=False, waiting=True, changes=progress.changes)
        if before is not None and is_at(before, config):
            begun()
            return _kept(spec, aws, wanted, before, progress, smoke)
        if before is not None and before["EndpointStatus"] == "Failed":
            progress.changed(f"endpoint {spec.name} had failed ({before.get('FailureReason', 'no reason')}): deleted")
            delete(aws, spec.name, progress)
            before = None
        try:
            _start(spec, aws, wanted, before, progress)
        except ClientError as error:
            if attempt == TRIES - 1 or not (is_busy(error) or is_there_already(error) or is_missing(error)):
                raise
            if not is_missing(error):
                now = described(aws, spec.name)
                same = now is not None and (_coming(now) == config or is_at(now, config))
                if not wait and not same:
                    raise Failed(f"endpoint {spec.name} is being changed by somebody else: try again later") from error
                progress.say(f"somebody else is changing {spec.name} now: waiting for that")
            time.sleep(PAUSE * 2**attempt)
            wanted = _made(spec, aws, progress)
            continue
        begun()
        if not wait:
            return Outcome(endpoint=spec.name, config=config, changed=True, waiting=True, changes=progress.changes)
        after = arrived(aws, spec.name, progress, before)
        _must_have_arrived(aws, spec.name, config, before, after)
        return _arrived(spec, aws, before, wanted, progress, smoke)
    raise AssertionError


def _made(spec: Spec, aws: Aws, progress: Progress) -> Desired:
    """All that the endpoint is to be made of, which is there now."""
    wanted = plans.plan(spec, aws, progress)
    configurations.ensure(aws, wanted, progress)
    return wanted


def is_at(endpoint: Endpoint, config: str) -> bool:
    return bool(endpoint["EndpointStatus"] == "InService" and endpoint["EndpointConfigName"] == config)


def _coming(endpoint: Endpoint) -> str | None:
    """The configuration that is on its way."""
    if endpoint["EndpointStatus"] == "Creating":
        return str(endpoint["EndpointConfigName"])
    pending = endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName")
    return str(pending) if pending and endpoint["EndpointStatus"] == "Updating" else None


def _start(spec: Spec, aws: Aws, wanted: Desired, before: Endpoint | None, progress: Progress) -> None:
    scaling.ensure_alarms(aws, spec, progress)
    if before is None:
        aws.client("sagemaker").create_endpoint(**wanted.endpoint)
        progress.changed(f"endpoint {spec.name} is being created")
        return
    _update(aws, wanted.endpoint, _config(aws, before["EndpointConfigName"]), wanted.config, progress)
    progress.changed(f"endpoint {spec.name} is being updated")


def _update(aws: Aws, request: Request, now: Request, coming: Request, progress: Progress) -> None:
    """From one configuration to another; what scales keeps its count, but for variants of another instance type."""
    name = request["EndpointName"]
    registered = scaling.registered(aws, name)
    stale = [variant for variant in registered if _type(now, variant) != _type(coming, variant)]
    scaling.deregister(aws, name, stale, progress)
    scales = len(registered) > len(stale)
    aws.client("sagemaker").update_endpoint(**requests.update(request, now, coming, scales=scales))


def _kept(spec: Spec, aws: Aws, wanted: Desired, now: Endpoint, progress: Progress, smoke: Step | None) -> Outcome:
    """It has the configuration; what is beside it may still differ."""
    asked = {tag["Key"]: tag["Value"] for tag in wanted.endpoint["Tags"]}
    if not asked.items() <= tags(aws, now["EndpointArn"]).items():
        aws.client("sagemaker").add_tags(ResourceArn=now["EndpointArn"], Tags=wanted.endpoint["Tags"])
        progress.changed(f"tags of {spec.name}")
    scaling.ensure_alarms(aws, spec, progress)
    return _arrived(spec, aws, now, wanted, progress, smoke)


def _arrived(
    spec: Spec, aws: Aws, before: Endpoint | None, wanted: Desired, progress: Progress, smoke: Step | None
) -> Outcome:
    config = wanted.endpoint["EndpointConfigName"]
    if smoke is not None:
        try:
            smoke()
        except Failed as failure:
            raise Failed(f"{failure}\n{_back(aws, spec.name, before, config, progress)}") from failure
    scaling.ensure(aws, spec, progress)
    now = described(aws, spec.name)
    if now is not None and is_at(now, config):  # else somebody else is at it, and sweeps
        if not policies.is_arn(spec.role):
            roles.ensured(aws, policies.of_endpoint(spec, aws.account, aws.region), spec.name, progress)
        scaling.sweep_alarms(aws, spec.name, [each["AlarmName"] for each in rollout.alarms(spec)], progress)
        configurations.sweep(aws, spec.name, {config, *wanted.models}, progress)
    changes = progress.changes
    return Outcome(endpoint=spec.name, config=config, changed=bool(changes), changes=changes)


def _back(aws: Aws, name: str, before: Endpoint | None, config: str, progress: Progress) -> str:
    """To the configuration before; what to say of it."""
    if before is None or before["EndpointConfigName"] == config:
        return f"there is no earlier configuration to go back to: `python -m deploy down {name}` removes it"
    old = before["EndpointConfigName"]
    now = described(aws, name)
    request = {"EndpointName": name, "EndpointConfigName": old}
    _update(aws, request, _config(aws, config), _config(aws, old), progress)
    after = arrived(aws, name, progress, now)
    if after is None or not is_at(after, old):
        return f"going back to {old} failed: {why(aws, after) if after else 'the endpoint is gone'}"
    return f"went back to {old}"


def _must_have_arrived(aws: Aws, name: str, config: str, before: Endpoint | None, after: Endpoint | None) -> None:
    if after is None:
        raise Failed(f"endpoint {name} is gone: somebody has deleted it meanwhile")
    if is_at(after, config):
        return
    status, now = after["EndpointStatus"], after["EndpointConfigName"]
    if status == "InService" and before is not None and now == before["EndpointConfigName"]:
        raise Failed(f"rolled back to {now}, which still answers: {why(aws, after)}")
    if status == "InService":
        raise Failed(f"somebody else's update came after this one: {name} is now at {now}")
    raise Failed(f"endpoint {name} is {status}: {why(aws, after)}")


def _config(aws: Aws, name: str) -> Request:
    """As AWS has it; without variants where it is gone."""
    try:
        found: Request = aws.client("sagemaker").describe_endpoint_config(EndpointConfigName=name)
    except ClientError as error:
        if is_missing(error):
            return {"ProductionVariants": []}
        raise
    return found


def _type(config: Request, variant: str) -> Any:
    """The instance type of a variant, None where there is none: a scalable target does not outlive a change of it."""
    return next(
        (each.get("InstanceType") for each in config["ProductionVariants"] if each["VariantName"] == variant), None
    )
