"""A spec's file, read strictly, and what no single value of it shows: what AWS cannot do together, names too long."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

from deploy.spec import S3, Rollout, Serverless, Spec, Variant
from deploy.table import SpecError, read

# SageMaker takes 63 characters; ours end in a hyphen and eight of a hash (deploy/requests.py).
LONGEST_NAME = 54
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
ROLE = re.compile(r"[\w+=,.@-]{1,64}")
# docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html, "feature exclusions"
NOT_SERVERLESS = (
    "VpcConfig",
    "EnableNetworkIsolation",
    "DataCaptureConfig",
    "ShadowProductionVariants",
    "ExplainerConfig",
)
PERCENT = {"canary_percent": (1, 50), "linear_percent": (10, 50), "rolling_percent": (5, 50)}  # of AWS's documents


def load(path: Path) -> Spec:
    """The spec in a file. Raises SpecError, which names the file."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return checked(read(Spec, table))
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not TOML: {error}") from error
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def checked(spec: Spec) -> Spec:
    """The spec with at least one variant. Raises SpecError for what no single value shows."""
    if not spec.variants:
        spec = replace(spec, variants=(Variant(),))
    _check_name(spec.name)
    names = [variant.name for variant in spec.variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SpecError(f"two variants are called {twice!r}")
    for variant in spec.variants:
        _check_variant(spec, variant)
    if spec.serverless:
        _check_serverless(spec, spec.serverless)
    for key, uri in (*spec.written, *spec.read):
        if not S3.fullmatch(uri):
            raise SpecError(f"{key} {uri.rstrip('/')!r} must be s3://bucket/prefix/")
    if spec.scaling and not 1 <= spec.scaling.min <= spec.scaling.max:
        raise SpecError(f"scaling: min {spec.scaling.min} and max {spec.scaling.max} must be 1 <= min <= max")
    if spec.scaling and spec.scaling.invocations_per_instance <= 0:
        raise SpecError(
            "scaling.invocations_per_instance must be more than 0: calls a minute that one instance is to take"
        )
    if spec.role and not spec.role.startswith("arn:") and not ROLE.fullmatch(spec.role):
        raise SpecError(f"role {spec.role!r} must be an ARN, or a name of 1 to 64 letters, digits and _+=,.@-")
    if not any(variant.weight for variant in spec.variants):
        raise SpecError("no variant has a weight over 0: nobody would get the traffic")
    if spec.rollout:
        _check_rollout(spec.rollout, len(spec.variants))
    return spec


def _check_serverless(spec: Spec, asked: Serverless) -> None:
    if spec.scaling or spec.asynchronous or len(spec.variants) > 1:
        raise SpecError(
            "serverless: it scales by itself, answers at once and has one variant; take out [scaling], [async] and "
            "further [[variant]]"
        )
    for key in NOT_SERVERLESS:
        if key in spec.aws:
            raise SpecError(f"serverless: AWS has no {key} with it")
    if spec.rollout and spec.rollout.rolling_percent:
        raise SpecError("serverless: AWS has no rolling updates with it; canary_percent or linear_percent")
    if asked.memory_mb not in range(1024, 6145, 1024):
        raise SpecError(f"serverless.memory_mb is {asked.memory_mb}: it must be 1024, 2048 ... 6144")
    if asked.provisioned is not None and asked.provisioned > asked.concurrency:
        raise SpecError(f"serverless.provisioned {asked.provisioned} is over concurrency, which is {asked.concurrency}")


def _check_name(name: str) -> None:
    if len(name) > LONGEST_NAME or not NAME.fullmatch(name):
        raise SpecError(
            f"name {name[:80]!r} must be 1 to {LONGEST_NAME} letters, digits and inner hyphens: names of models and "
            "configurations are made from it, and SageMaker takes 63"
        )


def _check_variant(spec: Spec, variant: Variant) -> None:
    models, uncompressed = spec.models_of(variant)
    if models is not None:
        if not S3.fullmatch(models):
            raise SpecError(f"models {models!r} must be s3://bucket/key")
        if not models.endswith(("/", ".tar.gz")):
            raise SpecError(f"models {models!r} must end in / (a prefix of models) or .tar.gz (one bundle)")
        if uncompressed and not models.endswith("/"):
            raise SpecError(f"uncompressed: {models!r} must end in /, as a prefix does")
    if spec.serverless:
        refused = {"instance": variant.instance is not None, "models": bool(models and models.endswith("/"))}
        for key in (key for key, given in refused.items() if given):
            raise SpecError(f"serverless: {key} cannot be had with it (models: only one .tar.gz)")
    elif variant.instance is None:
        raise SpecError(f"variant {variant.name!r}: instance is missing, ml.m5.xlarge for one")
    if spec.asynchronous and spec.multi_model(variant):
        raise SpecError("async: InvokeEndpointAsync has no TargetModel, so it needs one bundle and no prefix of models")
    if spec.scaling and variant.instance and variant.instance.startswith("ml.t"):
        raise SpecError(f"scaling: instances of type {variant.instance} cannot scale; take ml.m5.large or larger")
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
        raise SpecError("rollout: rolling updates are for endpoints of one variant")
    if not 0 <= rollout.bake_seconds <= 3600:
        raise SpecError(f"rollout.bake_seconds is {rollout.bake_seconds}: it must be 0 to 3600")
