"""The host's decisions on late or unexpected events, without a process: causes, failed loads, unknown children."""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve import settings
from serve.catalog.catalog import Entry
from serve.errors import InternalError
from serve.host import model as host_model
from serve.host.answers import Cause, Observed, cause
from serve.host.model import ServedModel
from serve.host.model_api import MultiModelApi
from serve.host.runners import Runners
from serve.http import wire
from tests.patience import PATIENCE


class NothingLeft:
    """A store and sockets in which nothing of a failed load is left."""

    def drop(self, model: ServedModel) -> None:
        pass

    def unload(self, model: ServedModel, reason: str) -> None:
        model.close()

    def forget(self, model: ServedModel) -> bool:
        return True


def test_a_failed_load_is_answered_after_its_pause_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the pause after the failure is over: otherwise the model would stay neither loaded nor unloaded."""
    monkeypatch.setattr(host_model, "FIRST_PAUSE", 0.0)
    entry = Entry(name="m", path=tmp_path, archive=False)
    model = ServedModel(entry, tmp_path / "m.sock", 8)
    ours, theirs = socket.socketpair()
    rest = NothingLeft()
    api = MultiModelApi(settings.read({}), rest, rest)  # type: ignore[arg-type]
    api._loads.append((model, wire.Connection(ours)))
    api.settle()

    model.fail(InternalError("weights are corrupt"))
    api.settle()

    theirs.settimeout(PATIENCE)
    answer = theirs.recv(4096)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"weights are corrupt" in answer
    theirs.close()


NOTHING = Observed(paused=False, exited=False, crashed=False, ready=False, may_have_begun=True, timed_out=False)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param({"paused": True}, Cause.FAILURE, id="a pause names its failure"),
        pytest.param({"paused": True, "exited": True, "ready": True}, Cause.FAILURE, id="a pause comes before an exit"),
        pytest.param({"paused": True, "crashed": True}, Cause.FAILURE, id="a pause comes before a crash"),
        pytest.param({"crashed": True}, Cause.CRASH, id="a recent crash"),
        pytest.param({"crashed": True, "ready": True}, Cause.CRASH, id="a recent crash, with a new runner ready"),
        pytest.param({"exited": True}, Cause.WAIT, id="an exit waits for its report"),
        pytest.param({"exited": True, "crashed": True}, Cause.WAIT, id="an exit is newer than a reported crash"),
        pytest.param({"exited": True, "timed_out": True}, Cause.EXIT, id="an exit is not waited for without end"),
        pytest.param({"exited": True, "may_have_begun": False}, Cause.EXIT, id="an exit, if the request never began"),
        pytest.param({"ready": True}, Cause.WAIT, id="a crash that is not visible yet"),
        pytest.param({"ready": True, "timed_out": True}, Cause.UNKNOWN, id="no crash became visible"),
        pytest.param({"ready": True, "may_have_begun": False}, Cause.UNKNOWN, id="no wait if the request never began"),
        pytest.param({}, Cause.UNKNOWN, id="no runner is ready, and nothing failed"),
    ],
)
def test_the_cause_of_a_broken_connection(seen: dict[str, bool], expected: Cause) -> None:
    """A failure, a crash, an exit without its report, nothing; or wait for the forkserver's report."""
    assert cause(replace(NOTHING, **seen)) is expected


class Reports:
    """A forkserver that has sent these messages."""

    def __init__(self, *messages: Mapping[str, Any]) -> None:
        self._messages = messages

    def messages(self) -> Iterator[Mapping[str, Any]]:
        yield from self._messages


def test_the_exit_of_a_process_that_is_no_runner_is_ignored(tmp_path: Path) -> None:
    """A framework may start a process when the forkserver imports it."""
    chosen = replace(settings.read({}), run_dir=tmp_path)
    runners = Runners(chosen, Reports({"died": 4711, "status": 0}))  # type: ignore[arg-type]

    assert list(runners.exits(read_messages=lambda _: None)) == []
