"""An endpoint: created, updated, rolled back, deleted, with its models, configurations, alarms and roles.

A run may stop at any step (crash, kill, expired credentials). The same command run again resumes from there, because
every step first checks for existing objects.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from deploy import plan, roles, scaling, schedule
from deploy.aws import (
    PAUSE,
    TRIES,
    Aws,
    Request,
    already_exists,
    denied,
    is_busy,
    is_missing,
    retried,
    role_unseen,
)
from deploy.errors import Failed
from deploy.ownership import must_be_ours, refuse_foreign, tags_of
from deploy.plan import OWNER, Desired
from deploy.progress import Progress
from deploy.spec import Spec
from deploy.status import IN_PROGRESS, Endpoint, described, existing, settled, settled_after, why


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of `up`. `waiting`: AWS has accepted the change, and it may still be in progress."""

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
    keep: timedelta | None = None,
    smoke: Step | None = None,
) -> Outcome:
    """Bring the endpoint to its spec. With `wait=False` return when AWS has accepted the change.

    After `keep` the endpoint deletes itself. Raises Failed if an object of its names has another owner, and then
    nothing was changed; if AWS rolls the update back, if the endpoint does not start, or if `smoke` fails.
    """
    undo: list[Step] = []

    def prepared() -> Desired:
        return _prepared(spec, aws, progress, undo, scheduled=keep is not None)

    def secured() -> None:
        # A concurrent run that ends may have deleted or narrowed, as unused, what this one has just prepared.
        _ensure_role(spec, aws, progress, undo)
        scaling.ensure_alarms(aws, spec, progress)
        ensure_configuration(aws, wanted, progress, undo)

    def begun() -> None:
        # At the beginning: from then on the endpoint costs, even if this process is killed.
        if keep is not None:
            schedule.ensure(aws, spec.name, keep, progress)

    wanted = prepared()
    for attempt in range(TRIES):
        before = described(aws, spec.name)
        if before is not None:
            _still_ours(aws, before, undo)
            if wait and before["EndpointStatus"] in IN_PROGRESS:
                before = settled(aws, spec.name, progress)
                # Another `up` may have deleted configurations and rights that this one needs.
                wanted = prepared()
        config = wanted.endpoint["EndpointConfigName"]
        if before is not None and not wait and _coming(before) == config:
            begun()
            return Outcome(endpoint=spec.name, config=config, changed=False, waiting=True, changes=progress.changes)
        if before is not None and is_at(before, config):
            begun()
            _ensure_tags(aws, wanted, before, progress)
            scaling.ensure_alarms(aws, spec, progress)
            return _finished(spec, aws, before, wanted, progress, smoke)
        before = _not_failed(aws, before, progress)
        if before is None and plan.alarm_requests(spec):
            undo.append(partial(scaling.sweep_alarms, aws, spec.name, [], progress))
        try:
            _start(spec, aws, wanted, before, progress)
        except ClientError as error:
            if attempt == TRIES - 1 or not (is_busy(error) or already_exists(error) or is_missing(error)):
                raise
            if not is_missing(error):
                _report_other(aws, spec.name, config, progress, error, wait=wait)
            time.sleep(PAUSE * 2**attempt)
            wanted = prepared()
            continue
        begun()
        secured()  # from here on other runs see the change in progress, and delete nothing more
        if not wait:
            return Outcome(endpoint=spec.name, config=config, changed=True, waiting=True, changes=progress.changes)
        after = settled_after(aws, spec.name, progress, before)
        _check_arrival(aws, spec.name, config, before, after)
        secured()
        return _finished(spec, aws, before, wanted, progress, smoke)
    raise AssertionError


def down(name: str, aws: Aws, progress: Progress) -> None:
    """Delete everything that was created for the endpoint. Raises Failed if it was not created here."""
    there = described(aws, name)
    if there is not None:
        must_be_ours(aws, there)
    scaling.deregister(aws, name, list(scaling.registered(aws, name)), progress)
    if delete(aws, name, progress):
        progress.changed(f"endpoint {name} deleted")
    scaling.sweep_alarms(aws, name, [], progress)
    schedule.remove(aws, name, progress)
    # Models come last: they name the roles.
    theirs = roles_of(aws, list(models(aws, name)))
    for role in sorted(theirs | set(_own_roles(name))):
        _remove_role(aws, role, name, progress)
    sweep(aws, name, set(), progress)
    if left := leftovers(name, aws):
        raise Failed(
            f"endpoint {name}: still there: {', '.join(left)}. If an `up` is running, run `down` again after it"
        )


