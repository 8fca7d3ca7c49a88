"""How an update moves traffic: DeploymentConfig as steps.

docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails.html
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    share: float  # of the calls that go to the new fleet, 0 to 1
    wait: float  # seconds, during which an alarm rolls back


@dataclass(frozen=True, slots=True)
class Deployment:
    steps: tuple[Step, ...] = (Step(1.0, 0.0),)
    termination_wait: float = 0.0
    alarms: tuple[str, ...] = ()


def deployment(config: Mapping[str, Any] | None, instances: int) -> Deployment:
    """`instances` of the new fleet: sizes may be given as a number of them."""
    if not config:
        return Deployment()
    alarms = tuple(alarm["AlarmName"] for alarm in config.get("AutoRollbackConfiguration", {}).get("Alarms", ()))
    rolling = config.get("RollingUpdatePolicy")
    if rolling:
        wait = float(rolling["WaitIntervalInSeconds"])
        return Deployment(tuple(_linear(_share(rolling["MaximumBatchSize"], instances), wait)), 0.0, alarms)
    policy = config.get("BlueGreenUpdatePolicy")
    if not policy:
        return Deployment(alarms=alarms)
    routing = policy["TrafficRoutingConfiguration"]
    wait = float(routing["WaitIntervalInSeconds"])
    if routing["Type"] == "CANARY":
        steps: tuple[Step, ...] = (Step(_share(routing["CanarySize"], instances), wait), Step(1.0, wait))
    elif routing["Type"] == "LINEAR":
        steps = tuple(_linear(_share(routing["LinearStepSize"], instances), wait))
    else:
        steps = (Step(1.0, wait),)
    return Deployment(steps, float(policy.get("TerminationWaitInSeconds", 0)), alarms)


def _share(size: Mapping[str, Any], instances: int) -> float:
    whole = 100 if size["Type"] == "CAPACITY_PERCENT" else max(instances, 1)
    return min(float(size["Value"]) / whole, 1.0)


def _linear(share: float, wait: float) -> Iterator[Step]:
    for number in range(1, math.ceil(1 / share - 1e-9) + 1):
        yield Step(min(number * share, 1.0), wait)
