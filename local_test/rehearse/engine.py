"""Containers in a Docker engine: run as SageMaker runs them, inspected, and removed in any case."""

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

# Address of a container that has exited. Port 1 is never another server's port, unlike this machine's 8080.
NOWHERE = ("127.0.0.1", 1)
UNITS = {"B": 1, "kB": 1000, "KiB": 1 << 10, "MB": 1000**2, "MiB": 1 << 20, "GB": 1000**3, "GiB": 1 << 30}


class EngineError(Exception):
    """A docker command failed: no such image, a container that does not start, or no engine."""


def docker(*arguments: str, limit: float = 120.0) -> str:
    """The output of a docker command. Raises EngineError with the end of its error output."""
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=limit)
    except FileNotFoundError:
        raise EngineError("the docker command is not installed") from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"docker {arguments[0]}: timeout after {limit:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise EngineError(f"docker {arguments[0]}: {lines[-1] if len(lines) == 1 else ' '.join(lines[-2:])}")
    return done.stdout.strip()


def inspected(image: str) -> dict[str, Any]:
    """The image's description. Raises EngineError if the image is not on this machine."""
    docker("version", "--format", "{{.Server.Version}}")
    found: list[dict[str, Any]] = json.loads(docker("image", "inspect", image))
    return found[0]


def isolates() -> bool:
    """Whether this process reaches containers on an internal network: only with a rootful engine on this Linux."""
    if platform.system() != "Linux":
        return False
    return "rootless" not in docker("info", "--format", "{{.SecurityOptions}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTerms:
    """How a container is run. The defaults are SageMaker's, with network isolation."""

    network: bool = False
    writable_model: bool = False
    model: Path | None = None  # mounted at /opt/ml/model; None: an empty directory
    bare: bool = False  # without any mount at /opt/ml/model
    mounts: Mapping[str, Path] | None = None  # further directories, read-only
    env: Mapping[str, str] | None = None
    memory_mb: int = 4096
    options: tuple[str, ...] = ()  # of docker run


class EngineContainer(ContainerUnderTest):
    """A container that the engine runs."""

    def __init__(self, name: str, port: int, options: RehearsalOptions, *, published: bool) -> None:
        self.id = name
        host, at = _published(name, port) if published else (_address(name), port)
        super().__init__(*((host, at) if host and at else NOWHERE), options)

    @property
    def state(self) -> dict[str, Any]:
        """The engine's description of the container's state."""
        found: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", self.id))
        return found

    def alive(self) -> bool:
        return bool(self.state["Running"])

    @property
    def log(self) -> str:
        """The last lines of the log."""
        done = subprocess.run(["docker", "logs", "--tail", "20", self.id], capture_output=True, text=True)
        return done.stdout + done.stderr

    def failure(self) -> str:
        """Why the container does not answer: its state, and the end of its log."""
        state = self.state
        reason = "running" if state["Running"] else f"exited with {state['ExitCode']}"
        if state.get("OOMKilled"):
            reason += " (out of memory)"
        lines = [line for line in self.log.splitlines() if line.strip()]
        return f"{reason}; log ends: {lines[-1][:160] if lines else '(empty)'}"

    def memory(self) -> int:
        """Bytes in use, without the page cache that the kernel can drop."""
        usage = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", self.id).split("/")[0].strip()
        number = usage.rstrip("KMGTiBkb")
        return int(float(number) * UNITS[usage[len(number) :]])


def _address(name: str) -> str:
    return docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)


def _published(name: str, port: int) -> tuple[str, int]:
    try:
        return "127.0.0.1", int(docker("port", name, f"{port}/tcp").splitlines()[0].rpartition(":")[2])
    except (EngineError, IndexError):
        return NOWHERE


def terminate(name: str) -> None:
    """Sends SIGTERM through the engine's socket if possible: the docker command takes a tenth of a second."""
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    connection = http.client.HTTPConnection("docker", timeout=30.0)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(url.removeprefix("unix://"))
        connection.request("POST", f"/containers/{name}/kill?signal=SIGTERM")
        done = connection.getresponse().status == 204
    except (OSError, http.client.HTTPException):
        done = False
    finally:
        connection.close()
    if not done:
        docker("kill", "--signal", "TERM", name)


@contextlib.contextmanager
def running(image: str, options: RehearsalOptions, terms: RunTerms) -> Iterator[EngineContainer]:
    """A started container with a new name; it may have exited already. It is removed at the end, with its network."""
    name = f"rehearse-{secrets.token_hex(6)}"
    port = int((terms.env or {}).get("SAGEMAKER_BIND_TO_PORT", 8080))
    published = terms.network or not isolates()
    with contextlib.ExitStack() as cleanup:
        arguments = ["--publish", f"127.0.0.1::{port}"]
        if not published:
            docker("network", "create", "--internal", name)
            cleanup.callback(_remove, "network", "rm", name)
            arguments = ["--network", name]
        for key, value in {**options.env, **(terms.env or {})}.items():
            arguments += ["--env", f"{key}={value}"]
        if not terms.bare:
            directory = terms.model or Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
            if terms.model is None:
                directory.chmod(0o777 if terms.writable_model else 0o755)
            arguments += ["--volume", f"{directory.resolve()}:/opt/ml/model{'' if terms.writable_model else ':ro'}"]
        for inside, outside in (terms.mounts or {}).items():
            arguments += ["--volume", f"{outside.resolve()}:{inside}:ro"]
        arguments += ["--memory", f"{terms.memory_mb}m", *terms.options]
        cleanup.callback(_remove, "rm", "--force", "--volumes", name)
        docker("create", "--name", name, *arguments, image, "serve")
        docker("start", name)
        yield EngineContainer(name, port, options, published=published)


def _remove(*arguments: str) -> None:
    with contextlib.suppress(EngineError):
        docker(*arguments)