def leftovers(name: str, aws: Aws) -> list[str]:
    """Everything of an endpoint that exists, found by listing every kind of object that `up` creates."""
    return [
        *([f"endpoint {name}"] if described(aws, name) else []),
        *(f"scalable target {each}" for each in scaling.registered(aws, name)),
        *(f"alarm {each['AlarmName']}" for each in scaling.alarms(aws, name)),
        *schedule.there(aws, name),
        *(f"role {each}" for each in _own_roles(name) if roles.is_for(aws, each, name)),
        *(f"configuration {each}" for each in configs(aws, name)),
        *(f"model {each}" for each in models(aws, name)),
    ]


def move(name: str, weights: dict[str, float], aws: Aws, progress: Progress) -> None:
    """Change the variants' weights in place: no new configuration, no new fleet. Raises Failed."""
    must_be_ours(aws, existing(aws, name))
    now = settled(aws, name, progress) or existing(aws, name)
    old = {each["VariantName"]: each.get("CurrentWeight", 0.0) for each in now["ProductionVariants"]}
    for variant in weights:
        if variant not in old:
            raise Failed(f"endpoint {name}: unknown variant {variant}; known: {', '.join(old)}")
    if not any({**old, **weights}.values()):
        raise Failed(f"endpoint {name}: no variant would have a weight over 0, so none would receive traffic")
    if all(old[variant] == weight for variant, weight in weights.items()):
        return
    wanted = [{"VariantName": variant, "DesiredWeight": weight} for variant, weight in weights.items()]
    aws.client("sagemaker").update_endpoint_weights_and_capacities(
        EndpointName=name, DesiredWeightsAndCapacities=wanted
    )
    after = settled_after(aws, name, progress, now)
    got = {each["VariantName"]: each.get("CurrentWeight") for each in after["ProductionVariants"]} if after else {}
    if after is None or any(got.get(variant) != weight for variant, weight in weights.items()):
        raise Failed(f"endpoint {name}: the weights did not change: {why(aws, after) if after else 'it was deleted'}")
    for variant, weight in weights.items():
        progress.changed(f"{variant}: {old[variant]:g} -> {weight:g}")


def delete(aws: Aws, name: str, progress: Progress) -> bool:
    """Delete the endpoint and wait until it does not exist; whether it existed."""
    there = settled(aws, name, progress)
    while there is not None:
        try:
            aws.client("sagemaker").delete_endpoint(EndpointName=name)
        except ClientError as error:
            if is_missing(error):
                break
            if not is_busy(error):
                raise
        if settled(aws, name, progress) is None:
            break
    return there is not None


def is_at(endpoint: Endpoint, config: str) -> bool:
    """Whether the endpoint is in service with this configuration."""
    return bool(endpoint["EndpointStatus"] == "InService" and endpoint["EndpointConfigName"] == config)


# Steps of `up`


def _prepared(spec: Spec, aws: Aws, progress: Progress, undo: list[Step], *, scheduled: bool) -> Desired:
    """The requests of the endpoint, whose role, models and configuration exist.

    First come the questions, then the changes; `undo` gets a step for each object that was created.
    """
    there = described(aws, spec.name)
    if there is not None:
        _still_ours(aws, there, undo)
    wanted = plan.plan(spec, aws)
    refuse_foreign(spec, aws, wanted, scheduled=scheduled)
    _ensure_role(spec, aws, progress, undo)
    ensure_configuration(aws, wanted, progress, undo)
    return wanted


def _ensure_role(spec: Spec, aws: Aws, progress: Progress, undo: list[Step]) -> None:
    """The endpoint's own role exists, with the rights of the spec and its former ones."""
    if roles.is_arn(spec.role):
        return
    role = roles.of_endpoint(spec, aws.account, aws.region)
    if roles.existing(aws, role.name) is None:
        undo.append(partial(_remove_role, aws, role.name, spec.name, progress))
    roles.ensured(aws, role, spec.name, progress, widened=True)


def _still_ours(aws: Aws, endpoint: Endpoint, undo: list[Step]) -> None:
    """Raise Failed for an endpoint of another owner, even a new one: nothing of this run is left then."""
    try:
        must_be_ours(aws, endpoint)
    except Failed:
        while undo:
            undo.pop()()
        raise


def _not_failed(aws: Aws, before: Endpoint | None, progress: Progress) -> Endpoint | None:
    """Delete a Failed endpoint, which AWS does not update; None then."""
    if before is None or before["EndpointStatus"] != "Failed":
        return before
    name = before["EndpointName"]
    progress.changed(f"endpoint {name} is Failed ({before.get('FailureReason', 'no reason given')}): deleted")
    delete(aws, name, progress)
    return None


def _report_other(aws: Aws, name: str, config: str, progress: Progress, error: ClientError, *, wait: bool) -> None:
    """Report another process's change. Without `wait` raises Failed, unless the change is to this configuration."""
    now = described(aws, name)
    same = now is not None and (_coming(now) == config or is_at(now, config))
    if not wait and not same:
        raise Failed(f"another process is changing endpoint {name}: try again later") from error
    progress.say(f"another process is changing endpoint {name}: waiting for it")


