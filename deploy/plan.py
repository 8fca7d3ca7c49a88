"""From a spec to the requests that AWS gets. Names contain a hash of the request, so an equal name means unchanged.

`offline` makes all requests without a call; `plan` asks AWS for the image digests, the buckets' regions and the role's
ARN. Neither changes anything.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from deploy import roles
from deploy.aws import Aws, Request, check_request, code, denied, is_missing, members, message
from deploy.errors import Failed, SpecError, unknown
from deploy.spec import ECR, S3, Rollout, Scaling, Spec, Variant, image_parts

OWNER = "deploy:endpoint"  # the tag on everything that belongs to an endpoint; nothing without it is changed
UNKNOWN_ACCOUNT = "000000000000"
ALARM_KINDS = ("errors", "latency")
STARTS = "-backlog"  # the end of the name of an alarm that starts an instance
COUNT = "sagemaker:variant:DesiredInstanceCount"
METRIC = "SageMakerVariantInvocationsPerInstance"
# Metrics of an asynchronous endpoint: docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html
BACKLOG, WAITING = "ApproximateBacklogSizePerInstance", "HasBacklogWithoutCapacity"
START_SECONDS = 300  # AWS's cooldown after a start from zero: as long as an instance takes to start
# Fields that keys of the spec set; the [aws] tables may set every other field.
OURS = {
    "CreateModelInput": {"ModelName", "PrimaryContainer", "Containers", "ExecutionRoleArn", "Tags"},
    "ContainerDefinition": {"Image", "Mode", "ModelDataUrl", "ModelDataSource", "Environment", "ModelPackageName"},
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
    """The requests of an endpoint. Models are by name; several variants may share one."""

    models: Mapping[str, Request]
    config: Request
    endpoint: Request  # CreateEndpoint's; update_request derives UpdateEndpoint's

    def check(self) -> None:
        """Raise SpecError for every value that AWS would reject."""
        for request in self.models.values():
            check_request("CreateModel", request)
        check_request("CreateEndpointConfig", self.config)
        check_request("CreateEndpoint", self.endpoint)


def plan(spec: Spec, aws: Aws) -> Desired:
    """All requests, with role and images resolved. Nothing is changed. Raises SpecError and Failed."""
    uris = {image: resolved_image(aws, image) for image in images(spec)}
    _check(spec, desired(spec, _role_arn(spec, UNKNOWN_ACCOUNT, aws.region), uris))
    for uri in sorted({uri for variant in spec.variants if (uri := spec.models_of(variant)[0])}):
        _check_region(aws, uri, _region_of(aws, uri, "models"))
    for key, uri in (*spec.written, *spec.read):
        _region_of(aws, uri, key)
    if spec.role and roles.is_arn(spec.role):
        return desired(spec, spec.role, uris)
    found = roles.existing(aws, roles.role_name(spec))  # its ARN may have a path
    return desired(spec, str(found["Arn"]) if found else _role_arn(spec, aws.account, aws.region), uris)


def offline(spec: Spec, region: str) -> Desired:
    """All requests without a call: images by tag, role and registry of account 000000000000. Raises SpecError."""
    uris = {image: unresolved_image(image, region) for image in images(spec)}
    wanted = desired(spec, _role_arn(spec, UNKNOWN_ACCOUNT, region), uris)
    _check(spec, wanted)
    return wanted


def is_known_offline(spec: Spec) -> bool:
    """Whether `offline` makes the requests of `plan`: the role is an ARN, and no image is resolved by AWS."""
    parts = (image_parts(each) for each in images(spec))
    resolved = any(not digest and (not host or ECR.fullmatch(host)) for host, _, _, digest in parts)
    return roles.is_arn(spec.role) and not resolved and not spec.packages


def desired(spec: Spec, role_arn: str, images: Mapping[str, str]) -> Desired:
    """`images`: the URI to deploy for each image of the spec, by digest where it is known. Raises SpecError."""
    tags = tags_wanted(spec)
    models: dict[str, Request] = {}
    variants = []
    for variant in spec.variants:
        model = _model(spec, variant, role_arn, images.get(spec.image_of(variant), ""))
        name = _named(spec.name, model)
        models[name] = {"ModelName": name, **model, "Tags": tags}
        variants.append(_variant(spec, variant, name))
    config: Request = {"ProductionVariants": variants, **_picked(spec.aws, "CreateEndpointConfigInput")}
    # Both calls have these fields. With models they belong to the model; the config's are for inference components.
    for key in ("VpcConfig", "EnableNetworkIsolation"):
        config.pop(key, None)
    if spec.asynchronous:
        config["AsyncInferenceConfig"] = _asynchronous(spec)
    _refuse_unknown(spec.aws, "aws", "CreateModelInput", "ContainerDefinition", "CreateEndpointConfigInput")
    config_name = _named(spec.name, config)
    endpoint: Request = {"EndpointName": spec.name, "EndpointConfigName": config_name, "Tags": tags}
    if spec.rollout:
        endpoint["DeploymentConfig"] = deployment_config(spec.rollout, alarm_requests(spec))
    return Desired(models=models, config={"EndpointConfigName": config_name, **config, "Tags": tags}, endpoint=endpoint)


def update_request(endpoint: Request, now: Request, coming: Request, *, scales: bool) -> Request:
    """UpdateEndpoint's request, from CreateEndpoint's and the current and coming configurations.

    If the endpoint scales, it keeps its instance counts. Weights that differ, and data capture, are the coming ones.
    """
    request = {key: value for key, value in endpoint.items() if key != "Tags"}
    if scales:
        excluded = ["DataCaptureConfig"]
        if _weights(now) != _weights(coming):
            excluded.append("DesiredWeight")
        request["RetainAllVariantProperties"] = True
        request["ExcludeRetainedVariantProperties"] = [{"VariantPropertyType": each} for each in excluded]
    return request


def tags_wanted(spec: Spec) -> list[dict[str, str]]:
    """The spec's tags, and the tag of the owner."""
    return [{"Key": key, "Value": value} for key, value in {**spec.tags, OWNER: spec.name}.items()]


