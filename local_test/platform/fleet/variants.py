"""Variants: the instances of one model, the choice of an instance for a call, and the fleet of all variants."""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from local_test.platform.calls import Call, PlatformError, Reply, ServiceUnavailable, Timings, ValidationError
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.plans import Config, Plan
from local_test.platform.monitoring.meters import Meter, invocation, unmetered

BUSY = 4  # calls in flight on an instance; a model with more calls is also sent to its next instance
SHADOW_CALLS = 4  # concurrent copies to shadow variants; further copies are queued


class FleetInstance(Protocol):
    """The part of an instance that a variant uses."""

    def snapshot(self) -> dict[str, Any]: ...
    def start(self) -> None: ...
    def invoke(self, call: Call) -> Reply: ...
    def stop(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Member:
    number: int
    instance: FleetInstance
    in_flight: int = 0


class Variant:
    """Instances of one model. `resize` adds and removes them; a removed instance first completes its calls."""

    def __init__(
        self,
        plan: Plan,
        create_instance: Callable[[Plan], FleetInstance],
        drain_limit: float,
        meter: Meter | None = None,
    ) -> None:
        self.plan = plan
        self.weight = plan.weight
        self._create_instance = create_instance
        self._meter = meter or unmetered()
        self._drain_limit = drain_limit  # seconds that an instance to be stopped waits for its calls in flight
        self._changed = threading.Condition()  # guards the fields below
        self._members: list[_Member] = []
        self._starting: list[_Member] = []
        self._numbers = 0
        self._next = 0
        self._sessions: dict[str, _Member] = {}
        self._stopped = False
        self._draining = True

    @property
    def count(self) -> int:
        """Instances in service."""
        with self._changed:
            return len(self._members)

    @property
    def desired_count(self) -> int:
        """Instances in service or starting."""
        with self._changed:
            return len(self._members) + len(self._starting)

    def snapshot(self) -> dict[str, Any]:
        """The state of the variant and its instances."""
        with self._changed:
            groups = (("InService", list(self._members)), ("Creating", list(self._starting)))
        instances = [{**each.instance.snapshot(), "status": status} for status, group in groups for each in group]
        return {"name": self.plan.name, "weight": self.weight, "instances": instances}

    def resize(self, count: int) -> None:
        """Blocks until `count` instances are healthy. If one new instance fails, all new ones are stopped.

        Raises Unhealthy or PlatformError, the reason of the first failure.
        """
        with self._changed:
            if self._stopped:
                raise Unhealthy(f"Variant {self.plan.name} was stopped while it started.")
            new = []
            for _ in range(count - len(self._members)):
                self._numbers += 1
                new.append(_Member(self._numbers, self._create_instance(self.plan)))
            self._starting += new
            old = self._members[count:]
            del self._members[count:]
        if new:
            with ThreadPoolExecutor(len(new)) as starts:
                failures = [failure for failure in starts.map(_failure_to_start, new) if failure]
            with self._changed:
                self._starting = [each for each in self._starting if each not in new]
                if not failures:
                    self._members += new
            if failures:
                self._stop(new)
                raise failures[0]
        self._stop(old)

    def stop(self) -> None:
        """Stops all instances, also starting ones. The variant cannot be resized any more."""
        with self._changed:
            self._stopped = True
            members = self._members + self._starting
            self._members = []
        self._stop(members)

    def skip_draining(self) -> None:
        """From now on `stop` does not wait for calls in flight: a container gets SIGTERM while it answers them."""
        with self._changed:
            self._draining = False
            self._changed.notify_all()

    def _stop(self, members: Sequence[_Member]) -> None:
        if members:
            with ThreadPoolExecutor(len(members)) as stops:
                list(stops.map(self._retire, members))

    def _retire(self, member: _Member) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not (self._draining and member.in_flight), self._drain_limit)
            self._sessions = {name: held for name, held in self._sessions.items() if held is not member}
        member.instance.stop()

    def invoke(self, call: Call, session: str | None) -> Reply:
        """The reply of the chosen instance. A stream counts as in flight until it is read or closed."""
        began = time.monotonic()
        try:
            with self._changed:
                member = self._choose(call, session)
                member.in_flight += 1
                instances, concurrent = len(self._members), member.in_flight
        except ServiceUnavailable as error:
            self._meter.record(invocation(0.0, call.timings, 0, 0, error))
            raise
        try:
            reply = member.instance.invoke(call)
        except BaseException as error:
            self._release(member)
            if isinstance(error, PlatformError) and not isinstance(error, ValidationError):
                took = time.monotonic() - began
                self._meter.record(invocation(took, call.timings, instances, concurrent, error))
            raise
        self._update_sessions(reply, member)
        head = time.monotonic()
        if isinstance(reply.body, bytes):
            self._release(member)
            self._meter.record(invocation(head - began, call.timings, instances, concurrent, None))
            return reply

        def release() -> None:
            self._release(member)
            end = time.monotonic()
            call.timings.model += end - head
            self._meter.record(invocation(end - began, call.timings, instances, concurrent, None))

        return Reply(status=reply.status, headers=reply.headers, body=_Chunks(reply.body, release))

    def _choose(self, call: Call, session: str | None) -> _Member:
        if not self._members:
            raise ServiceUnavailable(f"Variant {self.plan.name} has no instance.")
        of_session = self._sessions.get(session) if session else None
        if of_session is not None:
            return of_session
        if call.target_model:
            return _for_model(call.target_model, self._members)
        chosen = _least_busy(self._members, self._next)
        self._next = chosen + 1
        return self._members[chosen]

    def _release(self, member: _Member) -> None:
        with self._changed:
            member.in_flight -= 1
            self._changed.notify_all()

    def _update_sessions(self, reply: Reply, member: _Member) -> None:
        opened = reply.headers.get("x-amzn-sagemaker-new-session-id")
        closed = reply.headers.get("x-amzn-sagemaker-closed-session-id")
        with self._changed:
            if opened:
                self._sessions[opened.partition(";")[0].strip()] = member
            if closed:
                self._sessions.pop(closed.strip(), None)


