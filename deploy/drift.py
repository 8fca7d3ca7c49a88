"""The differences between a spec and what is in AWS, found by reading alone: also what was changed by hand."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from deploy import plan, roles, scaling
from deploy.aws import Aws, Request, is_missing, members
from deploy.ownership import must_be_ours, tags_of
from deploy.plan import Desired
from deploy.spec import Spec
from deploy.status import Endpoint, described, stage

IN_SERVICE = "InService"
# What a description has besides, although no request gave it; names hold a hash of what is compared here itself.
DEFAULTS: tuple[Any, ...] = (None, False, "", [], {}, "SingleModel")
NAMES = {"ModelName", "EndpointConfigName", "Tags"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One value that is not the spec's. None: there is no such thing."""

    subject: str  # for example `variant A`
    field: str
    spec: Any
    aws: Any

    @property
    def line(self) -> str:
        return f"{self.subject}: {self.field} is {_shown(self.spec)} in the spec, {_shown(self.aws)} in AWS"


def differences(spec: Spec, aws: Aws) -> list[Difference]:
    """All differences, none if the endpoint is in service as the spec says. Raises SpecError and Failed.

    Groups of model packages in the spec are resolved before: packages.resolved.
    """
    wanted, now = plan.plan(spec, aws), described(aws, spec.name)
    subject = f"endpoint {spec.name}"
    if now is None:
        return [Difference(subject=subject, field="status", spec=IN_SERVICE, aws=None)]
    must_be_ours(aws, now)
    tags = {tag["Key"]: tag["Value"] for tag in wanted.endpoint["Tags"]}
    there = tags_of(aws, now["EndpointArn"])
    return [
        *_compared(subject, {"status": IN_SERVICE}, {"status": stage(now)}),
        *_configured(aws, wanted, now["EndpointConfigName"]),
        *_fleets(spec, now),
        *_compared(
            subject, {f"tag {key}": value for key, value in tags.items()}, {f"tag {k}": there[k] for k in there}
        ),
        *_scaling(spec, aws),
        *_alarms(spec, aws),
        *_role(spec, aws),
    ]


