"""Who must go so that a model can come: pure decisions on bytes and recency, no process touched."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A runner's share of the budget."""

    runner: int
    bytes: int
    last_used: int  # monotonic ns
    in_flight: int = 0
    pinned: bool = False
    loading: bool = False
    retiring: bool = False  # counts as held until its process is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`fits`: load now. Otherwise retire `victims` (perhaps none) and ask again when something has changed."""

    fits: bool
    victims: tuple[int, ...] = ()


def plan(need: int, budget: int, held: Sequence[Held], *, patient: bool) -> Plan:
    """How to make room for `need` bytes.

    Least recently used first, and no more than needed: a victim is spared again when those after it are enough.
    Nothing is evicted unless that makes room. Runners at work are victims only once patience has ended; retiring one
    loses nothing, since it answers what it holds and the rest waits in its socket.
    """
    free = budget - sum(each.bytes for each in held)
    if need <= free:
        return Plan(fits=True)
    free += sum(each.bytes for each in held if each.retiring)
    if need <= free:
        return Plan(fits=False)  # enough is on its way out
    candidates = [each for each in held if not (each.pinned or each.loading or each.retiring)]
    idle = sorted((each for each in candidates if not each.in_flight), key=lambda each: each.last_used)
    busy = sorted((each for each in candidates if each.in_flight), key=lambda each: each.last_used)
    chosen: list[Held] = []
    for each in idle if patient else idle + busy:
        if need <= free:
            break
        chosen.append(each)
        free += each.bytes
    if need > free:
        return Plan(fits=False)
    for each in list(chosen):
        if need <= free - each.bytes:
            chosen.remove(each)
            free -= each.bytes
    return Plan(fits=False, victims=tuple(each.runner for each in chosen))


def can_ever_fit(need: int, budget: int, held: Sequence[Held]) -> bool:
    """Whether evicting everything that may be evicted would make room."""
    return need <= budget - sum(each.bytes for each in held if each.pinned)