def _model(spec: Spec, variant: Variant, role_arn: str, image: str) -> Request:
    models, uncompressed = spec.models_of(variant)
    container: Request = {"Image": image, "Environment": {**spec.env, **variant.env}}
    if package := spec.package_of(variant):
        container = {"ModelPackageName": package, "Environment": container["Environment"]}
    elif models and uncompressed:
        container["ModelDataSource"] = {
            "S3DataSource": {"S3Uri": models, "S3DataType": "S3Prefix", "CompressionType": "None"}
        }
    elif models:
        container["Mode"] = "MultiModel" if spec.multi_model(variant) else "SingleModel"
        container["ModelDataUrl"] = models
    container |= _picked(spec.aws, "ContainerDefinition")
    return {"PrimaryContainer": container, "ExecutionRoleArn": role_arn, **_picked(spec.aws, "CreateModelInput")}


def images(spec: Spec) -> set[str]:
    """The images that the spec names; a model package has its own."""
    return {spec.image_of(each) for each in spec.variants if spec.package_of(each) is None}


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
    queue = spec.asynchronous
    assert queue is not None
    output: Request = {"S3OutputPath": queue.output}
    if queue.failures:
        output["S3FailurePath"] = queue.failures
    request: Request = {"OutputConfig": output}
    if queue.concurrency is not None:
        request["ClientConfig"] = {"MaxConcurrentInvocationsPerInstance": queue.concurrency}
    return request


def _weights(config: Request) -> dict[str, float]:
    return {each["VariantName"]: each.get("InitialVariantWeight", 1.0) for each in config["ProductionVariants"]}


def _picked(given: Mapping[str, Any], shape: str) -> Request:
    """The [aws] fields that belong to this structure and that no key of the spec sets."""
    return {key: given[key] for key in members(shape) if key in given and key not in OURS[shape]}


def _refuse_unknown(given: Mapping[str, Any], where: str, *shapes: str) -> None:
    allowed = [key for shape in shapes for key in members(shape) if key not in OURS[shape]]
    ours = {key for shape in shapes for key in OURS[shape]}
    for key in given:
        if key in ours:
            raise SpecError(f"{where}.{key} is set by another key of the spec")
        if key not in allowed:
            raise SpecError(unknown(key, allowed, "field", f" of {where}"))


