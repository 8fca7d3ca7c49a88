"""An endpoint: created, updated, rolled back, resized and deleted in its own thread, while calls continue."""

import random
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from local_test.platform.calls import Call, PlatformError, Reply, ValidationError
from local_test.platform.clock import Clock
from local_test.platform.events import Events
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.deployment import Alarmed, Deployment, Step, deployment, shift
from local_test.platform.fleet.plans import Config, Plan
from local_test.platform.fleet.variants import Fleet, FleetInstance, Variant
from local_test.platform.monitoring.meters import Meter, unmetered

IN_PROGRESS = ("Creating", "Updating", "RollingBack", "Deleting")


@dataclass(frozen=True, slots=True)
class Size:
    """Weight and instance count of a variant; None in UpdateEndpointWeightsAndCapacities: unchanged."""

    weight: float | None
    count: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointContext:
    """The parts of the emulator that an endpoint uses."""

    account: str
    create_instance: Callable[[Plan], FleetInstance]  # returns an instance that is not started
    alarmed: Callable[[Sequence[str]], Sequence[str]]  # returns the CloudWatch alarms in state ALARM
    events: Events
    drain_limit: float  # seconds that calls in flight have before their instance is stopped
    random: random.Random
    clock: Clock = field(default_factory=Clock)
    meter: Callable[[str, str], Meter] = unmetered  # by the names of config and variant


