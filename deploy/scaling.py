"""Scaling and rollback alarms of an endpoint, in Application Auto Scaling and CloudWatch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy import plan
from deploy.aws import Aws
from deploy.plan import COUNT
from deploy.progress import Progress
from deploy.spec import Scaling, Spec

# The fields of an alarm that decide when it is raised.
COMPARED = (
    *("Namespace", "MetricName", "Statistic", "Period", "EvaluationPeriods", "Threshold", "ComparisonOperator"),
    "TreatMissingData",
)


def registered(aws: Aws, endpoint: str) -> dict[str, Mapping[str, Any]]:
    """The scalable targets of an endpoint, by variant."""
    prefix = f"endpoint/{endpoint}/variant/"
    pages = aws.client("application-autoscaling").get_paginator("describe_scalable_targets")
    found = [each for page in pages.paginate(ServiceNamespace="sagemaker") for each in page["ScalableTargets"]]
    return {
        each["ResourceId"].removeprefix(prefix): each
        for each in found
        if each["ResourceId"].startswith(prefix) and each["ScalableDimension"] == COUNT
    }


def ensure(aws: Aws, spec: Spec, progress: Progress) -> None:
    """Each variant scales as in the spec; variants that should not scale are deregistered."""
    now = registered(aws, spec.name)
    wanted = [variant.name for variant in spec.variants] if spec.scaling else []
    deregister(aws, spec.name, [name for name in now if name not in wanted], progress)
    for variant in wanted:
        assert spec.scaling is not None
        _ensure_variant(aws, spec, spec.scaling, variant, now.get(variant), progress)


def _ensure_variant(
    aws: Aws, spec: Spec, scaling: Scaling, variant: str, now: Mapping[str, Any] | None, progress: Progress
) -> None:
    client = aws.client("application-autoscaling")
    (_, _, target), *others = plan.variant_scaling(spec, scaling, variant)
    if now is None or any(now[key] != target[key] for key in ("MinCapacity", "MaxCapacity")):
        client.register_scalable_target(**target)
        progress.changed(f"{variant} scales from {scaling.min} to {scaling.max} instances")
    there = policies(aws, target)
    wanted = [request for _, operation, request in others if operation == "PutScalingPolicy"]
    arns = {name: each["PolicyARN"] for name, each in there.items()}
    for policy in wanted:
        name = policy["PolicyName"]
        if name not in there or _differs(policy, there[name]):
            arns[name] = client.put_scaling_policy(**policy)["PolicyARN"]
            progress.changed(_said(variant, scaling, policy))
    start = plan.start_name(spec.name, variant)
    if start in there and start not in [each["PolicyName"] for each in wanted]:
        client.delete_scaling_policy(PolicyName=start, **_of(target))
        progress.changed(f"{variant} keeps an instance")
    for alarm in [request for _, operation, request in others if operation == "PutMetricAlarm"]:
        _ensure_start_alarm(aws, {**alarm, "AlarmActions": [arns[start]]}, progress)


def policies(aws: Aws, target: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The policies of a scalable target, by name."""
    pages = aws.client("application-autoscaling").get_paginator("describe_scaling_policies").paginate(**_of(target))
    return {each["PolicyName"]: each for page in pages for each in page["ScalingPolicies"]}


def _of(target: Mapping[str, Any]) -> dict[str, Any]:
    return {key: target[key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}


def _differs(policy: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    key = next(key for key in policy if key.endswith("Configuration"))
    return any(there.get(key, {}).get(name) != value for name, value in policy[key].items())


def _said(variant: str, scaling: Scaling, policy: Mapping[str, Any]) -> str:
    if policy["PolicyType"] == "StepScaling":
        return f"{variant} starts an instance for the first request in its queue"
    if scaling.backlog_per_instance is not None:
        return f"{variant} targets {scaling.backlog_per_instance:g} waiting requests an instance"
    return f"{variant} targets {scaling.invocations_per_instance:g} calls a minute and instance"


def _ensure_start_alarm(aws: Aws, alarm: Mapping[str, Any], progress: Progress) -> None:
    client, name = aws.client("cloudwatch"), alarm["AlarmName"]
    there = client.describe_alarms(AlarmNames=[name])["MetricAlarms"]
    if not there or any(there[0].get(key) != value for key, value in alarm.items() if key not in ("Tags", "Threshold")):
        client.put_metric_alarm(**alarm)
        progress.changed(f"alarm {name} at a request without an instance")


def deregister(aws: Aws, endpoint: str, variants: Sequence[str], progress: Progress) -> None:
    """Stop the variants' scaling; AWS deletes their policies too."""
    client = aws.client("application-autoscaling")
    for variant in variants:
        try:
            client.deregister_scalable_target(
                ServiceNamespace="sagemaker",
                ResourceId=f"endpoint/{endpoint}/variant/{variant}",
                ScalableDimension=COUNT,
            )
        except client.exceptions.ObjectNotFoundException:
            continue
        progress.changed(f"{variant} no longer scales")


def alarms(aws: Aws, endpoint: str) -> Iterator[Mapping[str, Any]]:
    """The alarms of an endpoint, by name and by the endpoint they watch."""
    pages = aws.client("cloudwatch").get_paginator("describe_alarms").paginate(AlarmNamePrefix=f"{endpoint}-")
    for page in pages:
        for alarm in page["MetricAlarms"]:
            watched = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
            rolls_back = alarm["AlarmName"] in plan.alarm_names(endpoint, watched.get("VariantName", ""))
            starts = alarm["MetricName"] == plan.WAITING and alarm["AlarmName"].endswith(plan.STARTS)
            if watched.get("EndpointName") == endpoint and (rolls_back or starts):
                yield alarm


def ensure_alarms(aws: Aws, spec: Spec, progress: Progress) -> None:
    """The spec's rollback alarms exist. An update that names them needs them first."""
    now = {alarm["AlarmName"]: alarm for alarm in alarms(aws, spec.name)}
    for request in plan.alarm_requests(spec):
        name = request["AlarmName"]
        if name not in now or any(now[name].get(key) != request[key] for key in COMPARED):
            aws.client("cloudwatch").put_metric_alarm(**request)
            progress.changed(f"alarm {name} at {request['Threshold']:g}")


def sweep_alarms(aws: Aws, endpoint: str, keep: Sequence[str], progress: Progress) -> None:
    """Delete the endpoint's alarms except those in `keep`."""
    old = [each["AlarmName"] for each in alarms(aws, endpoint) if each["AlarmName"] not in keep]
    for start in range(0, len(old), 100):  # DeleteAlarms takes at most 100 names
        aws.client("cloudwatch").delete_alarms(AlarmNames=old[start : start + 100])
    for name in old:
        progress.changed(f"alarm {name} deleted")
