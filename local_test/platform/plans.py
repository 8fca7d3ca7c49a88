"""CreateModel's and CreateEndpointConfig's requests: refused as SageMaker refuses them, or read as plans.

docs.aws.amazon.com/sagemaker/latest/APIReference/API_ContainerDefinition.html, .../API_ProductionVariant.html
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import botocore.session

from local_test.platform.artifacts import ModelData
from local_test.platform.calls import ValidationError
from local_test.platform.containers import ContainerSpec
from local_test.platform.fleets import Config
from local_test.platform.variants import Plan

Shape = Mapping[str, Any]
CONTAINERS = 15  # in one model
SERVERLESS_STARTUP = 180.0  # seconds
KINDS = ("ProductionVariants", "ShadowProductionVariants")


def containers(model: Shape) -> list[Shape]:
    """A model's containers, one or several."""
    primary = model.get("PrimaryContainer")
    return [primary] if primary else list(model.get("Containers") or ())


def check_model(model: Shape) -> None:
    """Raises ValidationError for a CreateModel request that names no sound set of containers."""
    if bool(model.get("PrimaryContainer")) == bool(model.get("Containers")):
        raise ValidationError("Give either PrimaryContainer or Containers, one of the two.")
    all_of_them = containers(model)
    if len(all_of_them) > CONTAINERS:
        raise ValidationError(f"A model has at most {CONTAINERS} containers, not {len(all_of_them)}.")
    for container in all_of_them:
        _check_container(container)
    names = [each["ContainerHostname"] for each in all_of_them if each.get("ContainerHostname")]
    if len(set(names)) < len(names):
        raise ValidationError(f"ContainerHostname must be unique within a model: {', '.join(names)}.")
    if _direct(model) and (len(all_of_them) < 2 or len(names) < len(all_of_them)):
        raise ValidationError(
            "InferenceExecutionConfig Mode Direct takes two containers or more, each with a ContainerHostname."
        )
    if len(all_of_them) > 1 and sum(map(_multi_model, all_of_them)) > 1:
        raise ValidationError("Only one container of a model can have Mode MultiModel.")


def _check_container(container: Shape) -> None:
    url, source = container.get("ModelDataUrl"), container.get("ModelDataSource")
    if not container.get("Image") and not container.get("ModelPackageName"):
        raise ValidationError("A container needs an Image or a ModelPackageName.")
    if url and source:
        raise ValidationError("Give either ModelDataUrl or ModelDataSource, one of the two.")
    if url and not url.startswith("s3://"):
        raise ValidationError(f"Invalid ModelDataUrl {url}: it must be an S3 URI, s3://bucket/key.")
    if _multi_model(container):
        if source:
            raise ValidationError(
                "ModelDataSource is not supported for a container with Mode MultiModel: use ModelDataUrl."
            )
        if not url:
            raise ValidationError("A container with Mode MultiModel needs a ModelDataUrl: the S3 prefix of its models.")
        if not url.endswith("/"):
            raise ValidationError(
                f"Invalid ModelDataUrl {url}: of a container with Mode MultiModel it must end with '/'."
            )
    elif url and url.endswith("/"):
        raise ValidationError(
            f"Invalid ModelDataUrl {url}: it must be one .tar.gz object; for a prefix use ModelDataSource."
        )
    if source:
        s3 = source.get("S3DataSource") or {}
        if s3.get("S3DataType") == "S3Prefix" and not s3["S3Uri"].endswith("/") and s3["CompressionType"] == "None":
            raise ValidationError(f"Invalid S3Uri {s3['S3Uri']}: with S3DataType S3Prefix it must end with '/'.")


def data(model: Shape) -> list[str]:
    """S3 addresses at which there must be something when the model is created; a multi-model prefix may be empty."""
    urls = [each.get("ModelDataUrl") for each in containers(model) if not _multi_model(each)]
    sources = [(each.get("ModelDataSource") or {}).get("S3DataSource", {}).get("S3Uri") for each in containers(model)]
    return [uri for uri in (*urls, *sources) if uri]


