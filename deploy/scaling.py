"""Scaling and rollback alarms of an endpoint, in Application Auto Scaling and CloudWatch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploy import plan
from deploy.aws import Aws
from deploy.plan import COUNT
from deploy.progress import Progress
from deploy.spec import Spec


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
    client, now = aws.client("application-autoscaling"), registered(aws, spec.name)
    wanted = [variant.name for variant in spec.variants] if spec.scaling else []
    deregister(aws, spec.name, [name for name in now if name not in wanted], progress)
    for variant in wanted:
        assert spec.scaling is not None
        target, policy = plan.scaling_requests(spec.name, variant, spec.scaling)
        there = now.get(variant)
        if not there or any(there[key] != target[key] for key in ("MinCapacity", "MaxCapacity")):
            client.register_scalable_target(**target)
            progress.changed(f"{variant} scales from {spec.scaling.min} to {spec.scaling.max} instances")
        query = {key: target[key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
        policies = client.describe_scaling_policies(PolicyNames=[policy["PolicyName"]], **query)["ScalingPolicies"]
        key = "TargetTrackingScalingPolicyConfiguration"
        if not policies or any(policies[0][key].get(name) != value for name, value in policy[key].items()):
            client.put_scaling_policy(**policy)
            progress.changed(f"{variant} targets {spec.scaling.invocations_per_instance:g} calls a minute and instance")


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
    """The rollback alarms of an endpoint, by name and by the endpoint they watch."""
    pages = aws.client("cloudwatch").get_paginator("describe_alarms").paginate(AlarmNamePrefix=f"{endpoint}-")
    for page in pages:
        for alarm in page["MetricAlarms"]:
            watched = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
            variant = watched.get("VariantName", "")
            if watched.get("EndpointName") == endpoint and alarm["AlarmName"] in plan.alarm_names(endpoint, variant):
                yield alarm


def ensure_alarms(aws: Aws, spec: Spec, progress: Progress) -> None:
    """The spec's alarms exist. An update that names them needs them first."""
    now = {alarm["AlarmName"]: alarm for alarm in alarms(aws, spec.name)}
    for request in plan.alarm_requests(spec):
        name = request["AlarmName"]
        if name not in now or now[name]["Threshold"] != request["Threshold"]:
            aws.client("cloudwatch").put_metric_alarm(**request)
            progress.changed(f"alarm {name} at {request['Threshold']:g}")


def sweep_alarms(aws: Aws, endpoint: str, keep: Sequence[str], progress: Progress) -> None:
    """Delete the endpoint's alarms except those in `keep`."""
    old = [each["AlarmName"] for each in alarms(aws, endpoint) if each["AlarmName"] not in keep]
    for start in range(0, len(old), 100):  # DeleteAlarms takes at most 100 names
        aws.client("cloudwatch").delete_alarms(AlarmNames=old[start : start + 100])
    for name in old:
        progress.changed(f"alarm {name} deleted")
