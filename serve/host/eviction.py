"""Which runners to evict for a load: pure decisions on bytes and recency. No process is touched here."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A runner's share of the budget."""

    runner: int
    model: str = ""
    bytes: int
    last_used: int  # monotonic ns
    in_flight: int = 0
    pinned: bool = False
    loading: bool = False
    retiring: bool = False  # asked to exit; its bytes are free once its process is gone
    slow: bool = False  # retiring, but still at work after a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`fits`: load now. Otherwise retire `victims` (perhaps none) and ask again after a change."""

    fits: bool
    victims: tuple[int, ...] = ()


def plan(need: int, budget: int, held: Sequence[Held], *, patient: bool) -> Plan:
    """How to free `need` bytes of the budget.

    The least recently used runner is evicted first, and no more runners than needed: if later victims are enough
    without an earlier one, that one is spared. Nothing is evicted unless the load then fits. Busy runners are victims
    only if not `patient`. Retiring a busy runner loses no request: it answers those it holds, and the rest waits in the
    model's socket.

    The budget, from left to right:

        | pinned, loading, idle, busy | slow | retiring | free |
                                                        |<---->|  free_now
                                             |<--------------->|  free_soon
                                      |<---------------------->|  free_later

    1. need <= free_now: load.
    2. need <= free_soon: wait for the runners that are retiring.
    3. Evict idle runners for what free_soon lacks. They replace slow ones, so that the load does not wait for those.
    4. If idle runners are not enough, and free_later is not either: evict for what free_later lacks, busy ones as well
       if the patience has ended.
    5. Otherwise wait.
    """
    free_now = budget - sum(each.bytes for each in held)
    if need <= free_now:
        return Plan(fits=True)
    free_soon = free_now + sum(each.bytes for each in held if each.retiring and not each.slow)
    if need <= free_soon:
        return Plan(fits=False)
    free_later = free_soon + sum(each.bytes for each in held if each.slow)
    evictable = [each for each in held if not (each.pinned or each.loading or each.retiring)]
    idle = sorted((each for each in evictable if not each.in_flight), key=lambda each: each.last_used)
    busy = sorted((each for each in evictable if each.in_flight), key=lambda each: each.last_used)
    victims = _enough(need - free_soon, idle)
    if not victims and need > free_later:
        victims = _enough(need - free_later, idle if patient else idle + busy)
    return Plan(fits=False, victims=tuple(each.runner for each in victims))


def _enough(need: int, candidates: Sequence[Held]) -> list[Held]:
    """The first candidates that hold `need` bytes together, less those not needed for it; [] if all hold less."""
    chosen: list[Held] = []
    freed = 0
    for each in candidates:
        if need <= freed:
            break
        chosen.append(each)
        freed += each.bytes
    if need > freed:
        return []
    for each in list(chosen):
        if need <= freed - each.bytes:
            chosen.remove(each)
            freed -= each.bytes
    return chosen


def can_ever_fit(need: int, budget: int, held: Sequence[Held]) -> bool:
    """Whether the load would fit if every runner that is not pinned were evicted."""
    return need <= budget - sum(each.bytes for each in held if each.pinned)
