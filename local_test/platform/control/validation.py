"""Validation of CreateModel and CreateEndpointConfig requests.

docs.aws.amazon.com/sagemaker/latest/APIReference/API_ContainerDefinition.html, .../API_ProductionVariant.html
"""

from collections.abc import Mapping
from functools import cache

import botocore.session

from local_test.platform.calls import ValidationError
from local_test.platform.containers.model_data import parts
from local_test.platform.fleet.plans import KINDS, MAX_CONTAINERS, Shape, containers, direct, multi_model


def check_model(model: Shape) -> None:
    """Raises ValidationError for a CreateModel request that SageMaker refuses."""
    if bool(model.get("PrimaryContainer")) == bool(model.get("Containers")):
        raise ValidationError("Give either PrimaryContainer or Containers, one of the two.")
    all_containers = containers(model)
    if len(all_containers) > MAX_CONTAINERS:
        raise ValidationError(f"A model has at most {MAX_CONTAINERS} containers, not {len(all_containers)}.")
    for container in all_containers:
        _check_container(container)
    names = [each["ContainerHostname"] for each in all_containers if each.get("ContainerHostname")]
    if len(set(names)) < len(names):
        raise ValidationError(f"ContainerHostname must be unique within a model: {', '.join(names)}.")
    if direct(model) and (len(all_containers) < 2 or len(names) < len(all_containers)):
        raise ValidationError(
            "InferenceExecutionConfig Mode Direct needs two containers or more, each with a ContainerHostname."
        )
    if len(all_containers) > 1 and sum(map(multi_model, all_containers)) > 1:
        raise ValidationError("Only one container of a model can have Mode MultiModel.")


def _check_container(container: Shape) -> None:
    url, source = container.get("ModelDataUrl"), container.get("ModelDataSource")
    if not container.get("Image") and not container.get("ModelPackageName"):
        raise ValidationError("A container needs an Image or a ModelPackageName.")
    if url and source:
        raise ValidationError("Give either ModelDataUrl or ModelDataSource, one of the two.")
    if url:
        _check_uri("ModelDataUrl", url)
    if multi_model(container):
        if source:
            raise ValidationError(
                "ModelDataSource is not supported for a container with Mode MultiModel: use ModelDataUrl."
            )
        if not url:
            raise ValidationError("A container with Mode MultiModel needs a ModelDataUrl: the S3 prefix of its models.")
        if not url.endswith("/"):
            raise ValidationError(
                f"Invalid ModelDataUrl {url}: for a container with Mode MultiModel it must end with '/'."
            )
    elif url and url.endswith("/"):
        raise ValidationError(
            f"Invalid ModelDataUrl {url}: it must be one .tar.gz object; for a prefix use ModelDataSource."
        )
    if source:
        s3 = source.get("S3DataSource") or {}
        if s3.get("S3Uri"):
            _check_uri("S3Uri", s3["S3Uri"])
        if s3.get("S3DataType") == "S3Prefix" and not s3["S3Uri"].endswith("/") and s3["CompressionType"] == "None":
            raise ValidationError(f"Invalid S3Uri {s3['S3Uri']}: with S3DataType S3Prefix it must end with '/'.")


def _check_uri(member: str, uri: str) -> None:
    try:
        parts(uri)
    except ValidationError as error:
        raise ValidationError(f"Invalid {member}: {error.message}.") from None


def check_config(config: Shape, models: Mapping[str, Shape]) -> None:
    """Raises ValidationError for a CreateEndpointConfig request that SageMaker refuses. Its models must exist."""
    variants = [each for kind in KINDS for each in config.get(kind) or ()]
    names = [each["VariantName"] for each in variants]
    if len(set(names)) < len(names):
        raise ValidationError(f"VariantName must be unique within an endpoint config: {', '.join(names)}.")
    shadows = config.get("ShadowProductionVariants") or ()
    if shadows and (len(shadows) > 1 or len(config["ProductionVariants"]) > 1):
        raise ValidationError("An endpoint config can have one shadow variant, beside exactly one production variant.")
    for number, variant in enumerate(variants, 1):
        _check_variant(number, variant, models[variant["ModelName"]])
    if len(variants) > 1 and any(each.get("ServerlessConfig") for each in variants):
        raise ValidationError("An endpoint config with a serverless variant can have no other variant.")


def _check_variant(number: int, variant: Shape, model: Shape) -> None:
    kind, serverless = variant.get("InstanceType"), variant.get("ServerlessConfig")
    if bool(kind) == bool(serverless):
        raise ValidationError(
            f"Variant {variant['VariantName']} needs an InstanceType or a ServerlessConfig, one of the two."
        )
    if kind and kind not in instance_types():
        raise ValidationError(
            f"1 validation error detected: Value '{kind}' at 'productionVariants.{number}.member.instanceType' failed "
            f"to satisfy constraint: Member must satisfy enum value set: [{', '.join(instance_types())}]"
        )
    if kind and not variant.get("InitialInstanceCount"):
        raise ValidationError(f"Variant {variant['VariantName']} needs an InitialInstanceCount of 1 or more.")
    if serverless:
        for container in containers(model):
            if multi_model(container):
                raise ValidationError("A serverless endpoint does not support multi-model containers.")
            if container.get("ModelDataSource"):
                raise ValidationError("A serverless endpoint does not support ModelDataSource: use ModelDataUrl.")


@cache
def instance_types() -> tuple[str, ...]:
    """The instance types in botocore's model of the service."""
    model = botocore.session.get_session().get_service_model("sagemaker")
    return tuple(model.shape_for("ProductionVariantInstanceType").enum)
