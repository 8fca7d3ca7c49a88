"""An endpoint as it is: what runs, what it should be, who gets the traffic, when it goes."""

from collections.abc import Sequence
from typing import Any

from botocore.exceptions import ClientError

from deploy import scaling, schedule
from deploy.aws import Aws, denied, is_missing
from deploy.settling import existing, stage


def status(aws: Aws, name: str) -> dict[str, Any]:
    """As data. Raises Failed where there is no such endpoint."""
    now = existing(aws, name)
    scales = {variant: _range(target) for variant, target in scaling.registered(aws, name).items()}
    return {
        "endpoint": name,
        "status": stage(now),
        "reason": now.get("FailureReason"),
        "config": now["EndpointConfigName"],
        "changed": f"{now['LastModifiedTime']:%Y-%m-%d %H:%M:%S}",
        "deleted_at": schedule.when(aws, name),
        "variants": [_variant(each, aws, now, scales) for each in now.get("ProductionVariants", ())],
    }


def _variant(variant: Any, aws: Aws, endpoint: Any, scales: dict[str, str]) -> dict[str, Any]:
    name = variant["VariantName"]
    said = {
        "variant": name,
        "instances": variant.get("CurrentInstanceCount"),
        "wanted": variant.get("DesiredInstanceCount"),
        "weight": variant.get("CurrentWeight"),
        "scaling": scales.get(name, "fixed"),
        "image": next(
            (each.get("ResolvedImage", each.get("SpecifiedImage")) for each in variant.get("DeployedImages", ())), None
        ),
    }
    return {**said, **_planned(aws, endpoint["EndpointConfigName"], name)}


def _planned(aws: Aws, config: str, variant: str) -> dict[str, Any]:
    """What the configuration and the model say: instance type and where the models are."""
    sagemaker = aws.client("sagemaker")
    try:
        variants = sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
        found = next(each for each in variants if each["VariantName"] == variant)
        container = sagemaker.describe_model(ModelName=found["ModelName"]).get("PrimaryContainer", {})
    except (ClientError, StopIteration) as error:
        if isinstance(error, ClientError) and not (is_missing(error) or denied(error)):
            raise
        return {}
    source = container.get("ModelDataSource", {}).get("S3DataSource", {}).get("S3Uri")
    return {
        "instance": found.get("InstanceType", "serverless"),
        "model": found["ModelName"],
        "models": container.get("ModelDataUrl") or source,
        "multi_model": container.get("Mode") == "MultiModel",
    }


def _range(target: Any) -> str:
    return f"{target['MinCapacity']}-{target['MaxCapacity']}"


def text(said: dict[str, Any]) -> str:
    """For people."""
    head = [(key, said[key]) for key in ("endpoint", "status", "reason", "config", "changed")]
    if said["deleted_at"]:
        head.append(("deleted at", said["deleted_at"]))
    lines = [f"{key:<11} {value}" for key, value in head if value]
    rows = [["variant", "instance", "now/wanted", "weight", "scaling"]]
    for each in said["variants"]:
        weight = "" if each["weight"] is None else f"{each['weight']:g}"
        counts = "" if each["instances"] is None else f"{each['instances']}/{each['wanted']}"
        rows.append([each["variant"], each.get("instance", ""), counts, weight, each["scaling"]])
    head_row, *table = _table(rows)
    lines += ["", head_row]
    for row, each in zip(table, said["variants"], strict=True):
        name, at, digest = str(each["image"] or "").rpartition("/")[2].partition("@sha256:")
        beside = (("models", each.get("models")), ("image", name + at + digest[:12]))
        lines += [row, *(f"  {key:<6} {value}" for key, value in beside if value)]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
