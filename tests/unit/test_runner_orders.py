"""What a runner does when the host asks for memory, or for its end."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from serve import settings
from serve.handlers.base import Job
from serve.runner.arrival import Addressee, ColdStart
from serve.runner.loop import Loop
from serve.runner.records import Engine
from serve.slots import Slots
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
    slot = Slots(chosen.slots, create=True).slot(100)
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
        caches=caches,
    )
    host.send(b"shrink")
    host.send(b"retire")

    assert loop.run() is None

    host.settimeout(PATIENCE)
    assert json.loads(host.recv(100)) == {"shrunk": {}}
    if caches is not None:
        assert (caches.bytes, slot.get("spare_bytes")) == (0, 0)
    host.close()
    control.close()
