"""What the host's loop listens to for its models: sockets nobody serves, and what runners say."""

import select

from serve.host.hosted import Hosted
from serve.host.runner_process import RunnerProcess
from serve.host.store import Store


class Watch:
    """Which file descriptor is whose. `refresh` costs what has changed since, not what there is."""

    def __init__(self, store: Store, poll: select.epoll) -> None:
        self._store = store
        self._poll = poll
        self._models = {model.listener.fileno(): model for model in store.models.values()}
        self._listening: set[int] = set()
        self._runners: dict[int, RunnerProcess] = {}

    def model(self, fd: int) -> Hosted | None:
        return self._models.get(fd)

    def runner(self, fd: int) -> RunnerProcess | None:
        """The runner whose channel this is; perhaps one that has ended."""
        return self._runners.get(fd)

    def add(self, model: Hosted) -> None:
        self._models[model.listener.fileno()] = model

    def drop(self, model: Hosted) -> None:
        """Before its socket is closed, for the number may be another's then."""
        fd = model.listener.fileno()
        if fd in self._listening:
            self._poll.unregister(fd)
            self._listening.remove(fd)
        del self._models[fd]

    def forget(self, fd: int) -> None:
        self._runners.pop(fd, None)

    def refresh(self) -> None:
        """Listen for models nobody serves any more, and to new runners."""
        while self._store.changed:
            model = self._store.changed.pop()
            if model.leaving:
                continue
            fd, wanted = model.listener.fileno(), self._store.listens_for(model)
            if wanted and fd not in self._listening:
                self._poll.register(fd, select.EPOLLIN)
                self._listening.add(fd)
            elif not wanted and fd in self._listening:
                self._poll.unregister(fd)
                self._listening.remove(fd)
            for runner in model.runners:
                control = runner.control.fileno()
                if self._runners.get(control) is not runner:
                    self._runners[control] = runner
                    # Edge-triggered: an ended runner's end of file is told once.
                    self._poll.register(control, select.EPOLLIN | select.EPOLLET)
