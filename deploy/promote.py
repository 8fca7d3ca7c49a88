"""Promotion: production gets the very image and model data that staging serves and that its smoke calls have tested."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from botocore.exceptions import ClientError

from deploy import drift, endpoint, invoke, plan
from deploy.aws import Aws, code, is_missing
from deploy.endpoint import Outcome
from deploy.errors import Failed, SpecError
from deploy.invoke import Check
from deploy.models.store import HASHED
from deploy.progress import Progress
from deploy.spec import S3, Spec, Variant

SUFFIX = ".tar.gz"
Versions = Mapping[str, str]  # of model data: the URI of each object -> its ETag


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What a variant serves, by digests: an image and model data, or a model package."""

    image: str
    models: str | None
    uncompressed: bool
    model_package: str | None

    def lines(self) -> list[str]:
        """The keys of a spec that name it."""
        if self.model_package:
            return [f'model_package = "{self.model_package}"']
        given = [f'image = "{self.image}"', *([f'models = "{self.models}"'] if self.models else [])]
        return [*given, *(["uncompressed = true"] if self.uncompressed else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    outcome: Outcome
    artifacts: Mapping[str, Artifact]  # of each variant of production
    versions: Versions


def promote(
    staging: Spec,
    production: Spec,
    aws: Aws,
    progress: Progress,
    *,
    before: list[Check],
    after: list[Check],
) -> Promotion:
    """Call staging's models, copy their data where production keeps its own, and update production.

    Raises Failed if staging has drifted from its spec, if a call fails, or if production rolls back.
    """
    staging = at(staging, artifacts_of(staging, staging, aws))  # a tag that moves from here on changes nothing
    found = drift.differences(staging, aws)
    if found:
        lines = "\n  ".join(each.line for each in found)
        raise Failed(f"{staging.name} is not as its spec says, so nothing was promoted:\n  {lines}")
    artifacts = artifacts_of(staging, production, aws)
    sources = sorted({each.models for each in artifacts.values() if each.models})
    tested = {uri: versions(aws, uri) for uri in sources}
    invoke.run_checks(aws, staging, before, progress)
    for uri in sources:
        if versions(aws, uri) != tested[uri]:
            raise Failed(f"{uri} was changed during the smoke calls, so nothing was promoted: promote again")
    moved = {
        name: replace(each, models=_moved(aws, each, production, tested, progress)) for name, each in artifacts.items()
    }
    wanted = at(production, moved)
    smoke = (lambda: invoke.run_checks(aws, wanted, after, progress)) if after else None
    outcome = endpoint.up(wanted, aws, progress, smoke=smoke)
    return Promotion(
        outcome=outcome, artifacts=moved, versions={key: etag for each in tested.values() for key, etag in each.items()}
    )


def artifacts_of(staging: Spec, production: Spec, aws: Aws) -> dict[str, Artifact]:
    """The artifact of each variant of production: that of staging's variant of this name, or of all its variants."""
    images = {each: plan.resolved_image(aws, each) for each in plan.images(staging)}

    def artifact(variant: Variant) -> Artifact:
        models, uncompressed = staging.models_of(variant)
        package, image = staging.package_of(variant), staging.image_of(variant)
        return Artifact(image=images.get(image, image), models=models, uncompressed=uncompressed, model_package=package)

    theirs = {each.name: artifact(each) for each in staging.variants}
    same = len(set(theirs.values())) == 1
    missing = [each.name for each in production.variants if not same and each.name not in theirs]
    if missing:
        raise SpecError(
            f"{production.name}: variant {missing[0]}: the variants of {staging.name} serve different models, "
            f"and none has this name; its variants: {', '.join(theirs)}"
        )
    first = next(iter(theirs.values()))
    return {each.name: first if same else theirs[each.name] for each in production.variants}


def at(production: Spec, artifacts: Mapping[str, Artifact]) -> Spec:
    """Production's spec with these artifacts in place of its own image, models and model packages."""

    def variant(each: Variant) -> Variant:
        found = artifacts[each.name]
        return replace(
            each,
            image=found.image,
            models=found.models,
            uncompressed=found.uncompressed,
            model_package=found.model_package,
        )

    return replace(
        production,
        image="",
        models=None,
        uncompressed=False,
        model_package=None,
        variants=tuple(map(variant, production.variants)),
    )


# Model data


def versions(aws: Aws, uri: str) -> Versions:
    """The ETag of each object of model data: of one archive, or of all below a prefix. Raises Failed if none exists."""
    bucket, key = _bucket_and_key(uri)
    pages = aws.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
    listed = [each for page in pages for each in page.get("Contents", ())]
    found = {f"s3://{bucket}/{each['Key']}": str(each["ETag"]) for each in listed if _is_of(key, each["Key"])}
    if not found:
        raise Failed(f"{uri}: no model data found")
    return found


def _is_of(wanted: str, key: str) -> bool:
    return key == wanted or not wanted or wanted.endswith("/")


def _moved(
    aws: Aws, artifact: Artifact, production: Spec, tested: Mapping[str, Versions], progress: Progress
) -> str | None:
    """The URI of the data for production: its copy below production's own prefix, or staging's if that has none."""
    source, target = artifact.models, production.models
    if source is None or artifact.model_package or target is None or target == source:
        return source
    if artifact.uncompressed:
        raise SpecError(
            f"{production.name}: models {target!r}: an uncompressed bundle is not copied; "
            f'set models = "{source}" in the spec of production, and uncompressed = true'
        )
    into = target if target.endswith("/") else target[: target.rindex("/") + 1]
    if source.endswith("/"):
        if not target.endswith("/"):
            raise SpecError(f"{production.name}: models {target!r} must be a prefix, which ends in /, as {source!r} is")
        for uri, etag in tested[source].items():
            _copy(aws, uri, etag, into + uri.removeprefix(source), progress)
        return target
    return _copy(aws, source, tested[source][source], into + _copied_name(source, tested[source][source]), progress)


def _copied_name(source: str, etag: str) -> str:
    """NAME-HASH.tar.gz, as `put` names it; another archive's name gets its ETag, so that no key is overwritten."""
    stem = source.rpartition("/")[2].removesuffix(SUFFIX)
    return f"{stem}{SUFFIX}" if HASHED.search(stem) else f"{stem}-{etag.strip(chr(34))[:8]}{SUFFIX}"


def _copy(aws: Aws, source: str, etag: str, target: str, progress: Progress) -> str:
    """Copy this version of an object, unless the target has its content. Raises Failed if either has another."""
    s3, (bucket, key), (into, name) = aws.client("s3"), _bucket_and_key(source), _bucket_and_key(target)
    size = s3.head_object(Bucket=bucket, Key=key, IfMatch=etag)["ContentLength"]
    try:
        there: Mapping[str, Any] | None = s3.head_object(Bucket=into, Key=name)
    except ClientError as error:
        if not (is_missing(error) or code(error) == "404"):
            raise
        there = None
    if there is None:
        s3.copy({"Bucket": bucket, "Key": key}, into, name, ExtraArgs={"CopySourceIfMatch": etag})
        progress.changed(f"{source} copied to {target}")
    # A copy in parts has another ETag than its source; then the size must do.
    elif there["ContentLength"] != size or not ({"-"} & {*there["ETag"], *etag} or there["ETag"] == etag):
        raise Failed(f"{target} exists with other content than {source}: put the model under a name of its own")
    return target


def _bucket_and_key(uri: str) -> tuple[str, str]:
    found = S3.fullmatch(uri)
    assert found, uri  # the spec was checked
    return found[1], found[2]


def pinned(artifacts: Mapping[str, Artifact]) -> Iterator[str]:
    """The lines that make production's spec name what it serves now."""
    if len(set(artifacts.values())) == 1:
        yield from next(iter(artifacts.values())).lines()
        return
    for name, each in artifacts.items():
        yield f"# variant {name}"
        yield from each.lines()
