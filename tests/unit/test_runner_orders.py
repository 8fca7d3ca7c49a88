"""What a runner does when the host asks for memory, or for its end."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from serve import settings
from serve.handlers.base import Job
from serve.machine import OwnMemory
from serve.runner import main
from serve.runner.arrival import Addressee, ColdStart
from serve.runner.loop import Loop
from serve.runner.records import Engine
from serve.runner.rest import Rest
from serve.slots import Slot
from tests.patience import PATIENCE


class Texts:
    """A cache of 1,000 bytes."""

    bytes = 1000

    def free(self) -> None:
        self.bytes = 0


class Idle:
    def room(self) -> int:
        return 0

    def leave(self, job: Job) -> None:
        pass


@pytest.mark.parametrize("caches", [Texts(), None], ids=["a handler with caches", "a handler without"])
def test_a_runner_frees_its_caches_and_serves_on(tmp_path: Path, caches: Texts | None) -> None:
    """It answers when the memory is free; only the next order ends it."""
    chosen = replace(settings.read({}), run_dir=tmp_path)
    slot = Slot(Slot.create())
    slot.set("spare_bytes", 1000)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "m.sock"))
    listener.listen()
    listener.setblocking(False)
    host, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop = Loop(
        cast(Engine, Idle()),
        Addressee(["m"], "model_type", ()),
        listener,
        control,
        slot,
        chosen,
        ColdStart.ended_now(slot),
        stepwise=False,
        rest=Rest(OwnMemory()),
        caches=caches,
    )
    host.send(b"shrink")
    host.send(b"retire")

    assert loop.run() is None

    host.settimeout(PATIENCE)
    assert json.loads(host.recv(100)) == {"type": "shrunk"}
    if caches is not None:
        assert (caches.bytes, slot.get("spare_bytes")) == (0, 0)
    host.close()
    control.close()


class Pieces:
    """Three pieces of work behind a load, of which the given one fails."""

    def __init__(self, fails: int | None = None) -> None:
        self.done, self.said = 0, list[int]()
        self._fails = fails

    @property
    def bytes(self) -> int:
        return 1000 * (3 - self.done)

    def advance(self) -> bool:
        if self.done == self._fails:
            raise RuntimeError("a defect")
        self.done += 1
        return self.done < 3

    def set(self, field: str, value: int) -> None:
        """As the model's slot."""
        assert field == "pending_bytes"
        self.said.append(value)


@pytest.mark.parametrize(
    ("work", "done", "said"),
    [
        (Pieces(), 3, [2000, 1000, 0]),
        (Pieces(fails=1), 1, [2000, 0]),
    ],
    ids=["all", "one fails"],
)
def test_work_behind_a_load_goes_on_until_it_is_done_or_fails(work: Pieces, done: int, said: list[int]) -> None:
    """The host is told what memory it will still take, and in the end that it takes no more."""
    main._keep_up(work, cast(Slot, work))
    assert (work.done, work.said) == (done, said)