class Endpoint:
    """Creation starts with construction. Only `invoke` and `close` block; all other methods return immediately."""

    def __init__(
        self, name: str, config: Config, context: EndpointContext, deployment_config: Mapping[str, Any] | None = None
    ) -> None:
        self.name = name
        self._context = context
        self._lock = threading.Lock()  # guards the fields below
        self._status = "Creating"
        self._failure = ""
        self._modified = datetime.now(UTC)
        self._phase = "Creating"  # VariantStatus
        self._deployment = deployment_config
        self._fleet = self._new_fleet(config)  # in service
        self._new: Fleet | None = None  # of the update in progress
        self._new_share = 0.0  # of the calls that go to the new fleet
        self._closing = threading.Event()
        self._thread = self._run(self._create)

    # State

    @property
    def status(self) -> str:
        """EndpointStatus; "Deleted" once the endpoint is deleted."""
        return self._status

    @property
    def deleted(self) -> bool:
        return self._status == "Deleted"

    @property
    def config(self) -> Config:
        """The config of the fleet in service."""
        with self._lock:
            return self._fleet.config

    @property
    def busy(self) -> bool:
        """Whether an operation is in progress: SageMaker refuses another one until then."""
        return self._status in IN_PROGRESS

    @property
    def deployment_config(self) -> Mapping[str, Any] | None:
        """DeploymentConfig of the last update."""
        return self._deployment

    @property
    def sizes(self) -> dict[str, Size]:
        """The current weight and count of each variant."""
        with self._lock:
            return {name: Size(each.weight, each.count) for name, each in self._fleet.variants.items()}

    def description(self) -> dict[str, Any]:
        """The members of DescribeEndpoint's answer that change while the endpoint runs."""
        with self._lock:
            fleet, new = self._fleet, self._new
            phases = [{"Status": self._phase}] if self._status in ("Creating", "Updating") else []
            described: dict[str, Any] = {
                "EndpointStatus": self._status,
                "EndpointConfigName": fleet.config.name,
                "LastModifiedTime": self._modified,
                "FailureReason": self._failure or None,
                "LastDeploymentConfig": self._deployment,
                "AsyncInferenceConfig": fleet.config.asynchronous,
            }
        described["ProductionVariants"] = [summary(each, phases if not new else []) for each in fleet.variants.values()]
        described["ShadowProductionVariants"] = [summary(each, []) for each in fleet.shadows.values()] or None
        described["PendingDeploymentSummary"] = new and {
            "EndpointConfigName": new.config.name,
            "ProductionVariants": [summary(each, phases) for each in new.variants.values()],
        }
        return {key: value for key, value in described.items() if value is not None}

    def snapshot(self) -> list[dict[str, Any]]:
        """What DescribeEndpoint does not show: each fleet with its share of the calls, its instances and models."""
        with self._lock:
            fleets = [(self._fleet, 1 - self._new_share)] + ([(self._new, self._new_share)] if self._new else [])
        return [{"share": share, **fleet.snapshot()} for fleet, share in fleets]

    # Operations

    def invoke(self, call: Call, variant: str | None, session: str | None) -> tuple[Reply, str]:
        """The reply, and the name of the variant that answered. Raises PlatformError."""
        with self._lock:
            if self._status in ("Creating", "Failed", "Deleting", "Deleted"):
                raise not_found(self.name, self._context.account)
            fleet = self._fleet
            if self._new and self._new_share and self._context.random.random() < self._new_share:
                fleet = self._new
        return fleet.invoke(self.name, call, variant, session)

    def update(self, config: Config, deployment_config: Mapping[str, Any] | None, counts: Mapping[str, int]) -> None:
        """Replaces the fleet in the steps of the deployment; a failure rolls back to the old fleet."""
        with self._lock:
            self._set_status("Updating")
            self._deployment = deployment_config
            plan = deployment(deployment_config, sum(each.count for each in config.variants)).real(self._context.clock)
            self._thread = self._run(lambda: self._update(config, plan, counts))

    def resize(self, sizes: Mapping[str, Size]) -> None:
        """Changes weights and counts; a failure restores the old ones."""
        with self._lock:
            self._set_status("Updating")
            self._thread = self._run(lambda: self._resize(sizes))

    def delete(self) -> None:
        """Stops all fleets, then the status is "Deleted"."""
        with self._lock:
            self._set_status("Deleting")
            self._thread = self._run(self._delete)

    def close(self) -> None:
        """Ends any operation in progress and stops all instances, without waiting for their calls."""
        self._closing.set()
        for fleet in (self._fleet, self._new):
            if fleet:
                fleet.skip_draining()
                fleet.stop()
        self._thread.join()
        self._fleet.stop()

    # The endpoint's thread

    def _create(self) -> None:
        try:
            self._fleet.start()
        except (Unhealthy, PlatformError) as error:
            self._fleet.stop()
            self._finish("Failed", str(error))
        else:
            self._finish("InService")

    def _update(self, config: Config, plan: Deployment, counts: Mapping[str, int]) -> None:
        new = self._new_fleet(config)
        with self._lock:
            self._new, self._new_share, self._phase = new, 0.0, "Creating"
        try:
            new.start(counts)
            shift(plan, self._take_step, self._context.alarmed, self._closing.wait)
        except (Unhealthy, PlatformError, Alarmed) as error:
            self._roll_back(new, str(error))
            return
        with self._lock:
            old, self._fleet = self._fleet, new
            self._new, self._new_share = None, 0.0
        self._closing.wait(plan.termination_wait)
        old.stop()
        self._finish("InService")

    def _take_step(self, step: Step) -> None:
        with self._lock:
            self._new_share, self._phase = step.share, "Baking" if step.wait else "ActivatingTraffic"
        self._context.events.emit("traffic", self.name, f"{step.share:.0%} to the new fleet")

    def _roll_back(self, new: Fleet, reason: str) -> None:
        with self._lock:
            self._new_share = 0.0
            self._set_status("RollingBack")
        new.stop()
        with self._lock:
            self._new = None
        self._finish("InService", reason)

    def _resize(self, sizes: Mapping[str, Size]) -> None:
        before = self.sizes
        try:
            self._apply(sizes)
        except (Unhealthy, PlatformError) as error:
            with self._lock:
                self._set_status("RollingBack")
            self._apply(before)
            self._finish("InService", str(error))
        else:
            self._finish("InService")

    def _apply(self, sizes: Mapping[str, Size]) -> None:
        for name, size in sizes.items():
            variant = self._fleet.variants[name]
            if size.count is not None:
                variant.resize(size.count)
            if size.weight is not None:
                variant.weight = size.weight

    def _delete(self) -> None:
        for fleet in (self._fleet, self._new):  # the new fleet exists if an update ended in an internal error
            if fleet:
                fleet.stop()
        self._finish("Deleted")

    def _finish(self, status: str, failure: str = "") -> None:
        with self._lock:
            self._set_status(status, failure)

    def _set_status(self, status: str, failure: str = "") -> None:
        """The caller holds the lock."""
        self._status, self._failure, self._modified = status, failure[:1024], datetime.now(UTC)
        self._phase = status
        self._context.events.emit("endpoint", self.name, f"{status}: {failure}" if failure else status)

    def _run(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(work,), name=f"endpoint {self.name}", daemon=True)
        thread.start()
        return thread

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            traceback.print_exc()
            self._finish("Failed", "Request to service failed: internal error of the emulator, see its output.")

    def _new_fleet(self, config: Config) -> Fleet:
        context = self._context
        meter = partial(context.meter, config.name)
        return Fleet(config, context.create_instance, context.drain_limit, context.random, meter)


def not_found(name: str, account: str) -> ValidationError:
    """The error for an endpoint that does not exist or is not in service."""
    return ValidationError(f"Endpoint {name} of account {account} not found.")


def retained(config: Config, sizes: Mapping[str, Size], excluded: Sequence[str]) -> tuple[Config, dict[str, int]]:
    """RetainAllVariantProperties: the new config with current weights, and current counts by variant.

    Variants that the old config does not have, and properties named in `excluded`, keep the new config's values.
    """
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
        size = {"CurrentInstanceCount": variant.count, "DesiredInstanceCount": variant.desired_count}
    images = [{"SpecifiedImage": spec.image, "ResolvedImage": spec.image} for spec in plan.specs]
    described = {
        "VariantName": plan.name,
        "DeployedImages": images,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
        **size,
    }
    return {**described, "VariantStatus": list(phases)} if phases else described
