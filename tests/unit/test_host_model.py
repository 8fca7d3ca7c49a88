"""What the host makes of news that comes late, or is of nobody it knows: the parts of it, without a process."""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve import settings
from serve.catalog.catalog import Entry
from serve.errors import InternalError
from serve.host import model as hosted
from serve.host.model import Hosted
from serve.host.model_api import Platform
from serve.host.runners import Runners
from serve.http import wire
from serve.slots import Slots
from tests.patience import PATIENCE


class NothingLeft:
    """Store and watch, as a load that has failed needs them."""

    def drop(self, model: Hosted) -> None:
        pass

    def unload(self, model: Hosted, why: str) -> None:
        model.close()

    def forget(self, model: Hosted) -> bool:
        return True


def test_a_failed_load_is_answered_however_late_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the pause after the failure is over by then: else it would be neither loaded nor gone, for ever."""
    monkeypatch.setattr(hosted, "FIRST_PAUSE", 0.0)
    entry = Entry(name="m", path=tmp_path, archive=False)
    model = Hosted(entry, tmp_path / "m.sock", 8)
    ours, theirs = socket.socketpair()
    rest = NothingLeft()
    platform = Platform(settings.read({}), rest, rest)  # type: ignore[arg-type]
    platform._loads.append((model, wire.Connection(ours)))
    platform.settle()

    model.fail(InternalError("weights are corrupt"))
    platform.settle()

    theirs.settimeout(PATIENCE)
    answer = theirs.recv(4096)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"weights are corrupt" in answer
    theirs.close()


class Said:
    """A forkserver that has said this."""

    def __init__(self, *messages: Mapping[str, Any]) -> None:
        self._messages = messages

    def messages(self) -> Iterator[Mapping[str, Any]]:
        yield from self._messages


def test_the_death_of_a_process_that_is_no_runner_is_nobodys(tmp_path: Path) -> None:
    """A framework may start one when it is imported, and the forkserver is its parent."""
    chosen = replace(settings.read({}), run_dir=tmp_path)
    slots = Slots(chosen.slots, create=True)
    runners = Runners(chosen, slots, Said({"died": 4711, "status": 0}))  # type: ignore[arg-type]

    assert list(runners.deaths(last_words=lambda _: None)) == []
