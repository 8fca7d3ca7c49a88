"""Which runners give memory back or are evicted for a load, and on which GPU it is placed: pure decisions.

No process is touched here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace


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
    device: int | None = None  # the number of its GPU
    device_bytes: int = 0  # its share of the budget of that GPU
    device_spare: int = 0  # as `spare`, of `device_bytes`


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`fits`: load now. Otherwise shrink or retire these runners (perhaps none), and ask again after a change."""

    fits: bool
    victims: tuple[int, ...] = ()
    shrink: tuple[int, ...] = ()
    waits: bool = field(default=False, compare=False)  # runners that are retiring hold enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one runner of a model takes: memory, and memory of one GPU. `devices`: those it may be placed on."""

    bytes: int
    device_bytes: int = 0
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes that all runners may hold together: of memory, and of each GPU."""

    bytes: int
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the runners go, one on each of `devices` (None: on no GPU): now if it `fits`; otherwise as in a Plan."""

    fits: bool
    devices: tuple[int | None, ...]
    victims: tuple[int, ...] = ()
    shrink: tuple[int, ...] = ()


def place(need: Need, count: int, budget: Budget, held: Sequence[Held], *, patient: bool) -> Placement:
    """Where `count` runners of a model go, or which runners to evict so that they fit.

    Each runner goes to the GPU with the most free bytes, if it fits there. Otherwise it goes where the least recently
    used runners are evicted for it. Nothing is evicted on a GPU while the memory beside it cannot be had, or the
    reverse.
    """
    plans: list[Plan] = []
    devices: list[int | None] = []
    for _ in range(count if need.devices else 0):
        device, its_plan = _on_a_device(need, budget, held, patient=patient)
        plans.append(its_plan)
        devices.append(device)
        held = _after(its_plan, held)
        # The next copy must not count on the same bytes.
        held.append(share(replace(need, bytes=0), device))
    plans.append(plan(need.bytes * count, budget.bytes, held, patient=patient))
    where = tuple(devices) or (None,) * count
    if all(each.fits for each in plans):
        return Placement(fits=True, devices=where)
    if caches := tuple(runner for each in plans for runner in each.shrink):
        return Placement(fits=False, devices=where, shrink=caches)
    if not all(each.fits or each.victims or each.waits for each in plans):
        return Placement(fits=False, devices=where)
    return Placement(fits=False, devices=where, victims=tuple(victim for each in plans for victim in each.victims))


def _on_a_device(need: Need, budget: Budget, held: Sequence[Held], *, patient: bool) -> tuple[int, Plan]:
    """The GPU for one more runner, and the plan for its memory there."""
    shares = {device: on_device(device, held) for device in need.devices}
    plans = {
        device: plan(need.device_bytes, budget.devices[device], share, patient=patient)
        for device, share in shares.items()
    }
    used = {each.runner: each.last_used for each in held}

    def order(device: int) -> tuple[bool, bool, int, int]:
        free = budget.devices[device] - sum(each.bytes for each in shares[device])
        found = plans[device]
        newest = max((used[victim] for victim in found.victims), default=0)
        return not found.fits, not (found.waits or found.victims), newest, -free

    device = min(need.devices, key=order)
    return device, plans[device]


def share(need: Need, device: int | None) -> Held:
    """What a runner of this need will hold once it loads, on this GPU."""
    on = need.device_bytes if device is not None else 0
    return Held(runner=-1, bytes=need.bytes, last_used=0, loading=True, device=device, device_bytes=on)


def _after(decision: Plan, held: Sequence[Held]) -> list[Held]:
    """The runners once the victims of a plan are retiring."""
    return [replace(each, retiring=each.retiring or each.runner in decision.victims) for each in held]


def on_device(device: int, held: Sequence[Held]) -> list[Held]:
    """The runners on a GPU, with their share of its budget as their bytes."""
    on = [each for each in held if each.device == device]
    return [replace(each, bytes=each.device_bytes, spare=each.device_spare) for each in on]


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
        return Plan(fits=False, waits=True)
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
    return Plan(fits=False, victims=tuple(each.runner for each in victims), waits=need <= free_later)


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


def can_ever_fit(need: Need, count: int, budget: Budget, held: Sequence[Held]) -> bool:
    """Whether `count` runners would fit if each runner that is not pinned were evicted, and the others were shrunk."""
    if need.bytes * count > budget.bytes - _pinned(held):
        return False
    if not need.devices or not need.device_bytes:
        return True
    room = [max(0, budget.devices[each] - _pinned(on_device(each, held))) for each in need.devices]
    return sum(each // need.device_bytes for each in room) >= count


def _pinned(held: Sequence[Held]) -> int:
    return sum(each.bytes - each.spare for each in held if each.pinned)
