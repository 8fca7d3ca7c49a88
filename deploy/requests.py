"""From a spec to the very requests that AWS gets; names hold a hash of what they name, so equal means unchanged."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy import ownership, rollout, service
from deploy.service import Request
from deploy.spec import Spec, Variant
from deploy.table import SpecError, unknown

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

    def check(self) -> None:
        """Raise SpecError with what AWS would refuse."""
        for request in self.models.values():
            service.check("CreateModel", request)
        service.check("CreateEndpointConfig", self.config)
        service.check("CreateEndpoint", self.endpoint)


def desired(spec: Spec, role_arn: str, images: Mapping[str, str]) -> Desired:
    """`images`: for each image of the spec the URI to deploy, by digest where that is known. Raises SpecError."""
    tags = ownership.asked(spec)
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
        endpoint["DeploymentConfig"] = rollout.deployment(spec.rollout, rollout.alarms(spec))
    return Desired(models=models, config={"EndpointConfigName": config_name, **config, "Tags": tags}, endpoint=endpoint)


def update(endpoint: Request, now: Request, coming: Request, *, scales: bool) -> Request:
    """UpdateEndpoint's, of CreateEndpoint's and the configurations that the endpoint has and is to have.

    What was scaled keeps its count; a weight that differs between the two, and what is captured, are the coming one's.
    """
    request = {key: value for key, value in endpoint.items() if key != "Tags"}
    if scales:
        excluded = ["DataCaptureConfig"]
        if _weights(now) != _weights(coming):
            excluded.append("DesiredWeight")
        request["RetainAllVariantProperties"] = True
        request["ExcludeRetainedVariantProperties"] = [{"VariantPropertyType": each} for each in excluded]
    return request


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
