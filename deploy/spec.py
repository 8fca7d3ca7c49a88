"""An endpoint as its owner describes it, in one TOML file: what is to be, not how to get there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INPUTS = "inputs/"  # where `invoke` puts bodies of an asynchronous endpoint
S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A fleet of one kind; several share the traffic by weight. What it leaves out is the endpoint's."""

    name: str = "AllTraffic"
    instance: str | None = None  # ml.m5.xlarge...; none on a serverless endpoint
    count: int = 1
    weight: float = 1.0
    image: str | None = None
    models: str | None = None
    uncompressed: bool | None = None
    env: Mapping[str, str] = field(default_factory=dict)  # over the endpoint's own
    aws: Mapping[str, Any] = field(default_factory=dict)  # any field of a ProductionVariant


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Instances follow the load, each variant by itself (target tracking)."""

    min: int = 1
    max: int
    invocations_per_instance: float  # a minute
    scale_in_seconds: int = 300
    scale_out_seconds: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """What takes an update back: checked for each variant, minute by minute."""

    errors: float | None = None  # 5xx answers of the container in a minute
    latency_ms: float | None = None  # the model's, on average


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How traffic moves to a new configuration; without one of the percentages all at once."""

    canary_percent: int | None = None
    linear_percent: int | None = None
    rolling_percent: int | None = None
    bake_seconds: int = 300
    alarms: Alarms = Alarms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Serverless:
    memory_mb: int = 2048
    concurrency: int = 5
    provisioned: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asynchronous:
    """Requests wait in a queue, bodies and answers are in S3."""

    output: str
    failures: str | None = None
    inputs: str | None = None  # where callers put bodies, beside INPUTS below `output`
    concurrency: int | None = None  # of one instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    name: str
    image: str  # NAME:TAG in this account's registry, or a whole URI
    models: str | None = None  # s3://bucket/prefix/ -> multi-model; s3://.../NAME.tar.gz -> one bundle of models
    uncompressed: bool = False  # the prefix is one bundle, as it is, and no multi-model endpoint
    role: str | None = None  # a name (made and kept by us) or an ARN; none: NAME-endpoint
    region: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[Variant, ...] = field(default=(), metadata={"key": "variant"})
    scaling: Scaling | None = None
    rollout: Rollout | None = None
    serverless: Serverless | None = None
    asynchronous: Asynchronous | None = field(default=None, metadata={"key": "async"})
    tags: Mapping[str, str] = field(default_factory=dict)
    # Any field of CreateModel, its container or CreateEndpointConfig that has no key here.
    aws: Mapping[str, Any] = field(default_factory=dict)

    def image_of(self, variant: Variant) -> str:
        return variant.image or self.image

    def models_of(self, variant: Variant) -> tuple[str | None, bool]:
        """Where its models are, and whether that is a prefix to be taken as it is."""
        if variant.models is None:
            return self.models, self.uncompressed
        return variant.models, bool(variant.uncompressed)

    @property
    def written(self) -> list[tuple[str, str]]:
        """Keys and prefixes of all that is written to S3 when it is called."""
        asked = self.asynchronous
        found = [("async.output", asked.output), ("async.failures", asked.failures)] if asked else []
        capture = self.aws.get("DataCaptureConfig")
        if isinstance(capture, Mapping):
            found.append(("aws.DataCaptureConfig.DestinationS3Uri", capture.get("DestinationS3Uri")))
        return [(key, f"{uri.rstrip('/')}/") for key, uri in found if isinstance(uri, str)]

    @property
    def read(self) -> list[tuple[str, str]]:
        """The same of bodies that lie in S3."""
        asked = self.asynchronous
        found = [("async.output", f"{asked.output.rstrip('/')}/{INPUTS}")] if asked else []
        if asked and asked.inputs:
            found.append(("async.inputs", f"{asked.inputs.rstrip('/')}/"))
        return found

    def multi_model(self, variant: Variant) -> bool:
        models, uncompressed = self.models_of(variant)
        return models is not None and models.endswith("/") and not uncompressed
