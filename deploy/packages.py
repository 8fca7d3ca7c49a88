"""Model packages of the registry: the newest approved one of a group, approval, and a list of all with their metrics.

docs.aws.amazon.com/sagemaker/latest/dg/model-registry.html
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from deploy.aws import Aws, is_missing
from deploy.errors import Failed
from deploy.progress import Progress
from deploy.spec import S3, Spec, Variant

APPROVED, PENDING, REJECTED = "Approved", "PendingManualApproval", "Rejected"
LARGEST = 1 << 20  # bytes of a file of metrics that is read
SHOWN = 3  # metrics of a package in the table

Package = Mapping[str, Any]  # DescribeModelPackage's response


def group_of(package: str) -> str:
    """The group of a package's ARN; a group's name is its own."""
    return package.partition(":model-package/")[2].partition("/")[0] or package


def resolved(spec: Spec, aws: Aws) -> Spec:
    """The spec with the ARN, image and data of each model package, the newest approved one of a group.

    Raises Failed if a group has no approved package.
    """
    if not spec.packages:
        return spec
    found = {each: _deployable(aws, each) for each in spec.packages}

    def variant(each: Variant) -> Variant:
        package = spec.package_of(each)
        return each if package is None else _with(each, found[package])

    return replace(spec, variants=tuple(map(variant, spec.variants)))


def unresolved(spec: Spec, region: str) -> Spec:
    """The spec with a placeholder for the ARN of each group's package, without a call."""

    def variant(each: Variant) -> Variant:
        package = spec.package_of(each)
        if package is None or package.startswith("arn:"):
            return each
        return replace(each, model_package=f"arn:aws:sagemaker:{region}:{'0' * 12}:model-package/{package}/0")

    return replace(spec, variants=tuple(map(variant, spec.variants)))


def described(aws: Aws, arn: str) -> Package:
    """Raises Failed if the package does not exist."""
    try:
        found: Package = aws.client("sagemaker").describe_model_package(ModelPackageName=arn)
    except ClientError as error:
        if _is_unknown(error):
            raise Failed(f"model package {arn} not found: `python -m deploy models --packages` lists them") from error
        raise
    return found


def summaries(aws: Aws, group: str) -> list[Package]:
    """The packages of a group, the newest first. Raises Failed if the group does not exist."""
    pages = aws.client("sagemaker").get_paginator("list_model_packages").paginate(ModelPackageGroupName=group)
    try:
        found = [each for page in pages for each in page["ModelPackageSummaryList"]]
        if not found:
            aws.client("sagemaker").describe_model_package_group(ModelPackageGroupName=group)
    except ClientError as error:
        if _is_unknown(error):
            raise Failed(
                f"model package group {group} not found in {aws.region}: check the name, and --region"
            ) from error
        raise
    return sorted(found, key=lambda each: -each["ModelPackageVersion"])


def decide(aws: Aws, arn: str, status: str, note: str | None, progress: Progress) -> bool:
    """Approve or reject a package, with a note; whether that changed something."""
    now = described(aws, arn)
    if now.get("ModelPackageVersion") is None:
        raise Failed(f"model package {arn} has no version, so it needs no approval: only packages of a group do")
    if now.get("ModelApprovalStatus") == status and note in (None, now.get("ApprovalDescription")):
        return False
    more = {} if note is None else {"ApprovalDescription": note}
    aws.client("sagemaker").update_model_package(
        ModelPackageArn=now["ModelPackageArn"], ModelApprovalStatus=status, **more
    )
    progress.changed(f"{now['ModelPackageArn']}: {now.get('ModelApprovalStatus')} -> {status}")
    return True


def report(aws: Aws, group: str | None) -> list[dict[str, Any]]:
    """All packages of the group, or of every group, the newest first."""
    groups = [group] if group else [each["ModelPackageGroupName"] for each in _groups(aws)]
    return [_line(aws, described(aws, each["ModelPackageArn"])) for name in groups for each in summaries(aws, name)]


