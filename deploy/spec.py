"""The spec: an endpoint described in one TOML file, as the state to reach. Reading and checking it needs no AWS."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deploy.errors import SpecError, unknown

INPUTS = "inputs/"  # `invoke` puts request bodies for an asynchronous endpoint here, below its output prefix
S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.*)")
ECR = re.compile(r"(\d{12})\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?")

# SageMaker allows names of 63 characters; names of models and configurations add a hyphen and 8 characters of a hash.
LONGEST_NAME = 54
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
PACKAGE = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}|arn:aws[a-z-]*:sagemaker:[a-z0-9-]+:\d{12}:model-package/\S+")
ROLE = re.compile(r"[\w+=,.@-]{1,64}")
# docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html, "feature exclusions"
NOT_SERVERLESS = (
    "VpcConfig",
    "EnableNetworkIsolation",
    "DataCaptureConfig",
    "ShadowProductionVariants",
    "ExplainerConfig",
)
PERCENT = {"canary_percent": (1, 50), "linear_percent": (10, 50), "rolling_percent": (5, 50)}  # AWS's limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A fleet of equal instances. Several variants share the traffic by weight. None: the endpoint's value."""

    name: str = "AllTraffic"
    instance: str | None = None  # ml.m5.xlarge...; None on a serverless endpoint
    count: int = 1
    weight: float = 1.0
    image: str | None = None
    models: str | None = None
    uncompressed: bool | None = None
    model_package: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)  # merged over the endpoint's
    aws: Mapping[str, Any] = field(default_factory=dict)  # any other field of a ProductionVariant


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The number of instances follows the load, for each variant separately (target tracking)."""

    min: int = 1  # 0: an asynchronous endpoint, which waits for requests without an instance
    max: int
    invocations_per_instance: float | None = None  # a minute
    backlog_per_instance: float | None = None  # requests in the queue of an asynchronous endpoint
    scale_in_seconds: int = 300
    scale_out_seconds: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """Thresholds that roll an update back; each is evaluated per variant and minute."""

    errors: float | None = None  # 5xx responses of the container a minute
    latency_ms: float | None = None  # of the model, the average


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How traffic moves to a new configuration; without a percentage, all at once."""

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
    """Requests wait in a queue; request and response bodies are objects in S3."""

    output: str
    failures: str | None = None
    inputs: str | None = None  # a prefix of callers' request bodies, in addition to INPUTS below `output`
    concurrency: int | None = None  # of one instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    name: str
    image: str = ""  # NAME:TAG in this account's registry, or a whole URI
    models: str | None = None  # s3://bucket/prefix/ -> multi-model; s3://.../NAME.tar.gz -> one bundle of models
    uncompressed: bool = False  # the prefix is one uncompressed bundle, not a multi-model prefix
    # In place of image and models: a model package group, whose newest approved package is deployed, or an ARN.
    model_package: str | None = None
    smoke: str | None = None  # a file of calls that must succeed after each update, beside the spec
    role: str | None = None  # a name (created and maintained here) or an ARN; None: NAME-endpoint
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
        """The URI of the variant's models, and whether it is an uncompressed bundle."""
        if variant.models is None:
            return self.models, self.uncompressed
        return variant.models, bool(variant.uncompressed)

    def package_of(self, variant: Variant) -> str | None:
        """The variant's model package or group, in place of an image and models of its own."""
        if variant.model_package:
            return variant.model_package
        return None if variant.image or variant.models else self.model_package

    @property
    def packages(self) -> list[str]:
        """All model packages and groups of the spec."""
        return sorted({found for each in self.variants if (found := self.package_of(each))})

    @property
    def written(self) -> list[tuple[str, str]]:
        """(key of the spec, S3 prefix) of each place that the endpoint writes to."""
        queue = self.asynchronous
        found = [("async.output", queue.output), ("async.failures", queue.failures)] if queue else []
        capture = self.aws.get("DataCaptureConfig")
        if isinstance(capture, Mapping):
            found.append(("aws.DataCaptureConfig.DestinationS3Uri", capture.get("DestinationS3Uri")))
        return [(key, f"{uri.rstrip('/')}/") for key, uri in found if isinstance(uri, str)]

    @property
    def read(self) -> list[tuple[str, str]]:
        """(key of the spec, S3 prefix) of each place that the endpoint reads request bodies from."""
        queue = self.asynchronous
        found = [("async.output", f"{queue.output.rstrip('/')}/{INPUTS}")] if queue else []
        if queue and queue.inputs:
            found.append(("async.inputs", f"{queue.inputs.rstrip('/')}/"))
        return found

    def multi_model(self, variant: Variant) -> bool:
        models, uncompressed = self.models_of(variant)
        return models is not None and models.endswith("/") and not uncompressed


# Tables of the file that are dataclasses too, by their path.
TABLES = {
    "": Spec,
    "variant": Variant,
    "scaling": Scaling,
    "rollout": Rollout,
    "rollout.alarms": Alarms,
    "serverless": Serverless,
    "async": Asynchronous,
}


