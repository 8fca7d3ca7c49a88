"""Plan of an endpoint: the descriptions of its endpoint config and models as one typed record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.spec import ContainerSpec

Shape = Mapping[str, Any]  # a request or a description, as botocore has it
MAX_CONTAINERS = 15  # of one model
SERVERLESS_STARTUP = 180.0  # seconds
SERVERLESS, ASYNCHRONOUS = 4 << 20, 1 << 30  # bytes of a body
KINDS = ("ProductionVariants", "ShadowProductionVariants")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A variant, with the containers of its model."""

    name: str
    specs: tuple[ContainerSpec, ...]
    direct: bool = False  # each call names a container; otherwise the containers are a pipeline
    count: int = 1
    weight: float = 1.0
    serverless: Mapping[str, Any] | None = None  # ServerlessConfig
    asynchronous: bool = False
    role: str = ""  # ARN of the model's role
    isolated: bool = False  # EnableNetworkIsolation: its containers get no credentials

    @property
    def multi_model(self) -> bool:
        return any(spec.multi_model for spec in self.specs)

    def payload_bytes(self, on_instance: int) -> int:
        """The largest body; `on_instance` is the limit for a variant on instances."""
        if self.asynchronous:
            return ASYNCHRONOUS
        return min(on_instance, SERVERLESS) if self.serverless else on_instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """An endpoint config, with the models that it names."""

    name: str
    variants: tuple[Plan, ...]
    shadows: tuple[Plan, ...] = ()
    asynchronous: Mapping[str, Any] | None = None  # AsyncInferenceConfig

    def payload_bytes(self, on_instance: int) -> int:
        return min(plan.payload_bytes(on_instance) for plan in self.variants)


def containers(model: Shape) -> list[Shape]:
    """A model's containers, one or several."""
    primary = model.get("PrimaryContainer")
    return [primary] if primary else list(model.get("Containers") or ())


def data(model: Shape) -> list[str]:
    """The S3 URIs that must have an object when the model is created. A multi-model prefix may be empty."""
    urls = [each.get("ModelDataUrl") for each in containers(model) if not multi_model(each)]
    sources = [(each.get("ModelDataSource") or {}).get("S3DataSource", {}).get("S3Uri") for each in containers(model)]
    return [uri for uri in (*urls, *sources) if uri]


def config(description: Shape, models: Mapping[str, Shape]) -> Config:
    """The plan of an endpoint config, from its description and the descriptions of its models by name."""
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
    """The plan of one variant."""
    serverless = variant.get("ServerlessConfig")
    given = variant.get("ContainerStartupHealthCheckTimeoutInSeconds")
    startup = SERVERLESS_STARTUP if serverless else None if given is None else float(given)
    memory = serverless["MemorySizeInMB"] if serverless else None
    return Plan(
        name=variant["VariantName"],
        specs=tuple(_spec(each, startup, memory) for each in containers(model)),
        direct=direct(model),
        count=variant.get("InitialInstanceCount") or 1,
        weight=float(variant.get("InitialVariantWeight", 1.0)),
        serverless=serverless,
        asynchronous=asynchronous,
        role=model.get("ExecutionRoleArn") or "",
        isolated=bool(model.get("EnableNetworkIsolation")),
    )


def _spec(container: Shape, startup: float | None, memory: int | None) -> ContainerSpec:
    additional: Sequence[Shape] = container.get("AdditionalModelDataSources") or ()
    return ContainerSpec(
        image=container["Image"],
        environment=container.get("Environment") or {},
        hostname=container.get("ContainerHostname") or "",
        multi_model=multi_model(container),
        caching=(container.get("MultiModelConfig") or {}).get("ModelCacheSetting") != "Disabled",
        model=_model_data(container),
        additional={each["ChannelName"]: _source(each["S3DataSource"]) for each in additional},
        memory_mb=memory,
        startup_limit=startup,
    )


def _model_data(container: Shape) -> ModelData | None:
    if container.get("ModelDataUrl"):
        return ModelData(container["ModelDataUrl"], prefix=multi_model(container))
    source = (container.get("ModelDataSource") or {}).get("S3DataSource")
    return _source(source) if source else None


def _source(s3: Shape) -> ModelData:
    return ModelData(s3["S3Uri"], prefix=s3["S3DataType"] == "S3Prefix", packed=s3["CompressionType"] == "Gzip")


def multi_model(container: Shape) -> bool:
    """Whether the container has Mode MultiModel."""
    return container.get("Mode") == "MultiModel"


def direct(model: Shape) -> bool:
    """Whether each call names one of the model's containers."""
    return (model.get("InferenceExecutionConfig") or {}).get("Mode") == "Direct"
