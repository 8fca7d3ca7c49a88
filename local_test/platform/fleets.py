"""A fleet: all variants of one endpoint config, started, asked and stopped together."""

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from local_test.platform.calls import Call, PlatformError, Reply, ValidationError
from local_test.platform.plans import Config, Plan
from local_test.platform.refusals import check_call
from local_test.platform.variants import Instance, Variant

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
