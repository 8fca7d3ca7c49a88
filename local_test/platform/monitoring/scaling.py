"""Application Auto Scaling of variants: which instance count follows from an alarm, and the activities that set it.

docs.aws.amazon.com/autoscaling/application/userguide/application-auto-scaling-target-tracking.html, and
.../application-auto-scaling-step-scaling-policies.html
"""

import math
import re
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from moto.backends import get_backend
from moto.cloudwatch.models import cloudwatch_backends

from local_test.platform.calls import ValidationError
from local_test.platform.clock import Clock
from local_test.platform.events import Events
from local_test.platform.fleet.endpoint import Endpoint, Size
from local_test.platform.monitoring.alarm_keeper import Watched
from local_test.platform.monitoring.alarms import ALARM

if TYPE_CHECKING:  # moto imports its EC2 with it: 1.4 s, half of the emulator's start
    from moto.applicationautoscaling.models import ApplicationAutoscalingBackend, FakeScalableTarget
    from moto.applicationautoscaling.models import FakeApplicationAutoscalingPolicy as Policy

RESOURCE = re.compile(r"^endpoint/([^/]+)/variant/([^/]+)$")
COUNT = "sagemaker:variant:DesiredInstanceCount"
COOLDOWN = 300  # seconds, AWS's default for variants
LOW = 0.9  # AlarmLow's threshold, as a share of the target
OUT_PERIODS, IN_MINUTES = 3, 15  # periods above the target, minutes below it
ACTIVITIES = 1000  # kept of an account in a region
# PredefinedMetricType -> metric, period, statistic
PREDEFINED = {
    "SageMakerVariantInvocationsPerInstance": ("InvocationsPerInstance", 60, "Sum"),
    "SageMakerVariantConcurrentRequestsPerModelHighResolution": ("ConcurrentRequestsPerModel", 10, "Maximum"),
}
Config = Mapping[str, Any]  # of a policy


# Decisions


def tracked(current: int, value: float, target: float) -> int:
    """The instance count with which each instance has its target, rounded up. Without an instance, one is assumed."""
    return math.ceil(max(current, 1) * value / target - 1e-9)


def stepped(current: int, difference: float, config: Config) -> int:
    """The instance count of a step policy; `difference` is the metric less the alarm's threshold."""
    for step in config.get("StepAdjustments") or ():
        lower = step.get("MetricIntervalLowerBound", -math.inf)
        upper = step.get("MetricIntervalUpperBound", math.inf)
        # Bounds are inclusive towards the threshold: below it the upper bound, otherwise the lower one.
        if lower <= difference < upper or (difference < 0 and lower < difference <= upper):
            return _adjusted(current, int(step["ScalingAdjustment"]), config)
    return current


def _adjusted(current: int, adjustment: int, config: Config) -> int:
    kind = config.get("AdjustmentType", "ChangeInCapacity")
    if kind == "ExactCapacity":
        return adjustment
    if kind == "ChangeInCapacity":
        return current + adjustment
    change = current * adjustment / 100
    # Rounded towards zero, but at least one instance.
    whole = int(change) if abs(change) >= 1 else int(math.copysign(1, change)) if change else 0
    least = int(config.get("MinAdjustmentMagnitude") or 0)
    return current + (int(math.copysign(max(abs(whole), least), whole)) if whole else 0)


def tracking_alarms(policy: "Policy", config: Config) -> list[dict[str, Any]]:
    """The alarms of a target tracking policy, as arguments of moto's put_metric_alarm. Raises ValidationError."""
    metric = _tracked_metric(policy, config)
    target, seconds = float(config["TargetValue"]), metric["period"]
    described = {
        **metric,
        "description": f"DO NOT EDIT OR DELETE. For TargetTrackingScaling policy {policy.policy_arn}.",
        "alarm_actions": [policy.policy_arn],
    }
    prefix = f"TargetTracking-{policy.resource_id}"
    made = [
        {
            "name": f"{prefix}-AlarmHigh-{uuid.uuid4()}",
            "comparison_operator": "GreaterThanThreshold",
            "evaluation_periods": OUT_PERIODS,
            "threshold": target,
        }
    ]
    if not config.get("DisableScaleIn"):
        made.append(
            {
                "name": f"{prefix}-AlarmLow-{uuid.uuid4()}",
                "comparison_operator": "LessThanThreshold",
                "evaluation_periods": IN_MINUTES * 60 // seconds,
                "threshold": target * LOW,
            }
        )
    return [{**described, **each} for each in made]