@dataclass(slots=True)
class _Chunks:
    """The chunks of a stream; `release` is called once, when the stream ends, breaks or is closed."""

    chunks: Iterator[bytes]
    release: Callable[[], None]
    _released: bool = field(default=False, init=False)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self.chunks)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if not self._released:
            self._released = True
            close = getattr(self.chunks, "close", None)
            if close:
                close()
            self.release()


def _failure_to_start(member: _Member) -> Exception | None:
    try:
        member.instance.start()
    except Exception as error:
        return error
    return None


def _for_model(model: str, members: Sequence[_Member]) -> _Member:
    """The instance for a model: the first one below BUSY in the model's own order, else the least busy.

    The order comes from rendezvous hashing, so that most models keep their instance when instances are added.
    """
    order = sorted(members, key=lambda each: hashlib.md5(f"{model}/{each.number}".encode()).digest())
    return next((each for each in order if each.in_flight < BUSY), min(order, key=lambda each: each.in_flight))


def _least_busy(members: Sequence[_Member], start: int) -> int:
    """The index of the least busy instance; round robin from `start` among equals."""
    return min(range(len(members)), key=lambda at: (members[at].in_flight, (at - start) % len(members)))


class Fleet:
    """All variants of one endpoint config, started and stopped together. `create_instance` does not start it."""

    def __init__(
        self,
        config: Config,
        create_instance: Callable[[Plan], FleetInstance],
        drain_limit: float,
        random: random.Random,
        meter: Callable[[str], Meter] = unmetered,
    ) -> None:
        """`meter` returns the meter of a variant, by its name."""

        def variant(plan: Plan) -> Variant:
            return Variant(plan, create_instance, drain_limit, meter(plan.name))

        self.config = config
        self.variants = {plan.name: variant(plan) for plan in config.variants}
        self.shadows = {plan.name: variant(plan) for plan in config.shadows}
        self._random = random
        self._copies = ThreadPoolExecutor(SHADOW_CALLS) if self.shadows else None

    def snapshot(self) -> dict[str, Any]:
        """The state of all variants."""
        return {
            "config": self.config.name,
            "variants": [each.snapshot() for each in self.variants.values()],
            "shadows": [each.snapshot() for each in self.shadows.values()],
        }

    def start(self, counts: Mapping[str, int] | None = None) -> None:
        """Blocks until all variants are healthy. `counts` overrides the config's instance counts.

        Raises Unhealthy or PlatformError, the reason of the first failure.
        """
        counts = counts or {}
        _for_each(self._all, lambda each: each.resize(counts.get(each.plan.name, each.plan.count)))

    def skip_draining(self) -> None:
        """From now on `stop` does not wait for calls in flight."""
        for each in self._all:
            each.skip_draining()

    def stop(self) -> None:
        if self._copies:
            self._copies.shutdown(cancel_futures=True)
        _for_each(self._all, Variant.stop)

    def invoke(self, endpoint: str, call: Call, variant: str | None, session: str | None) -> tuple[Reply, str]:
        """The reply, and the name of the variant that answered. Raises PlatformError."""
        chosen = self._choose(endpoint, variant)
        check_call(endpoint, chosen.plan, call)
        self._copy(chosen, call)
        return chosen.invoke(call, session), chosen.plan.name

    @property
    def _all(self) -> Sequence[Variant]:
        return [*self.variants.values(), *self.shadows.values()]

    def _choose(self, endpoint: str, name: str | None) -> Variant:
        if name is not None:
            if name not in self.variants:
                raise ValidationError(f"Variant {name} not found in endpoint {endpoint}.")
            return self.variants[name]
        variants = list(self.variants.values())
        return variants[pick([each.weight for each in variants], self._random.random())]

    def _copy(self, chosen: Variant, call: Call) -> None:
        """Copies the call to the shadows. A shadow's share is its weight over the production variant's, at most 1."""
        for shadow in self.shadows.values():
            if self._copies and self._random.random() * max(chosen.weight, 1e-9) < shadow.weight:
                self._copies.submit(_invoke_shadow, shadow, replace(call, stream=False, timings=Timings()))