def text(packages: list[dict[str, Any]]) -> str:
    """The report as lines for a terminal: two a package."""
    lines = []
    for each in packages:
        metrics = ", ".join(f"{key} {value:.4g}" for key, value in list(each["metrics"].items())[:SHOWN])
        head = (f"{each['group']} {each['version']}", f"{each['status']:<21}", each["created"][:16].replace("T", " "))
        lines += ["  ".join([*head, metrics]).rstrip(), f"  {each['arn']}"]
        lines += [f"  {key}  {each[key]}" for key in ("data", "note") if each[key]]
    return "\n".join(lines) or "no model packages"


def _deployable(aws: Aws, package: str) -> Package:
    if package.startswith("arn:"):
        found = described(aws, package)
        status = found.get("ModelApprovalStatus", APPROVED)  # a package without a version has none
        if status != APPROVED:
            raise Failed(f"model package {package} is {status}\n  approve it: python -m deploy approve {package}")
        return found
    listed = summaries(aws, package)
    approved = next((each for each in listed if each.get("ModelApprovalStatus") == APPROVED), None)
    if approved is not None:
        return described(aws, approved["ModelPackageArn"])
    pending = [each["ModelPackageArn"] for each in listed if each.get("ModelApprovalStatus") == PENDING]
    if not pending:
        advice = "all are rejected" if listed else "register one: a RegisterModel step of a pipeline does"
        raise Failed(f"model package group {package} has no approved model package\n  {advice}")
    raise Failed(
        f"model package group {package} has no approved model package; pending: {', '.join(pending)}\n"
        f"  approve one: python -m deploy approve {pending[0]}"
    )


def _with(variant: Variant, package: Package) -> Variant:
    arn, containers = package["ModelPackageArn"], package.get("InferenceSpecification", {}).get("Containers", [])
    if len(containers) != 1:
        raise Failed(f"model package {arn} has {len(containers)} containers: an endpoint of a spec has one")
    (container,) = containers
    source = container.get("ModelDataSource", {}).get("S3DataSource")
    models = source["S3Uri"] if source else container.get("ModelDataUrl")
    if models and not S3.fullmatch(models):
        raise Failed(f"model package {arn}: data {models!r} must be s3://bucket/key")
    uncompressed = bool(source and source.get("CompressionType") == "None")
    return replace(variant, model_package=arn, image=container["Image"], models=models, uncompressed=uncompressed)


def _groups(aws: Aws) -> Iterator[Package]:
    pages = aws.client("sagemaker").get_paginator("list_model_package_groups")
    for page in pages.paginate(SortBy="Name", SortOrder="Ascending"):
        yield from page["ModelPackageGroupSummaryList"]


def _line(aws: Aws, package: Package) -> dict[str, Any]:
    container: Package = next(iter(package.get("InferenceSpecification", {}).get("Containers", [])), {})
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    return {
        "group": package["ModelPackageGroupName"],
        "version": package["ModelPackageVersion"],
        "status": package.get("ModelApprovalStatus"),
        "note": package.get("ApprovalDescription"),
        "created": package["CreationTime"].isoformat(),
        "arn": package["ModelPackageArn"],
        "image": container.get("Image"),
        "data": container.get("ModelDataUrl") or source.get("S3Uri"),
        "metrics": _metrics(aws, package),
    }


def _metrics(aws: Aws, package: Package) -> dict[str, float]:
    """The numbers in the package's file of model quality, by their path; none if it cannot be read."""
    uri = package.get("ModelMetrics", {}).get("ModelQuality", {}).get("Statistics", {}).get("S3Uri", "")
    found = S3.fullmatch(uri)
    if not found:
        return {}
    try:
        answer = aws.client("s3").get_object(Bucket=found[1], Key=found[2])
        content = json.loads(answer["Body"].read(LARGEST))
    except (ClientError, BotoCoreError, ValueError):
        return {}
    return dict(_numbers(content, ""))


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """SageMaker's form is {"regression_metrics": {"mse": {"value": 4.2}}}: the names between are left out."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _numbers(each, path if key == "value" else f"{path}.{key}".lstrip("."))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def _is_unknown(error: ClientError) -> bool:
    return is_missing(error) or "does not exist" in str(error) or "not found" in str(error)
