"""An endpoint's life: created, updated, rolled back, resized, deleted, in a thread of its own, while calls go on."""

import random
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from local_test.platform.calls import Call, PlatformError, Reply, ValidationError
from local_test.platform.deployments import Deployment, Step, deployment
from local_test.platform.fleets import Config, Fleet
from local_test.platform.health import Unhealthy
from local_test.platform.variants import Instance, Plan, Variant

LOOK = 0.2  # seconds between two looks at the alarms
IN_PROGRESS = ("Creating", "Updating", "RollingBack", "Deleting")


class Tell(Protocol):
    """Events.say, as far as it is used here."""

    def __call__(self, action: str, subject: str, detail: str = "") -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an endpoint needs of the platform."""

    make: Callable[[Plan], Instance]  # not started
    alarmed: Callable[[Sequence[str]], Sequence[str]]  # those of these CloudWatch alarms that are in ALARM
    say: Tell
    patience: float  # seconds that calls in flight get before their instance is stopped
    choice: random.Random


@dataclass(frozen=True, slots=True)
class Size:
    """What UpdateEndpointWeightsAndCapacities wants of a variant; None: as it is."""

    weight: float | None
    count: int | None


class Endpoint:
    """Built means that it is being created. Of its methods only `invoke` and `close` take their time."""

    def __init__(
        self, name: str, config: Config, around: Surroundings, deployment_config: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self._around = around
        self._lock = threading.Lock()  # guards all below
        self._status = "Creating"
        self._failure = ""
        self._modified = datetime.now(UTC)
        self._phase = "Creating"  # VariantStatus
        self._deployment = deployment_config
        self._fleet = self._new_fleet(config)  # takes the calls
        self._coming: Fleet | None = None  # takes its share of them
        self._share = 0.0
        self._closing = threading.Event()
        self._thread = self._begin(self._create)

    # What it is

    @property
    def status(self) -> str:
        return self._status

    @property
    def gone(self) -> bool:
        return self._status == "Deleted"

    @property
    def config(self) -> Config:
        """That of the fleet in service."""
        with self._lock:
            return self._fleet.config

    @property
    def busy(self) -> bool:
        """An update or a deletion must wait."""
        return self._status in IN_PROGRESS

    @property
    def deployment_config(self) -> Mapping[str, Any] | None:
        return self._deployment

    @property
    def sizes(self) -> dict[str, Size]:
        """Every variant's weight and count as they are now."""
        with self._lock:
            return {name: Size(each.weight, each.count) for name, each in self._fleet.variants.items()}

    def description(self) -> dict[str, Any]:
        """Members of DescribeEndpoint's answer."""
        with self._lock:
            fleet, coming = self._fleet, self._coming
            phases = [{"Status": self._phase}] if self._status in ("Creating", "Updating") else []
            said: dict[str, Any] = {
                "EndpointStatus": self._status,
                "EndpointConfigName": fleet.config.name,
                "LastModifiedTime": self._modified,
                "FailureReason": self._failure or None,
                "LastDeploymentConfig": self._deployment,
                "AsyncInferenceConfig": fleet.config.asynchronous,
            }
        said["ProductionVariants"] = [_shown(each, phases if not coming else []) for each in fleet.variants.values()]
        said["ShadowProductionVariants"] = [_shown(each, []) for each in fleet.shadows.values()] or None
        said["PendingDeploymentSummary"] = coming and {
            "EndpointConfigName": coming.config.name,
            "ProductionVariants": [_shown(each, phases) for each in coming.variants.values()],
        }
        return {key: value for key, value in said.items() if value is not None}

    # What is asked of it

    def invoke(self, call: Call, variant: str | None, session: str | None) -> tuple[Reply, str]:
        """The reply and its variant. Raises PlatformError."""
        with self._lock:
            if self._status in ("Creating", "Failed", "Deleting", "Deleted"):
                raise LookupError(self.name)
            fleet = self._fleet
            if self._coming and self._share and self._around.choice.random() < self._share:
                fleet = self._coming
        return fleet.invoke(self.name, call, variant, session)

    def update(self, config: Config, deployment_config: Mapping[str, Any] | None, counts: Mapping[str, int]) -> None:
        """A new fleet takes over by the steps of the deployment, or the old one stays."""
        with self._lock:
            self._change("Updating")
            self._deployment = deployment_config
            plan = deployment(deployment_config, sum(each.count for each in config.variants))
            self._thread = self._begin(lambda: self._update(config, plan, counts))

    def resize(self, sizes: Mapping[str, Size]) -> None:
        """Other weights and counts, or those that were."""
        with self._lock:
            self._change("Updating")
            self._thread = self._begin(lambda: self._resize(sizes))

    def delete(self) -> None:
        with self._lock:
            self._change("Deleting")
            self._thread = self._begin(self._stop)

    def close(self) -> None:
        """Whatever it is at, it is over, and its instances are gone when this returns."""
        self._closing.set()
        self._fleet.stop()
        coming = self._coming
        if coming:
            coming.stop()
        self._thread.join()
        self._fleet.stop()

    # What its thread does

    def _create(self) -> None:
        try:
            self._fleet.start()
        except (Unhealthy, PlatformError) as why:
            self._fleet.stop()
            self._settle("Failed", str(why))
        else:
            self._settle("InService")

    def _update(self, config: Config, plan: Deployment, counts: Mapping[str, int]) -> None:
        new = self._new_fleet(config)
        with self._lock:
            self._coming, self._share, self._phase = new, 0.0, "Creating"
        try:
            new.start(counts)
            self._shift(plan)
        except (Unhealthy, PlatformError, _Alarmed) as why:
            self._roll_back(new, str(why))
            return
        with self._lock:
            old, self._fleet = self._fleet, new
            self._coming, self._share = None, 0.0
        self._closing.wait(plan.termination_wait)
        old.stop()
        self._settle("InService")

    def _shift(self, plan: Deployment) -> None:
        for step in plan.steps:
            with self._lock:
                self._share, self._phase = step.share, "Baking" if step.wait else "ActivatingTraffic"
            self._around.say("traffic", self.name, f"{step.share:.0%} to the new fleet")
            self._bake(step, plan.alarms)

    def _bake(self, step: Step, alarms: Sequence[str]) -> None:
        """Waits out the step; an alarm ends it. Alarms are looked at at least once."""
        left = step.wait
        while True:
            raised = self._around.alarmed(alarms) if alarms else ()
            if raised:
                raise _Alarmed(f"The deployment was rolled back: in ALARM state: {', '.join(raised)}.")
            if left <= 0 or self._closing.wait(min(LOOK, left)):
                return
            left -= LOOK

    def _roll_back(self, new: Fleet, why: str) -> None:
        with self._lock:
            self._share = 0.0
            self._change("RollingBack")
        new.stop()
        with self._lock:
            self._coming = None
        self._settle("InService", why)

    def _resize(self, sizes: Mapping[str, Size]) -> None:
        before = self.sizes
        try:
            self._apply(sizes)
        except (Unhealthy, PlatformError) as why:
            with self._lock:
                self._change("RollingBack")
            self._apply(before)
            self._settle("InService", str(why))
        else:
            self._settle("InService")

    def _apply(self, sizes: Mapping[str, Size]) -> None:
        for name, size in sizes.items():
            variant = self._fleet.variants[name]
            if size.count is not None:
                variant.resize(size.count)
            if size.weight is not None:
                variant.weight = size.weight

    def _stop(self) -> None:
        self._fleet.stop()
        self._settle("Deleted")

    def _settle(self, status: str, failure: str = "") -> None:
        with self._lock:
            self._change(status, failure)

    def _change(self, status: str, failure: str = "") -> None:
        """With the lock held."""
        self._status, self._failure, self._modified = status, failure[:1024], datetime.now(UTC)
        self._phase = status
        self._around.say("endpoint", self.name, f"{status}: {failure}" if failure else status)

    def _begin(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(work,), name=f"endpoint {self.name}", daemon=True)
        thread.start()
        return thread

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            traceback.print_exc()
            self._settle("Failed", "Request to service failed: an error of the emulator's own, see its output.")

    def _new_fleet(self, config: Config) -> Fleet:
        return Fleet(config, self._around.make, self._around.patience, self._around.choice)


class _Alarmed(Exception):
    pass


def _shown(variant: Variant, phases: Sequence[Mapping[str, str]]) -> dict[str, Any]:
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


def not_found(name: str, account: str) -> ValidationError:
    """What a caller of an endpoint that is not in service is told."""
    return ValidationError(f"Endpoint {name} of account {account} not found.")
