"""Containers by the docker command: run as the platform runs them, looked at, and removed whatever happens."""

import contextlib
import http.client
import json
import os
import platform
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_test.rehearse.under_test import ContainerUnderTest, RehearsalOptions

NOWHERE = ("127.0.0.1", 1)  # of a container that has ended: nobody's, least of all another server's own 8080
UNITS = {"B": 1, "kB": 1000, "KiB": 1 << 10, "MB": 1000**2, "MiB": 1 << 20, "GB": 1000**3, "GiB": 1 << 30}


class EngineError(Exception):
    """The engine refuses: no such image, nothing that can be started, no engine at all."""


def docker(*arguments: str, limit: float = 120.0) -> str:
    """What a docker command says; EngineError with its last line otherwise."""
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=limit)
    except FileNotFoundError:
        raise EngineError("there is no docker command here") from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"docker {arguments[0]} did not end within {limit:g} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise EngineError(f"docker {arguments[0]}: {said[-1] if len(said) == 1 else ' '.join(said[-2:])}")
    return done.stdout.strip()


def inspected(image: str) -> dict[str, Any]:
    """The image's description; EngineError where it is not here."""
    docker("version", "--format", "{{.Server.Version}}")
    found: list[dict[str, Any]] = json.loads(docker("image", "inspect", image))
    return found[0]


def isolates() -> bool:
    """Whether containers on an internal network can be reached from here: on the engine's own Linux machine only."""
    if platform.system() != "Linux":
        return False
    return "rootless" not in docker("info", "--format", "{{.SecurityOptions}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a container is run. The defaults are the platform's, network isolation included."""

    network: bool = False
    writable_model: bool = False
    model: Path | None = None  # at /opt/ml/model, whose mount is left out where `bare`
    bare: bool = False
    mounts: Mapping[str, Path] | None = None  # further directories, read-only
    env: Mapping[str, str] | None = None
    memory_mb: int = 4096
    options: tuple[str, ...] = ()  # of docker run


class Docked(ContainerUnderTest):
    """A container that the engine runs."""

    def __init__(self, name: str, port: int, options: RehearsalOptions, *, published: bool) -> None:
        self.id = name
        host, at = _published(name, port) if published else (_address(name), port)
        super().__init__(*((host, at) if host and at else NOWHERE), options)

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", self.id))
        return found

    def lives(self) -> bool:
        return bool(self.state["Running"])

    @property
    def log(self) -> str:
        done = subprocess.run(["docker", "logs", "--tail", "20", self.id], capture_output=True, text=True)
        return done.stdout + done.stderr

    def last_words(self) -> str:
        """Why it does not answer: its end, if it has ended, and the end of its log."""
        state = self.state
        how = "runs" if state["Running"] else f"ended with {state['ExitCode']}"
        if state.get("OOMKilled"):
            how += " (killed for memory)"
        lines = [line for line in self.log.splitlines() if line.strip()]
        return f"{how}; log ends: {lines[-1][:160] if lines else '(nothing)'}"

    def memory(self) -> int:
        """Bytes in use, without what the kernel would drop at once."""
        said = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", self.id).split("/")[0].strip()
        number = said.rstrip("KMGTiBkb")
        return int(float(number) * UNITS[said[len(number) :]])


def _address(name: str) -> str:
    return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)


def _published(name: str, port: int) -> tuple[str, int]:
    try:
        return "127.0.0.1", int(docker("port", name, f"{port}/tcp").splitlines()[0].rpartition(":")[2])
    except (EngineError, IndexError):
        return NOWHERE


def terminate(name: str) -> None:
    """SIGTERM to a container, by the engine's own socket where there is one: the command takes a tenth of a second."""
    where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    connection = http.client.HTTPConnection("docker", timeout=30.0)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(where.removeprefix("unix://"))
        connection.request("POST", f"/containers/{name}/kill?signal=SIGTERM")
        done = connection.getresponse().status == 204
    except (OSError, http.client.HTTPException):
        done = False
    finally:
        connection.close()
    if not done:
        docker("kill", "--signal", "TERM", name)


@contextlib.contextmanager
def running(image: str, options: RehearsalOptions, terms: Terms) -> Iterator[Docked]:
    """A started container (it may have ended already), under a fresh name; removed at the end, its network too."""
    name = f"rehearse-{secrets.token_hex(6)}"
    port = int((terms.env or {}).get("SAGEMAKER_BIND_TO_PORT", 8080))
    published = terms.network or not isolates()
    with contextlib.ExitStack() as made:
        where = ["--publish", f"127.0.0.1::{port}"]
        if not published:
            docker("network", "create", "--internal", name)
            made.callback(_gone, "network", "rm", name)
            where = ["--network", name]
        for key, value in {**options.env, **(terms.env or {})}.items():
            where += ["--env", f"{key}={value}"]
        if not terms.bare:
            directory = terms.model or Path(made.enter_context(tempfile.TemporaryDirectory()))
            if terms.model is None:
                directory.chmod(0o777 if terms.writable_model else 0o755)
            where += ["--volume", f"{directory.resolve()}:/opt/ml/model{'' if terms.writable_model else ':ro'}"]
        for inside, outside in (terms.mounts or {}).items():
            where += ["--volume", f"{outside.resolve()}:{inside}:ro"]
        where += ["--memory", f"{terms.memory_mb}m", *terms.options]
        made.callback(_gone, "rm", "--force", "--volumes", name)
        docker("create", "--name", name, *where, image, "serve")
        docker("start", name)
        yield Docked(name, port, options, published=published)


def _gone(*arguments: str) -> None:
    with contextlib.suppress(EngineError):
        docker(*arguments)
