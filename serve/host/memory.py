"""What one process of a model may hold, while it loads and while it works: pure decisions."""

from dataclasses import dataclass

from serve.machine import Resident
from serve.settings import MB

HINT = "send less at once, or raise SERVE_WORKING_MEMORY_MB, or memory_limit_mb in model.toml"
LOAD_HINT = "give the container more memory, or raise SERVE_MEMORY_BUDGET_MB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a process may hold, in bytes, and what it held at rest: `private` as measured, `resident` as counted."""

    most: int
    private: int
    resident: Resident
    caches: int = 0  # how much of caches that it frees when asked may be beside `most`; its own figure is not trusted
    of: str = ""  # the limit in words
    hint: str = HINT

    def holds(self, now: Resident) -> int:
        """What the process holds now: what it held at rest, and what its resident memory has grown by since."""
        return self.private + max(0, now.bytes - self.resident.bytes)

    def over(self, held: int, caches: int) -> bool:
        return held - min(max(0, caches), self.caches) > self.most


def while_loading(resident: Resident, budget: int, share: int) -> Allowance:
    """Of a process that has just been forked: all that models may hold, and the share for work."""
    most = budget + share
    of = f"{most // MB} MB for a load: the budget of all models and SERVE_WORKING_MEMORY_MB"
    return Allowance(most=most, private=0, resident=resident, of=of, hint=LOAD_HINT)


def while_working(measured: int, pending: int, resident: Resident, share: int, own: int | None) -> Allowance:
    """Of a loaded process. `pending`: what its handler will still take; `own`: memory_limit_mb of its model.toml."""
    if own is not None:
        of = f"{own} MB: memory_limit_mb in model.toml"
        return Allowance(most=own * MB, private=measured, resident=resident, of=of)
    size = measured + pending
    of = f"{(size + share) // MB} MB: {size // MB} MB after its load, and {share // MB} MB of SERVE_WORKING_MEMORY_MB"
    return Allowance(most=size + share, private=measured, resident=resident, caches=share, of=of)