def _coming(endpoint: Endpoint) -> str | None:
    """The configuration of the change in progress."""
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
    """Update to another configuration. Scaled variants keep their count, unless their instance type changes."""
    name = request["EndpointName"]
    registered = scaling.registered(aws, name)
    stale = [variant for variant in registered if _type(now, variant) != _type(coming, variant)]
    scaling.deregister(aws, name, stale, progress)
    scales = len(registered) > len(stale)
    aws.client("sagemaker").update_endpoint(**plan.update_request(request, now, coming, scales=scales))


def _ensure_tags(aws: Aws, wanted: Desired, now: Endpoint, progress: Progress) -> None:
    tags = {tag["Key"]: tag["Value"] for tag in wanted.endpoint["Tags"]}
    if not tags.items() <= tags_of(aws, now["EndpointArn"]).items():
        aws.client("sagemaker").add_tags(ResourceArn=now["EndpointArn"], Tags=wanted.endpoint["Tags"])
        progress.changed(f"tags of {now['EndpointName']} updated")


def _finished(
    spec: Spec, aws: Aws, before: Endpoint | None, wanted: Desired, progress: Progress, smoke: Step | None
) -> Outcome:
    """The last steps, with the endpoint in service: smoke calls, scaling, and deletion of unused objects."""
    config = wanted.endpoint["EndpointConfigName"]
    if smoke is not None:
        try:
            smoke()
        except Failed as failure:
            raise Failed(f"{failure}\n{_rolled_back(aws, spec.name, before, config, progress)}") from failure
    scaling.ensure(aws, spec, progress)

    def current() -> bool:
        """Whether the endpoint is still at this configuration: otherwise another `up` is active, and sweeps itself."""
        now = described(aws, spec.name)
        return now is not None and is_at(now, config)

    if current() and not roles.is_arn(spec.role):
        _narrow_role(spec, aws, progress, current)
    if current():
        scaling.sweep_alarms(aws, spec.name, [each["AlarmName"] for each in plan.all_alarm_requests(spec)], progress)
        sweep(aws, spec.name, {config, *wanted.models}, progress, current)
    changes = progress.changes
    return Outcome(endpoint=spec.name, config=config, changed=bool(changes), changes=changes)


def _narrow_role(spec: Spec, aws: Aws, progress: Progress, current: Callable[[], bool]) -> None:
    """The endpoint's own role has the rights of the spec only; its former ones too if another `up` has begun."""
    role = roles.of_endpoint(spec, aws.account, aws.region)
    former = roles.rights(aws, role.name, spec.name)
    roles.ensured(aws, role, spec.name, progress)
    if former and former != role.policy and not current():
        roles.ensured(aws, replace(role, policy=former), spec.name, progress, widened=True)


def _rolled_back(aws: Aws, name: str, before: Endpoint | None, config: str, progress: Progress) -> str:
    """Update to the configuration before; the message about it."""
    if before is None or before["EndpointConfigName"] == config:
        return f"no earlier configuration to roll back to: `python -m deploy down {name}` deletes the endpoint"
    old = before["EndpointConfigName"]
    now = described(aws, name)
    request = {"EndpointName": name, "EndpointConfigName": old}
    _update(aws, request, _config(aws, config), _config(aws, old), progress)
    after = settled_after(aws, name, progress, now)
    if after is None or not is_at(after, old):
        return f"the rollback to {old} failed: {why(aws, after) if after else 'the endpoint was deleted'}"
    return f"rolled back to {old}"


def _check_arrival(aws: Aws, name: str, config: str, before: Endpoint | None, after: Endpoint | None) -> None:
    if after is None:
        raise Failed(f"endpoint {name} was deleted by another process")
    if is_at(after, config):
        return
    status, now = after["EndpointStatus"], after["EndpointConfigName"]
    if status == "InService" and before is not None and now == before["EndpointConfigName"]:
        raise Failed(f"rolled back to {now}, which is in service: {why(aws, after)}")
    if status == "InService":
        raise Failed(f"another process updated endpoint {name} after this one: it is at {now}")
    raise Failed(f"endpoint {name} is {status}: {why(aws, after)}")


def _config(aws: Aws, name: str) -> Request:
    """DescribeEndpointConfig's response; without variants if it does not exist."""
    try:
        found: Request = aws.client("sagemaker").describe_endpoint_config(EndpointConfigName=name)
    except ClientError as error:
        if is_missing(error):
            return {"ProductionVariants": []}
        raise
    return found


def _type(config: Request, variant: str) -> Any:
    """The variant's instance type, or None. A scalable target must be deregistered before a change of it."""
    return next(
        (each.get("InstanceType") for each in config["ProductionVariants"] if each["VariantName"] == variant), None
    )