def _tracked_metric(policy: "Policy", config: Config) -> dict[str, Any]:
    endpoint, variant = variant_of(policy.resource_id)
    predefined = (config.get("PredefinedMetricSpecification") or {}).get("PredefinedMetricType")
    own = config.get("CustomizedMetricSpecification") or {}
    if bool(predefined) == bool(own):
        raise ValidationError("Give either PredefinedMetricSpecification or CustomizedMetricSpecification.")
    if own.get("Metrics"):
        raise ValidationError(
            "CustomizedMetricSpecification.Metrics (metric math) is not supported by this emulator: use one metric "
            "with MetricName, Namespace, Dimensions and Statistic."
        )
    if own:
        return {
            "namespace": own["Namespace"],
            "metric_name": own["MetricName"],
            "dimensions": own.get("Dimensions") or [],
            "statistic": own["Statistic"],
            "unit": own.get("Unit"),
            "period": 60,
        }
    if predefined not in PREDEFINED:
        raise ValidationError(
            f"PredefinedMetricType {predefined} is not supported by this emulator: use one of {', '.join(PREDEFINED)}."
        )
    name, period, statistic = PREDEFINED[predefined]
    named = {"EndpointName": endpoint, "VariantName": variant}
    return {
        "namespace": "AWS/SageMaker",
        "metric_name": name,
        "dimensions": [{"Name": key, "Value": value} for key, value in named.items()],
        "statistic": statistic,
        "period": period,
    }


def variant_of(resource: str) -> tuple[str, str]:
    """Endpoint and variant of a ResourceId. Raises ValidationError."""
    found = RESOURCE.match(resource)
    if not found:
        raise ValidationError(f"ResourceId {resource} is not supported: use endpoint/NAME/variant/NAME.")
    return found[1], found[2]


# Actions


def _backend(account: str, region: str) -> "ApplicationAutoscalingBackend":
    return get_backend("applicationautoscaling")[account][region]


class Endpoints(Protocol):
    """The part of the emulator that the scaler uses."""

    changing: threading.Lock

    def endpoint(self, key: tuple[str, str, str]) -> Endpoint | None: ...


@dataclass(slots=True)
class _Scaled:
    """What happened to one variant."""

    activity: dict[str, Any] | None = None  # in progress
    desired: int = 0  # of that activity
    outward: bool = True
    cooldown: float = 0.0  # seconds after that activity
    out_until: float = 0.0  # until then no policy scales out again
    in_until: float = 0.0


@dataclass(slots=True)
class _Place:
    """An account in a region."""

    activities: list[dict[str, Any]] = field(default_factory=list)  # oldest first
    scaled: dict[str, _Scaled] = field(default_factory=dict)  # by resource


