"""An endpoint's life: created, updated, rolled back, resized, deleted, in a thread of its own, while calls go on."""

import random
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from local_test.platform.calls import Call, PlatformError, Reply, ValidationError
from local_test.platform.events import Events
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.deployment import Alarmed, Deployment, Step, deployment, shift
from local_test.platform.fleet.plans import Config, Plan
from local_test.platform.fleet.variants import Fleet, Instance, Variant


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


IN_PROGRESS = ("Creating", "Updating", "RollingBack", "Deleting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an endpoint needs of the platform."""

    account: str
    make: Callable[[Plan], Instance]  # not started
    alarmed: Callable[[Sequence[str]], Sequence[str]]  # those of these CloudWatch alarms that are in ALARM
    events: Events
    patience: float  # seconds that calls in flight get before their instance is stopped
    choice: random.Random


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
        said["ProductionVariants"] = [summary(each, phases if not coming else []) for each in fleet.variants.values()]
        said["ShadowProductionVariants"] = [summary(each, []) for each in fleet.shadows.values()] or None
        said["PendingDeploymentSummary"] = coming and {
            "EndpointConfigName": coming.config.name,
            "ProductionVariants": [summary(each, phases) for each in coming.variants.values()],
        }
        return {key: value for key, value in said.items() if value is not None}

    # What is asked of it

    def invoke(self, call: Call, variant: str | None, session: str | None) -> tuple[Reply, str]:
        """The reply and its variant. Raises PlatformError."""
        with self._lock:
            if self._status in ("Creating", "Failed", "Deleting", "Deleted"):
                raise not_found(self.name, self._around.account)
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
        """Whatever it is at, it is over, calls too, and its instances are gone when this returns."""
        self._closing.set()
        for fleet in (self._fleet, self._coming):
            if fleet:
                fleet.hurry()
                fleet.stop()
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
            shift(plan, self._turn, self._around.alarmed, self._closing.wait)
        except (Unhealthy, PlatformError, Alarmed) as why:
            self._roll_back(new, str(why))
            return
        with self._lock:
            old, self._fleet = self._fleet, new
            self._coming, self._share = None, 0.0
        self._closing.wait(plan.termination_wait)
        old.stop()
        self._settle("InService")

    def _turn(self, step: Step) -> None:
        with self._lock:
            self._share, self._phase = step.share, "Baking" if step.wait else "ActivatingTraffic"
        self._around.events.say("traffic", self.name, f"{step.share:.0%} to the new fleet")

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
        for fleet in (self._fleet, self._coming):  # the second where an update ended in an error of our own
            if fleet:
                fleet.stop()
        self._settle("Deleted")

    def _settle(self, status: str, failure: str = "") -> None:
        with self._lock:
            self._change(status, failure)

    def _change(self, status: str, failure: str = "") -> None:
        """With the lock held."""
        self._status, self._failure, self._modified = status, failure[:1024], datetime.now(UTC)
        self._phase = status
        self._around.events.say("endpoint", self.name, f"{status}: {failure}" if failure else status)

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


def not_found(name: str, account: str) -> ValidationError:
    """What a caller of an endpoint that is not in service is told."""
    return ValidationError(f"Endpoint {name} of account {account} not found.")