def load(path: Path) -> Spec:
    """The spec in a file. Raises SpecError, which names the file."""
    try:
        return checked(parsed(tomllib.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from error
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def parsed(table: Mapping[str, Any]) -> Spec:
    """The spec that a TOML table describes: every key known, every value of its type. Raises SpecError."""
    import msgspec  # not at module level: the Lambda function of a pipeline imports this module and has boto3 alone

    for where, cls in TABLES.items():
        _refuse_unknown_keys(table, where, cls)
    renamed = {each.metadata["key"]: each.name for each in fields(Spec) if "key" in each.metadata}
    try:
        return msgspec.convert({renamed.get(key, key): value for key, value in table.items()}, Spec)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        problem, path = problem.replace(" | null", "").replace("object`", "table`"), path.removesuffix("`")
        for key, name in renamed.items():
            path = re.sub(rf"^{name}\b", key, path)
        if missing := re.fullmatch(r"Object missing required field `(\w+)`", problem):
            raise SpecError(f"{path}.{missing[1]} is missing".removeprefix(".")) from None
        raise SpecError(f"{_named(path, table)}: {problem[0].lower()}{problem[1:]}") from None


def restored(table: Mapping[str, Any]) -> Spec:
    """The spec of which dataclasses.asdict has made the table. Without msgspec, which a Lambda function lacks."""
    made = {each.name: table[each.name] for each in fields(Spec)}
    for name, cls in (("scaling", Scaling), ("serverless", Serverless), ("asynchronous", Asynchronous)):
        made[name] = made[name] and cls(**made[name])
    if rollout := made["rollout"]:
        made["rollout"] = Rollout(**{**rollout, "alarms": Alarms(**rollout["alarms"])})
    return Spec(**{**made, "variants": tuple(Variant(**each) for each in made["variants"])})


def _refuse_unknown_keys(table: Mapping[str, Any], where: str, cls: type[Any]) -> None:
    at: Any = table
    for part in filter(None, where.split(".")):
        at = at.get(part) if isinstance(at, Mapping) else None
    known = [each.metadata.get("key", each.name) for each in fields(cls)]
    for each in at if isinstance(at, list) else [at]:
        for key in each if isinstance(each, Mapping) else ():
            if key not in known:
                raise SpecError(unknown(key, known, "key", f" in [{where}]" if where else ""))


def _named(path: str, table: Mapping[str, Any]) -> str:
    """msgspec writes [...] for the key of a table of strings: the path with the first key whose value is no string."""
    if not path.endswith("[...]"):
        return path
    at: Any = table
    for part in re.findall(r"\w+", path):
        at = at[int(part)] if part.isdigit() else at[part]
    return path.replace("[...]", next((f".{key}" for key, value in at.items() if not isinstance(value, str)), ""))


def image_parts(image: str) -> tuple[str, str, str, str]:
    """The registry's host ("" for this account's ECR), repository, tag and digest of an image."""
    rest, _, digest = image.partition("@")
    first, slash, after = rest.partition("/")
    host = first if slash and ("." in first or ":" in first or first == "localhost") else ""
    name, _, tag = (after if host else rest).partition(":")
    return host, name, tag or "latest", digest


def checked(spec: Spec) -> Spec:
    """The spec with at least one variant. Raises SpecError for combinations that AWS does not support."""
    if not spec.variants:
        spec = replace(spec, variants=(Variant(),))
    _check_name(spec.name)
    names = [variant.name for variant in spec.variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SpecError(f"variant: two variants have the name {twice!r}")
    for variant in spec.variants:
        _check_variant(spec, variant)
    if spec.serverless:
        _check_serverless(spec, spec.serverless)
    for key, uri in (*spec.written, *spec.read):
        if not S3.fullmatch(uri):
            raise SpecError(f"{key} {uri.rstrip('/')!r} must be s3://bucket/prefix/")
    if spec.scaling:
        _check_scaling(spec.scaling, queued=spec.asynchronous is not None)
    if spec.role and not spec.role.startswith("arn:") and not ROLE.fullmatch(spec.role):
        raise SpecError(f"role {spec.role!r} must be an ARN, or a name of 1 to 64 letters, digits and _+=,.@-")
    if not any(variant.weight for variant in spec.variants):
        raise SpecError("variant: no variant has a weight over 0, so none would receive traffic")
    if spec.rollout:
        _check_rollout(spec.rollout, len(spec.variants))
    return spec


# The key of [scaling] that an endpoint of each kind scales by, and what it counts.
SCALES_BY = {
    False: ("invocations_per_instance", "calls a minute that an instance handles"),
    True: ("backlog_per_instance", "requests that may wait in the queue for each instance"),
}


def _check_scaling(scaling: Scaling, *, queued: bool) -> None:
    kind, least = ("an asynchronous", 0) if queued else ("a real-time", 1)
    if not least <= scaling.min <= scaling.max or scaling.max < 1:
        raise SpecError(
            f"scaling: min {scaling.min} and max {scaling.max} must be {least} <= min <= max"
            + ("" if queued else "; only an asynchronous endpoint ([async]) may have min = 0")
        )
    (key, counts), (other, _) = SCALES_BY[queued], SCALES_BY[not queued]
    if getattr(scaling, other) is not None:
        raise SpecError(f"scaling.{other}: {kind} endpoint scales by {key}: {counts}")
    value = getattr(scaling, key)
    if value is None:
        raise SpecError(f"scaling.{key} is missing: {counts}")
    if value <= 0:
        raise SpecError(f"scaling.{key} must be more than 0: {counts}")


def _check_serverless(spec: Spec, serverless: Serverless) -> None:
    if spec.scaling or spec.asynchronous or len(spec.variants) > 1:
        raise SpecError(
            "serverless: not supported with [scaling], [async] or more than one [[variant]]; remove these tables"
        )
    for key in NOT_SERVERLESS:
        if key in spec.aws:
            raise SpecError(f"serverless: AWS does not support {key} with it")
    if spec.rollout and spec.rollout.rolling_percent:
        raise SpecError("serverless: rolling_percent is not supported with it; use canary_percent or linear_percent")
    if serverless.memory_mb not in range(1024, 6145, 1024):
        raise SpecError(f"serverless.memory_mb is {serverless.memory_mb}: it must be 1024, 2048 ... 6144")
    if serverless.provisioned is not None and serverless.provisioned > serverless.concurrency:
        raise SpecError(f"serverless.provisioned {serverless.provisioned} is over concurrency {serverless.concurrency}")


def _check_name(name: str) -> None:
    if len(name) > LONGEST_NAME or not NAME.fullmatch(name):
        raise SpecError(
            f"name {name[:80]!r} must be 1 to {LONGEST_NAME} letters, digits and inner hyphens: names of models and "
            "configurations are derived from it, and SageMaker allows 63"
        )


def _check_package(spec: Spec, variant: Variant) -> None:
    """`image` and `models` beside `model_package`: which of them would be deployed?"""
    of_endpoint, of_variant = (
        (where, each.model_package, [key for key in ("image", "models", "uncompressed") if getattr(each, key)])
        for where, each in (("", spec), (f"variant {variant.name!r}: ", variant))
    )
    for where, package, others in (of_endpoint, of_variant):
        if package and others:
            raise SpecError(f"{where}model_package: {others[0]} comes from the model package; remove {others[0]}")
        if package and not PACKAGE.fullmatch(package):
            raise SpecError(f"{where}model_package {package!r} must be the name of a group, or a model package's ARN")
    if spec.package_of(variant) is None and not spec.image_of(variant):
        raise SpecError("image is missing, or model_package: a group of the model registry, or a package's ARN")


def _check_variant(spec: Spec, variant: Variant) -> None:
    _check_package(spec, variant)
    models, uncompressed = spec.models_of(variant)
    if models is not None:
        if not S3.fullmatch(models):
            raise SpecError(f"models {models!r} must be s3://bucket/key")
        if not models.endswith(("/", ".tar.gz")):
            raise SpecError(f"models {models!r} must end in / (a prefix of models) or .tar.gz (one bundle)")
        if uncompressed and not models.endswith("/"):
            raise SpecError(f"uncompressed: models {models!r} must be a prefix, which ends in /")
    if spec.serverless:
        refused = {"instance": variant.instance is not None, "models": bool(models and models.endswith("/"))}
        for key in (key for key, given in refused.items() if given):
            raise SpecError(f"serverless: {key} is not supported with it (models: only one .tar.gz)")
    elif variant.instance is None:
        raise SpecError(f"variant {variant.name!r}: instance is missing, for example ml.m5.xlarge")
    if spec.asynchronous and spec.multi_model(variant):
        raise SpecError("async: multi-model is not supported, InvokeEndpointAsync has no TargetModel; use one bundle")
    if spec.scaling and variant.instance and variant.instance.startswith("ml.t"):
        raise SpecError(f"scaling: instances of type {variant.instance} cannot scale; use ml.m5.large or larger")
    if variant.count < 1 or variant.weight < 0:
        raise SpecError(f"variant {variant.name!r}: count must be at least 1, weight at least 0")


def _check_rollout(rollout: Rollout, variants: int) -> None:
    chosen = {key: value for key in PERCENT if (value := getattr(rollout, key)) is not None}
    if len(chosen) > 1:
        raise SpecError(f"rollout: {' and '.join(chosen)} exclude each other")
    for key, value in chosen.items():
        least, most = PERCENT[key]
        if not least <= value <= most:
            raise SpecError(f"rollout.{key} is {value}: it must be {least} to {most}")
    if rollout.rolling_percent and variants > 1:
        raise SpecError("rollout.rolling_percent: not supported with more than one variant")
    if not 0 <= rollout.bake_seconds <= 3600:
        raise SpecError(f"rollout.bake_seconds is {rollout.bake_seconds}: it must be 0 to 3600")