def check_config(config: Shape, models: Mapping[str, Shape]) -> None:
    """Raises ValidationError for a CreateEndpointConfig request; its models exist."""
    variants = [each for kind in KINDS for each in config.get(kind) or ()]
    names = [each["VariantName"] for each in variants]
    if len(set(names)) < len(names):
        raise ValidationError(f"VariantName must be unique within an endpoint config: {', '.join(names)}.")
    shadows = config.get("ShadowProductionVariants") or ()
    if shadows and (len(shadows) > 1 or len(config["ProductionVariants"]) > 1):
        raise ValidationError("A shadow variant goes with exactly one production variant, and is alone.")
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
            if _multi_model(container):
                raise ValidationError("A serverless endpoint does not support multi-model containers.")
            if container.get("ModelDataSource"):
                raise ValidationError("A serverless endpoint does not support ModelDataSource: use ModelDataUrl.")


@cache
def instance_types() -> tuple[str, ...]:
    """Those that botocore's model of the service knows."""
    model = botocore.session.get_session().get_service_model("sagemaker")
    return tuple(model.shape_for("ProductionVariantInstanceType").enum)


def config(description: Shape, models: Mapping[str, Shape]) -> Config:
    """An endpoint config as it is described, with the descriptions of its models by name."""
    production, shadows = (
        tuple(
            plan(each, models[each["ModelName"]], asynchronous=bool(description.get("AsyncInferenceConfig")))
            for each in description.get(kind) or ()
        )
        for kind in KINDS
    )
    return Config(
        name=description["EndpointConfigName"],
        variants=production,
        shadows=shadows,
        asynchronous=description.get("AsyncInferenceConfig"),
    )


def plan(variant: Shape, model: Shape, *, asynchronous: bool = False) -> Plan:
    serverless = variant.get("ServerlessConfig")
    given = variant.get("ContainerStartupHealthCheckTimeoutInSeconds")
    startup = SERVERLESS_STARTUP if serverless else None if given is None else float(given)
    memory = serverless["MemorySizeInMB"] if serverless else None
    return Plan(
        name=variant["VariantName"],
        specs=tuple(_spec(each, startup, memory) for each in containers(model)),
        direct=_direct(model),
        count=variant.get("InitialInstanceCount") or 1,
        weight=float(variant.get("InitialVariantWeight", 1.0)),
        serverless=serverless,
        asynchronous=asynchronous,
    )


def _spec(container: Shape, startup: float | None, memory: int | None) -> ContainerSpec:
    additional: Sequence[Shape] = container.get("AdditionalModelDataSources") or ()
    return ContainerSpec(
        image=container["Image"],
        environment=container.get("Environment") or {},
        hostname=container.get("ContainerHostname") or "",
        multi_model=_multi_model(container),
        caching=(container.get("MultiModelConfig") or {}).get("ModelCacheSetting") != "Disabled",
        model=_model_data(container),
        additional={each["ChannelName"]: _source(each["S3DataSource"]) for each in additional},
        memory_mb=memory,
        startup_limit=startup,
    )


def _model_data(container: Shape) -> ModelData | None:
    if container.get("ModelDataUrl"):
        return ModelData(container["ModelDataUrl"], prefix=_multi_model(container))
    source = (container.get("ModelDataSource") or {}).get("S3DataSource")
    return _source(source) if source else None


def _source(s3: Shape) -> ModelData:
    return ModelData(s3["S3Uri"], prefix=s3["S3DataType"] == "S3Prefix", packed=s3["CompressionType"] == "Gzip")


def _multi_model(container: Shape) -> bool:
    return container.get("Mode") == "MultiModel"


def _direct(model: Shape) -> bool:
    return (model.get("InferenceExecutionConfig") or {}).get("Mode") == "Direct"