def _named(endpoint: str, request: Request) -> str:
    content = json.dumps(request, sort_keys=True, separators=(",", ":")).encode()
    return f"{endpoint}-{hashlib.sha256(content).hexdigest()[:8]}"


# Requests beside the endpoint: alarms and scaling


def all_alarm_requests(spec: Spec) -> list[Request]:
    """PutMetricAlarm's, of rollback alarms and of those that start an instance."""
    return [*alarm_requests(spec), *(each for _, name, each in scaling_requests(spec) if name == "PutMetricAlarm")]


def alarm_names(endpoint: str, variant: str) -> set[str]:
    """All names that rollback alarms of a variant can have."""
    return {f"{endpoint}-{variant}-{kind}" for kind in ALARM_KINDS}


def start_name(endpoint: str, variant: str) -> str:
    """The name of the policy that starts a variant's first instance, and of its alarm."""
    return f"{endpoint}-{variant}{STARTS}"


def alarm_requests(spec: Spec) -> list[Request]:
    """PutMetricAlarm's, as in AWS's examples of deployment guardrails: every minute; missing data does not alarm."""
    if spec.rollout is None:
        return []
    limits = spec.rollout.alarms
    watched = {
        # ModelLatency is in microseconds.
        "errors": ("Invocation5XXErrors", "Sum", limits.errors),
        "latency": ("ModelLatency", "Average", limits.latency_ms and limits.latency_ms * 1000),
    }
    return [
        {
            "AlarmName": f"{spec.name}-{variant.name}-{kind}",
            "AlarmDescription": f"Rolls an update of the endpoint {spec.name} back",
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
            "Tags": tags_wanted(spec),
        }
        for variant in spec.variants
        for kind, (metric, statistic, threshold) in watched.items()
        if threshold is not None
    ]


def deployment_config(rollout: Rollout, alarms: list[Request]) -> Request:
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


def scaling_requests(spec: Spec) -> list[tuple[str, str, Request]]:
    """(service, operation, request) of the scaling of all variants."""
    if spec.scaling is None:
        return []
    return [each for variant in spec.variants for each in variant_scaling(spec, spec.scaling, variant.name)]


def variant_scaling(spec: Spec, scaling: Scaling, variant: str) -> list[tuple[str, str, Request]]:
    """Target and policies of a variant.

    From zero instances a step policy starts one, by an alarm. The ARN of the policy in it is a placeholder here.
    """
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{spec.name}/variant/{variant}",
        "ScalableDimension": COUNT,
    }
    tracking = {
        **_tracked(spec.name, scaling),
        "ScaleInCooldown": scaling.scale_in_seconds,
        "ScaleOutCooldown": scaling.scale_out_seconds,
    }
    load = {
        **target,
        "PolicyName": f"{spec.name}-{variant}-load",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": tracking,
    }
    service = "application-autoscaling"
    bounds = {"MinCapacity": scaling.min, "MaxCapacity": scaling.max}
    made: list[tuple[str, str, Request]] = [
        (service, "RegisterScalableTarget", target | bounds),
        (service, "PutScalingPolicy", load),
    ]
    if scaling.min == 0:
        name = start_name(spec.name, variant)
        made.append((service, "PutScalingPolicy", {**target, "PolicyName": name, **STARTS_ONE}))
        made.append(("cloudwatch", "PutMetricAlarm", _start_alarm(spec, name)))
    return made


STARTS_ONE: Request = {
    "PolicyType": "StepScaling",
    "StepScalingPolicyConfiguration": {
        "AdjustmentType": "ChangeInCapacity",
        "MetricAggregationType": "Average",
        "Cooldown": START_SECONDS,
        "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
    },
}


def _tracked(endpoint: str, scaling: Scaling) -> Request:
    if scaling.backlog_per_instance is None:
        return {
            "TargetValue": scaling.invocations_per_instance,
            "PredefinedMetricSpecification": {"PredefinedMetricType": METRIC},
        }
    metric = {"MetricName": BACKLOG, **_of_endpoint(endpoint), "Statistic": "Average"}
    return {"TargetValue": scaling.backlog_per_instance, "CustomizedMetricSpecification": metric}