def check_call(endpoint: str, plan: Plan, call: Call) -> None:
    """Raises ValidationError if TargetModel or TargetContainerHostname does not fit the variant."""
    if plan.multi_model and not call.target_model:
        raise ValidationError(f"Request to endpoint {endpoint} is missing a target model header.")
    if call.target_model and not plan.multi_model:
        raise ValidationError(
            f"Endpoint {endpoint} is not a multi-model endpoint and does not support target model header."
        )
    names = [spec.hostname for spec in plan.specs]
    if plan.direct and call.target_container not in names:
        raise ValidationError(
            f"Endpoint {endpoint} is invoked directly: TargetContainerHostname must be one of {', '.join(names)}."
        )
    if call.target_container and not plan.direct:
        raise ValidationError(
            f"Endpoint {endpoint} does not have a directly invoked model and does not support target container header."
        )


def pick(weights: Sequence[float], at: float) -> int:
    """The index that a number 0 <= at < 1 falls on when each index has a share by its weight; all 0: equal shares."""
    if not any(weights):
        weights = [1.0] * len(weights)
    left = at * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return max(index for index, weight in enumerate(weights) if weight)


def _invoke_shadow(shadow: Variant, call: Call) -> None:
    """The shadow's reply or error is dropped."""
    try:
        shadow.invoke(call, None)
    except PlatformError:
        pass


def _for_each(variants: Sequence[Variant], act: Callable[[Variant], None]) -> None:
    with ThreadPoolExecutor(len(variants)) as threads:
        list(threads.map(act, variants))
