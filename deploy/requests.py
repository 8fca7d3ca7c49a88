"""From a spec to the very requests that AWS gets; names hold a hash of what they name, so equal means unchanged."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deploy import service
from deploy.spec import Rollout, Spec, Variant
from deploy.table import SpecError, unknown

OWNER = "deploy:endpoint"  # the tag by which all that belongs to an endpoint is found again
Request = dict[str, Any]

# What a spec says in keys of its own; its [aws] tables may say everything else.
OURS = {
    "CreateModelInput": {"ModelName", "PrimaryContainer", "Containers", "ExecutionRoleArn", "Tags"},
    "ContainerDefinition": {"Image", "Mode", "ModelDataUrl", "ModelDataSource", "Environment"},
    "CreateEndpointConfigInput": {"EndpointConfigName", "ProductionVariants", "AsyncInferenceConfig", "Tags"},
    "ProductionVariant": {
        "VariantName",
        "ModelName",
        "InstanceType",
        "InitialInstanceCount",
        "InitialVariantWeight",
        "ServerlessConfig",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """All of an endpoint, as requests. Models are by name, and several variants may share one."""

    models: Mapping[str, Request]
    config: Request
    endpoint: Request  # of CreateEndpoint; UpdateEndpoint's is made of it

    def update(self, before: Request, *, scales: bool) -> Request:
        """UpdateEndpoint's, from the configuration that the endpoint has.

        What was scaled keeps its count; a weight that the spec has changed, and what is captured, are the spec's.
        """
        request = {key: value for key, value in self.endpoint.items() if key != "Tags"}
        if scales:
            excluded = ["DataCaptureConfig"]
            if _weights(before) != _weights(self.config):
                excluded.append("DesiredWeight")
            request["RetainAllVariantProperties"] = True
            request["ExcludeRetainedVariantProperties"] = [{"VariantPropertyType": each} for each in excluded]
        return request

    def check(self) -> None:
        """Raise SpecError with what AWS would refuse."""
        for request in self.models.values():
            service.check("CreateModel", request)
        service.check("CreateEndpointConfig", self.config)
        service.check("CreateEndpoint", self.endpoint)


def desired(spec: Spec, role_arn: str, images: Mapping[str, str]) -> Desired:
    """`images`: for each image of the spec the URI to deploy, by digest where that is known. Raises SpecError."""
    tags = _tags(spec)
    models: dict[str, Request] = {}
    variants = []
    for variant in spec.variants:
        model = _model(spec, variant, role_arn, images[spec.image_of(variant)])
        name = _named(spec.name, model)
        models[name] = {"ModelName": name, **model, "Tags": tags}
        variants.append(_variant(spec, variant, name))
    config: Request = {"ProductionVariants": variants, **_picked(spec.aws, "CreateEndpointConfigInput")}
    # Both calls know these two: of an endpoint of models they are the model's, of inference components the config's.
    for key in ("VpcConfig", "EnableNetworkIsolation"):
        config.pop(key, None)
    if spec.asynchronous:
        config["AsyncInferenceConfig"] = _asynchronous(spec)
    _refuse_unknown(spec.aws, "aws", "CreateModelInput", "ContainerDefinition", "CreateEndpointConfigInput")
    config_name = _named(spec.name, config)
    endpoint: Request = {"EndpointName": spec.name, "EndpointConfigName": config_name, "Tags": tags}
    if spec.rollout:
        endpoint["DeploymentConfig"] = _rollout(spec.rollout, alarm_requests(spec))
    return Desired(models=models, config={"EndpointConfigName": config_name, **config, "Tags": tags}, endpoint=endpoint)


ALARMS = ("errors", "latency")


def alarm_names(endpoint: str, variants: Iterable[str]) -> set[str]:
    """All that rollback alarms of an endpoint may be called."""
    return {f"{endpoint}-{variant}-{kind}" for variant in variants for kind in ALARMS}


def alarm_requests(spec: Spec) -> list[Request]:
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
            "Tags": _tags(spec),
        }
        for variant in spec.variants
        for kind, (metric, statistic, threshold) in watched.items()
        if threshold is not None
    ]


def _model(spec: Spec, variant: Variant, role_arn: str, image: str) -> Request:
    models, uncompressed = spec.models_of(variant)
    container: Request = {"Image": image, "Environment": {**spec.env, **variant.env}}
    if models and uncompressed:
        container["ModelDataSource"] = {
            "S3DataSource": {"S3Uri": models, "S3DataType": "S3Prefix", "CompressionType": "None"}
        }
    elif models:
        container["Mode"] = "MultiModel" if spec.multi_model(variant) else "SingleModel"
        container["ModelDataUrl"] = models
    container |= _picked(spec.aws, "ContainerDefinition")
    return {"PrimaryContainer": container, "ExecutionRoleArn": role_arn, **_picked(spec.aws, "CreateModelInput")}


def _variant(spec: Spec, variant: Variant, model: str) -> Request:
    _refuse_unknown(variant.aws, f"variant {variant.name}: aws", "ProductionVariant")
    request: Request = {"VariantName": variant.name, "ModelName": model, "InitialVariantWeight": variant.weight}
    if spec.serverless:
        limits = {"MemorySizeInMB": spec.serverless.memory_mb, "MaxConcurrency": spec.serverless.concurrency}
        if spec.serverless.provisioned is not None:
            limits["ProvisionedConcurrency"] = spec.serverless.provisioned
        request["ServerlessConfig"] = limits
    else:
        request |= {"InstanceType": variant.instance, "InitialInstanceCount": variant.count}
    return request | dict(variant.aws)


def _asynchronous(spec: Spec) -> Request:
    asked = spec.asynchronous
    assert asked is not None
    output: Request = {"S3OutputPath": asked.output}
    if asked.failures:
        output["S3FailurePath"] = asked.failures
    request: Request = {"OutputConfig": output}
    if asked.concurrency is not None:
        request["ClientConfig"] = {"MaxConcurrentInvocationsPerInstance": asked.concurrency}
    return request


def _tags(spec: Spec) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in {**spec.tags, OWNER: spec.name}.items()]


def _rollout(rollout: Rollout, alarms: list[Request]) -> Request:
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


def _weights(config: Request) -> dict[str, float]:
    return {each["VariantName"]: each.get("InitialVariantWeight", 1.0) for each in config["ProductionVariants"]}


def _picked(given: Mapping[str, Any], shape: str) -> Request:
    """Those of the [aws] fields that belong to this shape and are not ours to set."""
    return {key: given[key] for key in service.members(shape) if key in given and key not in OURS[shape]}


def _refuse_unknown(given: Mapping[str, Any], where: str, *shapes: str) -> None:
    allowed = [key for shape in shapes for key in service.members(shape) if key not in OURS[shape]]
    ours = {key for shape in shapes for key in OURS[shape]}
    for key in given:
        if key in ours:
            raise SpecError(f"{where}.{key} is set by a key of the spec's own")
        if key not in allowed:
            raise SpecError(unknown(key, allowed, f"field of {where}"))


def _named(endpoint: str, request: Request) -> str:
    content = json.dumps(request, sort_keys=True, separators=(",", ":")).encode()
    return f"{endpoint}-{hashlib.sha256(content).hexdigest()[:8]}"
