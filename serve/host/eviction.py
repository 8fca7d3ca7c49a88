"""Which runners give memory back, or are evicted, for a load: pure decisions. No process is touched here."""

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
    spare: int = 0  # bytes of caches that it frees if it is asked; a part of `bytes`
    shrinking: bool = False  # asked, and has not answered yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`fits`: load now. Otherwise shrink or retire these runners (perhaps none), and ask again after a change."""

    fits: bool
    victims: tuple[int, ...] = ()
    shrink: tuple[int, ...] = ()


def plan(need: int, budget: int, held: Sequence[Held], *, patient: bool) -> Plan:
    """How to free `need` bytes of the budget.

    The least recently used runner is evicted first, and no more runners than needed: if later victims are enough
    without an earlier one, that one is spared. Nothing is evicted unless the load then fits. Busy runners are victims
    only if not `patient`. Retiring a busy runner loses no request: it answers those it holds, and the rest waits in the
    model's socket.

    Caches go first: no runner is evicted while another one has spare bytes, pinned ones included.

    The budget, from left to right:

        | pinned, loading, idle, busy | slow | retiring | free |
                                                        |<---->|  free_now
                                             |<--------------->|  free_soon
                                      |<---------------------->|  free_later

    1. need <= free_now: load.
    2. need <= free_soon: wait for the runners that are retiring.
    3. Shrink runners for what free_soon lacks, idle ones first, or all that have spare bytes; wait for their answers.
    4. Evict idle runners for what free_soon lacks. They replace slow ones, so that the load does not wait for those.
    5. If idle runners are not enough, and free_later is not either: evict for what free_later lacks, busy ones as well
       if the patience has ended.
    6. Otherwise wait.
    """
    free_now = budget - sum(each.bytes for each in held)
    if need <= free_now:
        return Plan(fits=True)
    free_soon = free_now + sum(each.bytes for each in held if each.retiring and not each.slow)
    if need <= free_soon:
        return Plan(fits=False)
    if any(each.shrinking for each in held):
        return Plan(fits=False)
    if caches := _caches(need - free_soon, held):
        return Plan(fits=False, shrink=tuple(each.runner for each in caches))
    free_later = free_soon + sum(each.bytes for each in held if each.slow)
    evictable = [each for each in held if not (each.pinned or each.loading or each.retiring)]
    idle = sorted((each for each in evictable if not each.in_flight), key=lambda each: each.last_used)
    busy = sorted((each for each in evictable if each.in_flight), key=lambda each: each.last_used)
    victims = _enough(need - free_soon, idle)
    if not victims and need > free_later:
        victims = _enough(need - free_later, idle if patient else idle + busy)
    return Plan(fits=False, victims=tuple(each.runner for each in victims))


def _caches(need: int, held: Sequence[Held]) -> list[Held]:
    """The runners whose spare bytes make `need`, or all that have any: idle before busy, least recently used first."""
    chosen: list[Held] = []
    for each in sorted(held, key=lambda each: (each.in_flight > 0, each.last_used)):
        if need > 0 and each.spare and not (each.retiring or each.loading):
            chosen.append(each)
            need -= each.spare
    return chosen


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
    """Whether the load would fit if every runner that is not pinned were evicted, and the others were shrunk."""
    return need <= budget - sum(each.bytes - each.spare for each in held if each.pinned)
