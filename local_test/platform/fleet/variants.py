"""A production variant: instances of one model, and which of them a call goes to."""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from local_test.platform.calls import Call, PlatformError, Reply, ServiceUnavailable, ValidationError
from local_test.platform.fleet.container import Unhealthy
from local_test.platform.fleet.plans import Config, Plan

BUSY = 4  # calls in an instance's hands; with more, a model is also given to its next instance


class Instance(Protocol):
    """A machine with the model's containers on it."""

    def start(self) -> None: ...
    def invoke(self, call: Call) -> Reply: ...
    def stop(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Member:
    number: int
    instance: Instance
    in_flight: int = 0


class Variant:
    """Instances that come and go with `resize`; none is stopped before its calls are answered, or took too long."""

    def __init__(self, plan: Plan, make: Callable[[Plan], Instance], patience: float) -> None:
        self.plan = plan
        self.weight = plan.weight
        self._make = make
        self._patience = patience  # seconds that a retiring instance waits for its last calls
        self._changed = threading.Condition()  # guards all below
        self._members: list[_Member] = []
        self._starting: list[_Member] = []
        self._numbers = 0
        self._turn = 0
        self._sessions: dict[str, _Member] = {}
        self._stopped = False
        self._hurried = False

    @property
    def count(self) -> int:
        with self._changed:
            return len(self._members)

    @property
    def wanted(self) -> int:
        """The same, with those that are starting."""
        with self._changed:
            return len(self._members) + len(self._starting)

    def resize(self, count: int) -> None:
        """Returns when so many are healthy. Where one cannot be, no new one stays, and the reason is raised."""
        with self._changed:
            if self._stopped:
                raise Unhealthy(f"Variant {self.plan.name} was stopped while it started.")
            new = []
            for _ in range(count - len(self._members)):
                self._numbers += 1
                new.append(_Member(self._numbers, self._make(self.plan)))
            self._starting += new
            old = self._members[count:]
            del self._members[count:]
        if new:
            with ThreadPoolExecutor(len(new)) as starts:
                failures = [failure for failure in starts.map(_failure, new) if failure]
            with self._changed:
                self._starting = [each for each in self._starting if each not in new]
                if not failures:
                    self._members += new
            if failures:
                self._stop(new)
                raise failures[0]
        self._stop(old)

    def stop(self) -> None:
        """All instances, those that are starting too; there will be no others."""
        with self._changed:
            self._stopped = True
            all_of_them = self._members + self._starting
            self._members = []
        self._stop(all_of_them)

    def hurry(self) -> None:
        """From now on no instance waits for its last calls: what it has in hand at SIGTERM is its own affair."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def _stop(self, members: Sequence[_Member]) -> None:
        if members:
            with ThreadPoolExecutor(len(members)) as stops:
                list(stops.map(self._retire, members))

    def _retire(self, member: _Member) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._hurried or not member.in_flight, self._patience)
            self._sessions = {name: held for name, held in self._sessions.items() if held is not member}
        member.instance.stop()

    def invoke(self, call: Call, session: str | None) -> Reply:
        """A streamed reply keeps its instance until it is read or closed."""
        with self._changed:
            member = self._choose(call, session)
            member.in_flight += 1
        try:
            reply = member.instance.invoke(call)
        except BaseException:
            self._release(member)
            raise
        self._note_session(reply, member)
        if isinstance(reply.body, bytes):
            self._release(member)
            return reply
        return Reply(status=reply.status, headers=reply.headers, body=_Held(reply.body, lambda: self._release(member)))

    def _choose(self, call: Call, session: str | None) -> _Member:
        if not self._members:
            raise ServiceUnavailable(f"Variant {self.plan.name} has no instance.")
        known = self._sessions.get(session) if session else None
        if known is not None:
            return known
        if call.target_model:
            return _for_model(call.target_model, self._members)
        chosen = _next(self._members, self._turn)
        self._turn = chosen + 1
        return self._members[chosen]

    def _release(self, member: _Member) -> None:
        with self._changed:
            member.in_flight -= 1
            self._changed.notify_all()

    def _note_session(self, reply: Reply, member: _Member) -> None:
        opened = reply.headers.get("x-amzn-sagemaker-new-session-id")
        closed = reply.headers.get("x-amzn-sagemaker-closed-session-id")
        with self._changed:
            if opened:
                self._sessions[opened.partition(";")[0].strip()] = member
            if closed:
                self._sessions.pop(closed.strip(), None)


@dataclass(slots=True)
class _Held:
    """Chunks; `release` is called once, when they end, break or are closed."""

    chunks: Iterator[bytes]
    release: Callable[[], None]
    _over: bool = field(default=False, init=False)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self.chunks)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if not self._over:
            self._over = True
            close = getattr(self.chunks, "close", None)
            if close:
                close()
            self.release()


def _failure(member: _Member) -> Exception | None:
    try:
        member.instance.start()
    except Exception as why:
        return why
    return None


def _for_model(model: str, members: Sequence[_Member]) -> _Member:
    """A model has its own order of instances (rendezvous hashing): the first that is not busy, else the least busy."""
    order = sorted(members, key=lambda each: hashlib.md5(f"{model}/{each.number}".encode()).digest())
    return next((each for each in order if each.in_flight < BUSY), min(order, key=lambda each: each.in_flight))


def _next(members: Sequence[_Member], turn: int) -> int:
    """The least busy; among equals they take turns."""
    return min(range(len(members)), key=lambda at: (members[at].in_flight, (at - turn) % len(members)))


SHADOW_CALLS = 4  # copies at once; above that they wait


class Fleet:
    """`make(plan)` gives an instance that is not started."""

    def __init__(
        self,
        config: Config,
        make: Callable[[Plan], Instance],
        patience: float,
        choice: random.Random,
    ) -> None:
        self.config = config
        self.variants = {plan.name: Variant(plan, make, patience) for plan in config.variants}
        self.shadows = {plan.name: Variant(plan, make, patience) for plan in config.shadows}
        self._choice = choice
        self._copies = ThreadPoolExecutor(SHADOW_CALLS) if self.shadows else None

    def start(self, counts: Mapping[str, int] | None = None) -> None:
        """Returns when all are healthy; raises the first reason why one cannot be. `counts` overrides the config's."""
        counts = counts or {}
        _each(
            [*self.variants.values(), *self.shadows.values()], lambda v: v.resize(counts.get(v.plan.name, v.plan.count))
        )

    def hurry(self) -> None:
        """Whoever stops it, now or later, waits for no call."""
        for each in (*self.variants.values(), *self.shadows.values()):
            each.hurry()

    def stop(self) -> None:
        if self._copies:
            self._copies.shutdown(cancel_futures=True)
        _each([*self.variants.values(), *self.shadows.values()], Variant.stop)

    def invoke(self, endpoint: str, call: Call, variant: str | None, session: str | None) -> tuple[Reply, str]:
        """The reply and the name of the variant that gave it."""
        chosen = self._variant(endpoint, variant)
        check_call(endpoint, chosen.plan, call)
        self._copy(chosen, call)
        return chosen.invoke(call, session), chosen.plan.name

    def _variant(self, endpoint: str, name: str | None) -> Variant:
        if name is not None:
            if name not in self.variants:
                raise ValidationError(f"Variant {name} not found in endpoint {endpoint}.")
            return self.variants[name]
        variants = list(self.variants.values())
        return variants[pick([each.weight for each in variants], self._choice.random())]

    def _copy(self, chosen: Variant, call: Call) -> None:
        """A shadow gets a share of the calls: its weight over the production variant's, at most all."""
        for shadow in self.shadows.values():
            if self._copies and self._choice.random() * max(chosen.weight, 1e-9) < shadow.weight:
                self._copies.submit(_unheard, shadow, replace(call, stream=False))


def pick(weights: Sequence[float], at: float) -> int:
    """The index on which `at`, 0 <= at < 1, falls when they lie side by side; where all are 0 they count alike."""
    if not any(weights):
        weights = [1.0] * len(weights)
    left = at * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return max(index for index, weight in enumerate(weights) if weight)


def _unheard(shadow: Variant, call: Call) -> None:
    """What a shadow answers, or why it does not, reaches nobody."""
    try:
        shadow.invoke(call, None)
    except PlatformError:
        pass


def _each(variants: Sequence[Variant], act: Callable[[Variant], None]) -> None:
    with ThreadPoolExecutor(len(variants)) as threads:
        list(threads.map(act, variants))


def check_call(endpoint: str, plan: Plan, call: Call) -> None:
    """What may name a model or a container, as SageMaker has it; raises ValidationError."""
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
