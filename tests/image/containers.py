"""A container under test: asked, watched and waited for by the docker command alone."""

import http.client
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.patience import PATIENCE


def docker(*arguments: str, check: bool = True) -> str:
    """What a docker command says on stdout; with check, its failure is the test's."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Container:
    """One running container, and how to talk to it."""

    id: str

    @property
    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout

    @property
    def running(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self.id) == "true"

    @property
    def exit_code(self) -> int:
        return int(docker("inspect", "--format", "{{.State.ExitCode}}", self.id))

    def run(self, *command: str) -> str:
        return docker("exec", self.id, *command)

    def ask(self, path: str, body: str = "", content_type: str = "", timeout: float = PATIENCE) -> Answer:
        """A GET, or a POST when there is a body. The port is the one the engine found free."""
        port = docker("port", self.id, "8080/tcp").rpartition(":")[2]
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=timeout)
        try:
            headers = {"Content-Type": content_type} if content_type else {}
            connection.request("POST" if body else "GET", path, body.encode() or None, headers)
            reply = connection.getresponse()
            return Answer(reply.status, reply.read())
        finally:
            connection.close()

    def wait_until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Returns as soon as it holds; fails when the time is over, or the container."""
        end = time.monotonic() + seconds
        while not holds():
            assert self.running, f"ended with {self.exit_code} while waiting for {what}"
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            time.sleep(0.1)

    def wait_for_ping(self, seconds: float = PATIENCE) -> None:
        self.wait_until(self._pings, seconds, "GET /ping to be 200")

    def _pings(self) -> bool:
        try:
            return self.ask("/ping", timeout=2).status == 200
        except (OSError, http.client.HTTPException):
            return False


Start = Callable[..., Container]
