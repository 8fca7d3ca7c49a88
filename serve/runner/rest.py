"""Memory that large requests have left behind goes back to the system while a runner is idle.

Heaps keep the pages that were freed: a process of 8 MB held 157 MB after one body of 25 MB. It costs a small request
nothing, since nothing is looked at before the runner has been idle for a while; and a model whose requests come one
after the other keeps its warm pages.
"""

from serve.failures import give_back
from serve.machine import OwnMemory

AFTER = 0.5  # seconds without a request
KEPT = 32 << 20  # bytes; less is not worth the 5 ms in which the next large request gets its pages back


class Rest:
    """What the process held when it last gave memory back, and whether it has worked since."""

    def __init__(self, memory: OwnMemory) -> None:
        self._memory = memory
        self._at_rest = self._memory.bytes()
        self.worked = False  # since the last rest; the loop sets it

    def begin(self) -> None:
        """The runner has been idle for AFTER seconds: give back what its requests have left behind."""
        self.worked = False
        held = self._memory.bytes()
        if held - self._at_rest > KEPT:
            give_back()
            self._at_rest = (
                self._memory.bytes()
            )  # what is left is in use, by a cache perhaps: not tried again each time
        else:
            self._at_rest = min(self._at_rest, held)