# Ownership


def _ours(aws: Aws, endpoint: str, name: str, arn: str) -> bool:
    if not re.fullmatch(re.escape(endpoint) + "-[0-9a-f]{8}", name):
        return False
    try:
        return tags_of(aws, arn).get(OWNER) == endpoint
    except ClientError as error:
        if is_missing(error):
            return False
        raise


# Models and configurations


def ensure_configuration(aws: Aws, wanted: Desired, progress: Progress, undo: list[Step]) -> None:
    """Create missing models and the configuration. Names are hashes of the content: an existing one is equal.

    Until the configuration exists, a concurrent run may delete its models as unused: they are created again.
    """
    retried(
        partial(_create_configuration, aws, wanted, progress, undo),
        lambda error: is_missing(error) and "model data" not in str(error),
    )


def _create_configuration(aws: Aws, wanted: Desired, progress: Progress, undo: list[Step]) -> None:
    sagemaker = aws.client("sagemaker")
    for name, request in wanted.models.items():
        if _created(partial(sagemaker.create_model, **request)):
            undo.append(partial(_deleted, partial(sagemaker.delete_model, ModelName=name)))
            progress.changed(f"model {name} created")
    config = wanted.config
    if _created(partial(sagemaker.create_endpoint_config, **config)):
        delete = partial(sagemaker.delete_endpoint_config, EndpointConfigName=config["EndpointConfigName"])
        undo.append(partial(_deleted, delete))
        progress.changed(f"configuration {config['EndpointConfigName']} created")


def _created(create: Callable[[], object]) -> bool:
    try:
        retried(create, role_unseen)
    except ClientError as error:
        if already_exists(error):
            return False
        raise
    return True


def configs(aws: Aws, endpoint: str) -> Iterator[str]:
    """All configurations of the endpoint, by name and by tag."""
    pages = aws.client("sagemaker").get_paginator("list_endpoint_configs").paginate(NameContains=f"{endpoint}-")
    for page in pages:
        for each in page["EndpointConfigs"]:
            if _ours(aws, endpoint, each["EndpointConfigName"], each["EndpointConfigArn"]):
                yield each["EndpointConfigName"]


def models(aws: Aws, endpoint: str) -> Iterator[str]:
    """All models of the endpoint, by name and by tag."""
    pages = aws.client("sagemaker").get_paginator("list_models").paginate(NameContains=f"{endpoint}-")
    for page in pages:
        for each in page["Models"]:
            if _ours(aws, endpoint, each["ModelName"], each["ModelArn"]):
                yield each["ModelName"]


def models_used(aws: Aws, config: str) -> set[str]:
    """The models of a configuration; none if it does not exist."""
    return {variant["ModelName"] for variant in _config(aws, config)["ProductionVariants"]}


def sweep(
    aws: Aws, endpoint: str, keep: set[str], progress: Progress, current: Callable[[], bool] = lambda: True
) -> None:
    """Delete all configurations and models of the endpoint except those named in `keep`, while `current`."""
    sagemaker = aws.client("sagemaker")
    for config in [each for each in configs(aws, endpoint) if each not in keep]:
        if current() and _deleted(partial(sagemaker.delete_endpoint_config, EndpointConfigName=config)):
            progress.changed(f"configuration {config} deleted")
    for model in [each for each in models(aws, endpoint) if each not in keep]:
        if current() and _deleted(partial(sagemaker.delete_model, ModelName=model)):
            progress.changed(f"model {model} deleted")


def _deleted(delete: Callable[[], object]) -> bool:
    """Whether this call deleted the object; a concurrent run may have been faster."""
    try:
        delete()
    except ClientError as error:
        if is_missing(error):
            return False
        raise
    return True


# Roles


def roles_of(aws: Aws, names: list[str]) -> set[str]:
    """The names of the roles that these models run under."""
    found = set()
    for name in names:
        try:
            model: Mapping[str, Any] = aws.client("sagemaker").describe_model(ModelName=name)
        except ClientError as error:
            if not is_missing(error):
                raise
        else:
            found.add(str(model["ExecutionRoleArn"]).rpartition("/")[2])
    return found


def _own_roles(name: str) -> tuple[str, str]:
    """The roles that are created for an endpoint whose spec names none."""
    return f"{name}-endpoint", schedule.role_name(name)


def _remove_role(aws: Aws, role: str, endpoint: str, progress: Progress) -> None:
    try:
        removed = roles.remove(aws, role, endpoint)
    except ClientError as error:
        if not denied(error):
            raise
        progress.say(f"role {role} was skipped: {error.operation_name} is not allowed")
    else:
        if removed:
            progress.changed(f"{removed} deleted")
