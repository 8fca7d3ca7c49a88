"""Traffic shifting of an update: DeploymentConfig as a list of steps.

docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails.html
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local_test.platform.clock import Clock

ALARM_POLL = 0.2  # seconds between two reads of the alarms
# Starting the new fleet takes processor time from the old one, as on no SageMaker, and may raise an alarm of latency.
SETTLE = 180.0  # seconds in which an alarm may end before the first step


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a deployment."""

    share: float  # of the calls that go to the new fleet, 0 to 1
    wait: float  # seconds in which an alarm rolls the deployment back


@dataclass(frozen=True, slots=True)
class Deployment:
    """All steps, the time before the old fleet is stopped, and the alarms."""

    steps: tuple[Step, ...] = (Step(1.0, 0.0),)
    termination_wait: float = 0.0
    alarms: tuple[str, ...] = ()
    settle: float = 0.0  # seconds in which an alarm may end before the first step

    def real(self, clock: Clock) -> "Deployment":
        """The same with times in real seconds."""
        steps = tuple(Step(step.share, clock.real(step.wait)) for step in self.steps)
        return Deployment(steps, clock.real(self.termination_wait), self.alarms, clock.real(self.settle))


def deployment(config: Mapping[str, Any] | None, instances: int) -> Deployment:
    """The deployment of a DeploymentConfig. `instances` is the size of the new fleet, for sizes in INSTANCE_COUNT."""
    if not config:
        return Deployment()
    alarms = tuple(alarm["AlarmName"] for alarm in config.get("AutoRollbackConfiguration", {}).get("Alarms", ()))
    rolling = config.get("RollingUpdatePolicy")
    if rolling:
        wait = float(rolling["WaitIntervalInSeconds"])
        return Deployment(tuple(_linear(_share(rolling["MaximumBatchSize"], instances), wait)), 0.0, alarms, SETTLE)
    policy = config.get("BlueGreenUpdatePolicy")
    if not policy:
        return Deployment(alarms=alarms, settle=SETTLE)
    routing = policy["TrafficRoutingConfiguration"]
    wait = float(routing["WaitIntervalInSeconds"])
    if routing["Type"] == "CANARY":
        steps: tuple[Step, ...] = (Step(_share(routing["CanarySize"], instances), wait), Step(1.0, wait))
    elif routing["Type"] == "LINEAR":
        steps = tuple(_linear(_share(routing["LinearStepSize"], instances), wait))
    else:
        steps = (Step(1.0, wait),)
    return Deployment(steps, float(policy.get("TerminationWaitInSeconds", 0)), alarms, SETTLE)


class Alarmed(Exception):
    """An alarm ended a deployment; the message is the endpoint's FailureReason."""


def shift(
    plan: Deployment,
    take: Callable[[Step], None],
    alarmed: Callable[[Sequence[str]], Sequence[str]],
    wait: Callable[[float], bool],
) -> None:
    """Takes the steps of a deployment in order, and reads the alarms at least once in each step.

    `alarmed` returns the alarms in state ALARM. `wait` sleeps, and returns true when the deployment must end now.
    Raises Alarmed when an alarm is in state ALARM.
    """
    left = plan.settle
    while plan.alarms and left > 0 and alarmed(plan.alarms) and not wait(ALARM_POLL):
        left -= ALARM_POLL
    for step in plan.steps:
        take(step)
        left = step.wait
        while True:
            raised = alarmed(plan.alarms) if plan.alarms else ()
            if raised:
                raise Alarmed(f"The deployment was rolled back: in ALARM state: {', '.join(raised)}.")
            if left <= 0 or wait(min(ALARM_POLL, left)):
                break
            left -= ALARM_POLL


def _share(size: Mapping[str, Any], instances: int) -> float:
    whole = 100 if size["Type"] == "CAPACITY_PERCENT" else max(instances, 1)
    return min(float(size["Value"]) / whole, 1.0)


def _linear(share: float, wait: float) -> Iterator[Step]:
    for number in range(1, math.ceil(1 / share - 1e-9) + 1):
        yield Step(min(number * share, 1.0), wait)
