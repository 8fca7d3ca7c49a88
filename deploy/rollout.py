"""How traffic moves to a new configuration, and the alarms that take it back."""

from deploy import ownership
from deploy.service import Request
from deploy.spec import Rollout, Spec

KINDS = ("errors", "latency")


def alarm_names(endpoint: str, variant: str) -> set[str]:
    """All that rollback alarms of a variant may be called."""
    return {f"{endpoint}-{variant}-{kind}" for kind in KINDS}


def alarms(spec: Spec) -> list[Request]:
    """PutMetricAlarm's, as AWS's examples of deployment guardrails have it: each minute, and silence is good."""
    if spec.rollout is None:
        return []
    asked = spec.rollout.alarms
    watched = {
        # ModelLatency is in microseconds.
        "errors": ("Invocation5XXErrors", "Sum", asked.errors),
        "latency": ("ModelLatency", "Average", asked.latency_ms and asked.latency_ms * 1000),
    }
    return [
        {
            "AlarmName": f"{spec.name}-{variant.name}-{kind}",
            "AlarmDescription": f"Takes an update of the endpoint {spec.name} back",
            "Namespace": "AWS/SageMaker",
            "MetricName": metric,
            "Dimensions": [
                {"Name": "EndpointName", "Value": spec.name},
                {"Name": "VariantName", "Value": variant.name},
            ],
            "Statistic": statistic,
            "Period": 60,
            "EvaluationPeriods": 1,
            "Threshold": threshold,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "TreatMissingData": "notBreaching",
            "Tags": ownership.asked(spec),
        }
        for variant in spec.variants
        for kind, (metric, statistic, threshold) in watched.items()
        if threshold is not None
    ]


def deployment(rollout: Rollout, alarms: list[Request]) -> Request:
    """DeploymentConfig of CreateEndpoint and UpdateEndpoint."""

    def percent(value: int) -> Request:
        return {"Type": "CAPACITY_PERCENT", "Value": value}

    request: Request = {}
    if rollout.rolling_percent:
        batch = {"MaximumBatchSize": percent(rollout.rolling_percent), "WaitIntervalInSeconds": rollout.bake_seconds}
        request["RollingUpdatePolicy"] = batch
    else:
        routing: Request = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": rollout.bake_seconds}
        if rollout.canary_percent:
            routing |= {"Type": "CANARY", "CanarySize": percent(rollout.canary_percent)}
        elif rollout.linear_percent:
            routing |= {"Type": "LINEAR", "LinearStepSize": percent(rollout.linear_percent)}
        request["BlueGreenUpdatePolicy"] = {"TrafficRoutingConfiguration": routing}
    if alarms:
        names = [{"AlarmName": alarm["AlarmName"]} for alarm in alarms]
        request["AutoRollbackConfiguration"] = {"Alarms": names}
    return request