class Scaler:
    """Scales the registered variants of all accounts and regions. The monitor's thread alone calls it to act."""

    def __init__(self, clock: Clock, events: Events, endpoints: Endpoints) -> None:
        self._clock = clock
        self._events = events
        self._endpoints = endpoints
        self._places: dict[tuple[str, str], _Place] = {}

    def registered(self, account: str, region: str) -> None:
        """The account has a scalable target in this region."""
        self._places.setdefault((account, region), _Place())

    def activities(self, account: str, region: str) -> list[dict[str, Any]]:
        """ScalingActivities, newest first."""
        place = self._places.get((account, region))
        return list(reversed(place.activities)) if place else []

    def deregister(self, account: str, region: str, resource: str) -> None:
        """Removes a target with its policies, scheduled actions and alarms, as AWS does."""
        backend = _backend(account, region)
        backend.targets.get(COUNT, {}).pop(resource, None)
        for key, policy in list(backend.policies.items()):
            if policy.resource_id == resource and policy.scalable_dimension == COUNT:
                policy.delete_alarms(account, region)
                backend.policies.pop(key, None)
        backend.scheduled_actions = [each for each in backend.scheduled_actions if each.resource_id != resource]
        place = self._places.get((account, region))
        if place:
            place.scaled.pop(resource, None)

    def triggered(self, account: str, region: str, watched: Watched, arn: str) -> None:
        """An alarm is in a state with a scaling policy as its action. Raises ValidationError for an unknown policy."""
        backend, place = _backend(account, region), self._places.get((account, region))
        policy = next((each for each in backend.policies.values() if each.policy_arn == arn), None)
        target = backend.targets.get(COUNT, {}).get(policy.resource_id) if policy else None
        if policy is None or place is None or target is None:
            raise ValidationError(f"No scaling policy found for {arn}.")
        endpoint = self._in_service(account, region, target)
        value = watched.latest
        if endpoint is None or value is None:
            return  # being updated: the alarm triggers the policy again in its next period
        current = self._count(endpoint, target)
        desired, cooldown = self._wanted(policy, watched, current, value)
        desired = min(max(desired, int(target.min_capacity or 0)), int(target.max_capacity or desired))
        if desired == current or _suspended(target, outward=desired > current):
            return
        scaled, now = place.scaled.setdefault(target.resource_id, _Scaled()), self._clock.now()
        if now < (scaled.out_until if desired > current else scaled.in_until):
            return
        if desired < current and not self._all_low(account, region, policy):
            return
        cause = f"monitor alarm {watched.alarm.name} in state ALARM triggered policy {policy.policy_name}"
        self._set(account, region, target, desired, current, cause, cooldown)

    def settle(self) -> None:
        """Ends activities whose endpoint has settled, keeps counts in bounds, and forgets deleted endpoints."""
        for (account, region), place in list(self._places.items()):
            targets = _backend(account, region).targets.get(COUNT, {})
            for resource, target in list(targets.items()):
                name, variant = variant_of(resource)
                endpoint = self._endpoints.endpoint((account, region, name))
                if endpoint is None or endpoint.deleted or (not endpoint.busy and variant not in endpoint.sizes):
                    self.deregister(account, region, resource)
                    self._events.emit("scaling", name, f"{variant} no longer scales: it is deleted")
                elif not endpoint.busy:
                    self._end(place.scaled.get(resource), endpoint, target)
                    self._bound(account, region, target, endpoint)

    def _bound(self, account: str, region: str, target: "FakeScalableTarget", endpoint: Endpoint) -> None:
        if endpoint.status != "InService":
            return
        current = self._count(endpoint, target)
        least, most = int(target.min_capacity or 0), int(target.max_capacity or current)
        if current < least and not _suspended(target, outward=True):
            self._set(account, region, target, least, current, f"minimum capacity was set to {least}", 0)
        elif current > most and not _suspended(target, outward=False):
            self._set(account, region, target, most, current, f"maximum capacity was set to {most}", 0)

    def _wanted(self, policy: "Policy", watched: Watched, current: int, value: float) -> tuple[int, float]:
        """The count that a policy asks for, and the cooldown after setting it."""
        steps: Config | None = policy.step_scaling_policy_configuration
        if steps is not None:
            desired = stepped(current, value - float(watched.alarm.threshold), steps)
            return desired, float(steps.get("Cooldown", COOLDOWN))
        config: Config = policy.target_tracking_scaling_policy_configuration or {}
        desired = tracked(current, value, float(config["TargetValue"]))
        if watched.alarm.comparison_operator == "LessThanThreshold":
            return min(desired, current), float(config.get("ScaleInCooldown", COOLDOWN))
        return max(desired, current), float(config.get("ScaleOutCooldown", COOLDOWN))

    def _all_low(self, account: str, region: str, policy: "Policy") -> bool:
        """Whether every target tracking policy of the variant asks to scale in; a single one scales out."""
        alarms = cloudwatch_backends[account][region].alarms
        return policy.policy_type != "TargetTrackingScaling" or all(
            alarm.name in alarms and alarms[alarm.name].state_value == ALARM
            for each in _backend(account, region).policies.values()
            if each.resource_id == policy.resource_id and each.policy_type == "TargetTrackingScaling"
            for alarm in each.alarms
            if alarm.comparison_operator == "LessThanThreshold"
        )

    def _set(
        self,
        account: str,
        region: str,
        target: "FakeScalableTarget",
        desired: int,
        current: int,
        cause: str,
        cooldown: float,
    ) -> None:
        name, variant = variant_of(target.resource_id)
        with self._endpoints.changing:
            endpoint = self._in_service(account, region, target)
            if endpoint is None:
                return
            endpoint.resize({variant: Size(None, desired)})
        place = self._places[account, region]
        activity: dict[str, Any] = {
            "ActivityId": str(uuid.uuid4()),
            "ServiceNamespace": target.service_namespace,
            "ResourceId": target.resource_id,
            "ScalableDimension": target.scalable_dimension,
            "Description": f"Setting desired instance count to {desired}.",
            "Cause": cause,
            "StartTime": datetime.now(UTC).timestamp(),
            "StatusCode": "InProgress",
            "StatusMessage": (
                f"Successfully set desired instance count to {desired}. "
                "Waiting for change to be fulfilled by sagemaker."
            ),
        }
        place.activities.append(activity)
        del place.activities[:-ACTIVITIES]
        scaled = place.scaled.setdefault(target.resource_id, _Scaled())
        scaled.activity, scaled.desired, scaled.outward, scaled.cooldown = (
            activity,
            desired,
            desired > current,
            cooldown,
        )
        self._events.emit("scaling", name, f"{variant}: {current} -> {desired} instances: {cause}")

    def _end(self, scaled: _Scaled | None, endpoint: Endpoint, target: "FakeScalableTarget") -> None:
        if scaled is None or scaled.activity is None:
            return
        activity, scaled.activity = scaled.activity, None
        activity["EndTime"] = datetime.now(UTC).timestamp()
        if self._count(endpoint, target) == scaled.desired:
            activity["StatusCode"] = "Successful"
            activity["StatusMessage"] = (
                f"Successfully set desired instance count to {scaled.desired}. "
                "Change successfully fulfilled by sagemaker."
            )
        else:
            activity["StatusCode"] = "Failed"
            reason = endpoint.description().get("FailureReason", "the endpoint was updated meanwhile")
            activity["StatusMessage"] = f"Failed to set desired instance count to {scaled.desired}. Reason: {reason}"
        until = self._clock.now() + self._clock.real(scaled.cooldown)
        if scaled.outward:
            scaled.out_until, scaled.in_until = until, 0.0  # a scale-out ends the cooldown of a scale-in
        else:
            scaled.in_until = until

    def _in_service(self, account: str, region: str, target: "FakeScalableTarget") -> Endpoint | None:
        name, variant = variant_of(target.resource_id)
        endpoint = self._endpoints.endpoint((account, region, name))
        usable = endpoint is not None and endpoint.status == "InService" and variant in endpoint.sizes
        return endpoint if usable else None

    def _count(self, endpoint: Endpoint, target: "FakeScalableTarget") -> int:
        return endpoint.sizes[variant_of(target.resource_id)[1]].count or 0


def _suspended(target: "FakeScalableTarget", *, outward: bool) -> bool:
    state: Mapping[str, Any] = target.suspended_state or {}  # type: ignore[assignment]  # moto's type is wrong
    return bool(state.get("DynamicScalingOutSuspended" if outward else "DynamicScalingInSuspended"))