def _of_endpoint(endpoint: str) -> Request:
    return {"Namespace": "AWS/SageMaker", "Dimensions": [{"Name": "EndpointName", "Value": endpoint}]}


def _start_alarm(spec: Spec, name: str) -> Request:
    return {
        "AlarmName": name,
        "AlarmDescription": f"Starts an instance of the endpoint {spec.name}: requests wait, and it has none",
        **_of_endpoint(spec.name),
        "MetricName": WAITING,
        "Statistic": "Average",
        "Period": 60,
        "EvaluationPeriods": 2,
        "DatapointsToAlarm": 2,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
        "AlarmActions": [f"(ARN of the policy {name})"],
        "Tags": tags_wanted(spec),
    }


def _check(spec: Spec, wanted: Desired) -> None:
    """Raise SpecError for every value that AWS would reject in any request."""
    wanted.check()
    for request in alarm_requests(spec):
        check_request("PutMetricAlarm", request, "cloudwatch")
    for service, operation, request in scaling_requests(spec):
        check_request(operation, request, service)


# Images, buckets and the role


def resolved_image(aws: Aws, image: str) -> str:
    """HOST/NAME@sha256:... of an image in ECR: a tag can move, a digest cannot. Other registries' URIs are unchanged.

    Raises Failed if ECR does not have the image.
    """
    host, name, tag, digest = image_parts(image)
    if digest or (host and not ECR.fullmatch(host)):
        return image
    found = ECR.fullmatch(host) if host else None
    if found and found[2] != aws.region:
        raise Failed(f"image {image} is in {found[2]}, the endpoint in {aws.region}: push the image there too")
    account = found[1] if found else aws.account
    query = {"registryId": account, "repositoryName": name, "imageIds": [{"imageTag": tag}]}
    try:
        (detail,) = aws.client("ecr").describe_images(**query)["imageDetails"]
    except ClientError as error:
        if code(error) in ("RepositoryNotFoundException", "ImageNotFoundException"):
            raise Failed(f"{message(error)}\n  push the image: ./build_and_push.sh {name} {tag}") from error
        raise
    return f"{host or _registry(account, aws.region)}/{name}@{detail['imageDigest']}"


def unresolved_image(image: str, region: str) -> str:
    """The URI by tag, without a call; the registry of account 000000000000 if the image names none."""
    host, name, tag, _ = image_parts(image)
    return image if host else f"{_registry(UNKNOWN_ACCOUNT, region)}/{name}:{tag}"


def _registry(account: str, region: str) -> str:
    suffix = ".cn" if region.startswith("cn-") else ""
    return f"{account}.dkr.ecr.{region}.amazonaws.com{suffix}"


def _region_of(aws: Aws, uri: str, key: str) -> str | None:
    """The region of the bucket that a key of the spec names; None if that is forbidden. Raises Failed if missing."""
    found = S3.fullmatch(uri)
    assert found, uri  # the spec was checked
    bucket = found[1]
    try:
        place = aws.client("s3").get_bucket_location(Bucket=bucket).get("LocationConstraint") or "us-east-1"
    except ClientError as error:
        if is_missing(error):
            raise Failed(
                f"{key}: bucket {bucket} not found: create it (aws s3 mb s3://{bucket}), or fix the spec"
            ) from error
        if denied(error):
            return None  # the endpoint's role may have more rights than the caller
        raise
    return "eu-west-1" if place == "EU" else str(place)  # "EU": the region's name until 2006


def _check_region(aws: Aws, uri: str, place: str | None) -> None:
    if place not in (None, aws.region):
        raise Failed(
            f"{uri} is in {place}, the endpoint in {aws.region}: SageMaker reads models from its own region only; use "
            "a bucket there, or --region"
        )


def _role_arn(spec: Spec, account: str, region: str) -> str:
    if spec.role and roles.is_arn(spec.role):
        return spec.role
    return roles.arn_of(roles.role_name(spec), account, region)
