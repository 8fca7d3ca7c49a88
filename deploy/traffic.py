"""The weights by which variants share the traffic, changed in place: no new configuration, no new fleet."""

from deploy.aws import Aws, Failed
from deploy.ownership import must_be_ours
from deploy.progress import Progress
from deploy.settling import arrived, existing, settled, why


def move(name: str, weights: dict[str, float], aws: Aws, progress: Progress) -> None:
    """Returns when the weights hold. Raises Failed."""
    must_be_ours(aws, existing(aws, name))
    now = settled(aws, name, progress) or existing(aws, name)
    old = {each["VariantName"]: each.get("CurrentWeight", 0.0) for each in now["ProductionVariants"]}
    for variant in weights:
        if variant not in old:
            raise Failed(f"endpoint {name} has no variant {variant}, but: {', '.join(old)}")
    if not any({**old, **weights}.values()):
        raise Failed(f"no variant of {name} would have a weight over 0: nobody would get the traffic")
    if all(old[variant] == weight for variant, weight in weights.items()):
        return
    wanted = [{"VariantName": variant, "DesiredWeight": weight} for variant, weight in weights.items()]
    aws.client("sagemaker").update_endpoint_weights_and_capacities(
        EndpointName=name, DesiredWeightsAndCapacities=wanted
    )
    after = arrived(aws, name, progress, now)
    got = {each["VariantName"]: each.get("CurrentWeight") for each in after["ProductionVariants"]} if after else {}
    if after is None or any(got.get(variant) != weight for variant, weight in weights.items()):
        raise Failed(f"the weights did not change: {why(aws, after) if after else 'the endpoint is gone'}")
    for variant, weight in weights.items():
        progress.changed(f"{variant}: {old[variant]:g} -> {weight:g}")
