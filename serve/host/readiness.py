"""When /ping may be 200: once each model that was to be preloaded has been ready."""

from collections.abc import Sequence

from serve.host.hosted import Hosted
from serve.slots import State


class Readiness:
    def __init__(self, preloads: Sequence[Hosted]) -> None:
        self._count = len(preloads)
        self.awaited = list(preloads)  # those that have not been ready yet; afterwards they are as any other

    def note(self, model: Hosted) -> None:
        """One of its runners is ready; it is, once all of its copies are."""
        if model in self.awaited and not model.missing():
            self.awaited.remove(model)

    def told(self) -> tuple[State, str]:
        """The state, and why it is that one."""
        if not self.awaited:
            return State.READY, "ready"
        says = f"starting: {self._count - len(self.awaited)} of {self._count} preloaded models are ready"
        failures = [f"; {each.name}: {error.message}" for each in self.awaited if (error := each.failure())]
        return State.STARTING, says + "".join(failures[:1])
