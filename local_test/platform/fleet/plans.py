"""What an endpoint is to run, read from the descriptions of its endpoint config and its models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.spec import ContainerSpec

Shape = Mapping[str, Any]
SERVERLESS_STARTUP = 180.0  # seconds
SERVERLESS, ASYNCHRONOUS = 4 << 20, 1 << 30  # bytes of a body
KINDS = ("ProductionVariants", "ShadowProductionVariants")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A variant as CreateEndpointConfig and CreateModel describe it."""

    name: str
    specs: tuple[ContainerSpec, ...]
    direct: bool = False  # the caller names the container; otherwise they are a pipeline
    count: int = 1
    weight: float = 1.0
    serverless: Mapping[str, Any] | None = None  # ServerlessConfig
    asynchronous: bool = False

    @property
    def multi_model(self) -> bool:
        return any(spec.multi_model for spec in self.specs)

    def payload_bytes(self, usual: int) -> int:
        """The largest body, where `usual` is that of an instance."""
        if self.asynchronous:
            return ASYNCHRONOUS
        return min(usual, SERVERLESS) if self.serverless else usual


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """An endpoint config, with the models that it names."""

    name: str
    variants: tuple[Plan, ...]
    shadows: tuple[Plan, ...] = ()
    asynchronous: Mapping[str, Any] | None = None  # AsyncInferenceConfig

    def payload_bytes(self, usual: int) -> int:
        return min(plan.payload_bytes(usual) for plan in self.variants)


def containers(model: Shape) -> list[Shape]:
    """A model's containers, one or several."""
    primary = model.get("PrimaryContainer")
    return [primary] if primary else list(model.get("Containers") or ())


def data(model: Shape) -> list[str]:
    """S3 addresses at which there must be something when the model is created; a multi-model prefix may be empty."""
    urls = [each.get("ModelDataUrl") for each in containers(model) if not multi_model(each)]
    sources = [(each.get("ModelDataSource") or {}).get("S3DataSource", {}).get("S3Uri") for each in containers(model)]
    return [uri for uri in (*urls, *sources) if uri]


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
        direct=direct(model),
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
    return container.get("Mode") == "MultiModel"


def direct(model: Shape) -> bool:
    return (model.get("InferenceExecutionConfig") or {}).get("Mode") == "Direct"
