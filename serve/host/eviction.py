"""Who must go so that a model can come: pure decisions on bytes and recency, no process touched."""

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
    retiring: bool = False  # counts as held until its process is gone
    slow: bool = False  # retiring, but still at work after a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`fits`: load now. Otherwise retire `victims` (perhaps none) and ask again when something has changed."""

    fits: bool
    victims: tuple[int, ...] = ()


def plan(need: int, budget: int, held: Sequence[Held], *, patient: bool) -> Plan:
    """How to make room for `need` bytes.

    Least recently used first, and no more than needed: a victim is spared again when those after it are enough.
    Nothing is evicted unless that makes room. Runners at work are victims only once patience has ended; retiring one
    loses nothing, since it answers what it holds and the rest waits in its socket. Where one that is on its way out
    takes its time and idle ones have become enough meanwhile, they go instead of being waited for.
    """
    free = budget - sum(each.bytes for each in held)
    if need <= free:
        return Plan(fits=True)
    soon = free + sum(each.bytes for each in held if each.retiring and not each.slow)
    if need <= soon:
        return Plan(fits=False)  # enough is on its way out
    candidates = [each for each in held if not (each.pinned or each.loading or each.retiring)]
    idle = sorted((each for each in candidates if not each.in_flight), key=lambda each: each.last_used)
    busy = sorted((each for each in candidates if each.in_flight), key=lambda each: each.last_used)
    later = soon + sum(each.bytes for each in held if each.slow)
    chosen = _enough(need - soon, idle)
    if not chosen and need > later:
        chosen = _enough(need - later, idle if patient else idle + busy)
    return Plan(fits=False, victims=tuple(each.runner for each in chosen))


def _enough(need: int, candidates: Sequence[Held]) -> list[Held]:
    """The first of them that hold `need` bytes together, less those that are not needed for it; else nobody."""
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
    """Whether evicting everything that may be evicted would make room."""
    return need <= budget - sum(each.bytes for each in held if each.pinned)
