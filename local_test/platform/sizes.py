"""How many instances a variant has, and which share of the calls: as it is, and as DescribeEndpoint shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from local_test.platform.plans import Config
from local_test.platform.variants import Variant


@dataclass(frozen=True, slots=True)
class Size:
    """What UpdateEndpointWeightsAndCapacities wants of a variant; None: as it is."""

    weight: float | None
    count: int | None


def retained(config: Config, sizes: Mapping[str, Size], excluded: Sequence[str]) -> tuple[Config, dict[str, int]]:
    """RetainAllVariantProperties: counts and weights as they are now, of variants that stay, less excluded kinds."""
    variants, counts = [], {}
    for plan in config.variants:
        size = sizes.get(plan.name)
        if size and size.count and "DesiredInstanceCount" not in excluded:
            counts[plan.name] = size.count
        if size and size.weight is not None and "DesiredWeight" not in excluded:
            plan = replace(plan, weight=size.weight)
        variants.append(plan)
    return replace(config, variants=tuple(variants)), counts


def summary(variant: Variant, phases: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A ProductionVariantSummary."""
    plan = variant.plan
    if plan.serverless:
        size: dict[str, Any] = {"CurrentServerlessConfig": plan.serverless, "DesiredServerlessConfig": plan.serverless}
    else:
        size = {"CurrentInstanceCount": variant.count, "DesiredInstanceCount": variant.wanted}
    images = [{"SpecifiedImage": spec.image, "ResolvedImage": spec.image} for spec in plan.specs]
    said = {
        "VariantName": plan.name,
        "DeployedImages": images,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
        **size,
    }
    return {**said, "VariantStatus": list(phases)} if phases else said
