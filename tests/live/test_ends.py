"""When a part exits, all exit and no process is left; at SIGTERM, requests in progress are answered first."""

import http.client
import os
import signal
from pathlib import Path

import pytest

from tests.live.conftest import Later, Start
from tests.live.stack import Server, alive, descendants, toy, wait_until
from tests.patience import PATIENCE


@pytest.fixture
def server(start: Start, models: Path) -> Server:
    """With one model loaded, so that there is a runner."""
    toy(models, "tally")
    server = start(models)
    assert server.invoke("tally", {"id": "warm"}).status == 200
    return server


def _all_busy(server: Server, later: Later) -> set[int]:
    """Every process below the launcher, with the runner at work on an endless request."""
    later(_ignored, server)
    wait_until(lambda: "endless" in (server.models / "tally" / "seen").read_text())
    below = descendants(server.process.pid)
    assert len(below) >= 8  # host, forkserver, runner, gunicorn and nginx with two workers each
    return below


def _ignored(server: Server) -> None:
    try:
        server.invoke("tally", {"id": "endless", "gate": "/nowhere"})
    except (OSError, http.client.HTTPException):
        pass  # cut with everything else


@pytest.mark.parametrize("part", ["nginx", "gunicorn", "host", "forkserver"])
def test_when_one_part_is_killed_all_end(server: Server, later: Later, part: str) -> None:
    """The launcher's status is not 0, its last line names the part, and no process is left, not even a busy runner."""
    below = _all_busy(server, later)

    os.kill(server.part(part), signal.SIGKILL)

    assert server.process.wait(PATIENCE) == 1
    wait_until(lambda: not any(map(alive, below)))
    last = [line for line in server.log.splitlines() if '"CRITICAL"' in line]
    assert part in "".join(last), last
    assert server.events("a process ended, so the server stops")[-1]["part"] == {"forkserver": "host"}.get(part, part)


def test_nothing_outlives_a_killed_launcher(server: Server, later: Later) -> None:
    """kill -9: every process is killed with it, even a runner in the middle of a request."""
    below = _all_busy(server, later)

    server.process.kill()

    wait_until(lambda: not any(map(alive, below)))
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_a_stop_answers_the_requests_in_progress(server: Server, tmp_path: Path, later: Later) -> None:
    """Then exit status 0. Meanwhile the port is closed, and /ping is 503 on open connections."""
    gate = tmp_path / "gate"
    held = later(server.invoke, "tally", {"id": "held", "gate": str(gate)})
    wait_until(lambda: "held" in (server.models / "tally" / "seen").read_text())

    server.process.send_signal(signal.SIGTERM)

    wait_until(lambda: _refuses(server))
    wait_until(lambda: server.on_web_socket("/ping") == 503)
    assert not held.done()
    gate.touch()
    assert held.result().json["id"] == "held"
    assert server.process.wait(PATIENCE) == 0
    assert server.events("drained")
    assert "Traceback" not in server.log
    assert "Exception ignored" not in server.log


def _refuses(server: Server) -> bool:
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_idle_server_stops_at_once(server: Server) -> None:
    """With status 0, although a client keeps its connection open; long before the platform's timeout."""
    below = descendants(server.process.pid)
    with server.connect() as idle:
        idle.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")

        assert server.stop() == 0

    assert server.events("drained")[0]["seconds"] < 20  # SERVE_DRAIN_LIMIT, where whatever is left is cut
    wait_until(lambda: not any(map(alive, below)))