def _compared(subject: str, wanted: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[Difference]:
    """The fields of `wanted` that have another value."""
    for field, value in wanted.items():
        if there.get(field) != value:
            yield Difference(subject=subject, field=field, spec=value, aws=there.get(field))


def _configured(aws: Aws, wanted: Desired, config: str) -> Iterator[Difference]:
    """Configuration and models. Equal names are equal contents: neither can be changed in AWS."""
    if config == wanted.config["EndpointConfigName"]:
        return
    client, subject = aws.client("sagemaker"), f"configuration {config}"
    now = _existing(lambda: client.describe_endpoint_config(EndpointConfigName=config))
    if now is None:
        yield Difference(subject=subject, field="existence", spec=True, aws=False)
        return
    found = list(_fields(subject, "CreateEndpointConfigInput", wanted.config, now, {"ProductionVariants"}))
    theirs = {each["VariantName"]: each for each in now["ProductionVariants"]}
    ours = {each["VariantName"]: each for each in wanted.config["ProductionVariants"]}
    for name in sorted({*theirs, *ours}):
        if name not in ours or name not in theirs:
            found.append(
                Difference(subject=f"variant {name}", field="existence", spec=name in ours, aws=name in theirs)
            )
            continue
        found += _fields(f"variant {name}", "ProductionVariant", ours[name], theirs[name])
        found += _model(aws, name, wanted.models[ours[name]["ModelName"]], theirs[name]["ModelName"])
    # A field that Describe does not show still makes another name.
    yield from found or _compared(subject, {"name": wanted.config["EndpointConfigName"]}, {"name": config})


def _model(aws: Aws, variant: str, wanted: Request, name: str) -> Iterator[Difference]:
    there = _existing(lambda: aws.client("sagemaker").describe_model(ModelName=name))
    if there is None:
        yield Difference(subject=f"model {name}", field="existence", spec=True, aws=False)
        return
    subject = f"model of variant {variant}"
    yield from _fields(subject, "CreateModelInput", wanted, there, {"PrimaryContainer"})
    yield from _fields(
        subject, "ContainerDefinition", wanted["PrimaryContainer"], there.get("PrimaryContainer", {}), set()
    )


def _fields(
    subject: str, shape: str, wanted: Request, there: Mapping[str, Any], besides: set[str] | None = None
) -> Iterator[Difference]:
    """The members of a request that differ; values that AWS adds by itself are none."""
    for key in members(shape):
        value, now = wanted.get(key), there.get(key)
        if key not in NAMES | (besides or set()) and value != now and not (value in DEFAULTS and now in DEFAULTS):
            yield Difference(subject=subject, field=key, spec=value, aws=now)


def _fleets(spec: Spec, now: Endpoint) -> Iterator[Difference]:
    """Weights, and counts of instances; the count of a variant that scales may be any within its bounds."""
    there = {each["VariantName"]: each for each in now.get("ProductionVariants", ())}
    for variant in spec.variants:
        if variant.name not in there:  # told by the configuration
            continue
        fleet, subject = there[variant.name], f"variant {variant.name}"
        yield from _compared(subject, {"weight": variant.weight}, {"weight": fleet.get("CurrentWeight")})
        count = fleet.get("DesiredInstanceCount")
        if spec.serverless or count is None:
            continue
        if spec.scaling is None:
            yield from _compared(subject, {"instances": variant.count}, {"instances": count})
        elif not spec.scaling.min <= count <= spec.scaling.max:
            bounds = f"{spec.scaling.min} to {spec.scaling.max}"
            yield Difference(subject=subject, field="instances", spec=bounds, aws=count)


def _scaling(spec: Spec, aws: Aws) -> Iterator[Difference]:
    registered = scaling.registered(aws, spec.name)
    wanted = [variant.name for variant in spec.variants] if spec.scaling else []
    for name in sorted({*registered, *wanted}):
        subject = f"scaling of variant {name}"
        if name not in wanted or name not in registered:
            yield Difference(subject=subject, field="existence", spec=name in wanted, aws=name in registered)
            continue
        assert spec.scaling is not None
        (_, _, target), *others = plan.variant_scaling(spec, spec.scaling, name)
        bounds = {key: target[key] for key in ("MinCapacity", "MaxCapacity")}
        yield from _compared(subject, bounds, registered[name])
        there = scaling.policies(aws, target)
        ours = {each["PolicyName"]: each for _, operation, each in others if operation == "PutScalingPolicy"}
        for policy in sorted({*there, *ours}):
            if policy not in ours or policy not in there:
                yield Difference(
                    subject=f"policy {policy}", field="existence", spec=policy in ours, aws=policy in there
                )
                continue
            key = next(key for key in ours[policy] if key.endswith("Configuration"))
            yield from _compared(f"policy {policy}", ours[policy][key], there[policy].get(key, {}))


def _alarms(spec: Spec, aws: Aws) -> Iterator[Difference]:
    there = {each["AlarmName"]: each for each in scaling.alarms(aws, spec.name)}
    ours = {each["AlarmName"]: each for each in plan.all_alarm_requests(spec)}
    for name in sorted({*there, *ours}):
        subject = f"alarm {name}"
        if name not in ours or name not in there:
            yield Difference(subject=subject, field="existence", spec=name in ours, aws=name in there)
            continue
        # The ARN of a policy in an action is a placeholder in the request.
        yield from _compared(
            subject, {key: ours[name][key] for key in scaling.COMPARED if key in ours[name]}, there[name]
        )


def _role(spec: Spec, aws: Aws) -> Iterator[Difference]:
    """The endpoint's policy, and in a role of the endpoint's own whatever was added by hand."""
    if roles.is_arn(spec.role):
        return
    role = roles.of_endpoint(spec, aws.account, aws.region)
    subject = f"role {role.name}"
    if roles.existing(aws, role.name) is None:
        yield Difference(subject=subject, field="existence", spec=True, aws=False)
        return
    now = roles.rights(aws, role.name, spec.name) or {"Statement": []}
    theirs = {str(each.get("Sid")): each for each in now["Statement"]}
    ours = {str(each["Sid"]): each for each in role.policy["Statement"]}
    for name in sorted({*theirs, *ours}):
        yield from _compared(subject, {f"statement {name}": ours.get(name)}, {f"statement {name}": theirs.get(name)})
    if spec.role is None:
        for policy in roles.added(aws, role.name, spec.name):
            yield Difference(subject=subject, field=f"policy {policy}", spec=False, aws=True)


def _existing(describe: Callable[[], Request]) -> Request | None:
    try:
        return describe()
    except ClientError as error:
        if is_missing(error):
            return None
        raise


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
