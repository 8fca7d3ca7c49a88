"""Runtime by the docker command: memory limit, mounts and environment as on SageMaker. No image is pulled."""

import json
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from local_test import leftovers
from local_test.platform.calls import InternalFailure, ValidationError
from local_test.platform.containers.spec import PORT, ContainerSpec, check_labels, platform_environment
from local_test.platform.containers.usage import Usage, usage
from local_test.platform.options import Options

OPT_ML = PurePosixPath("/opt/ml")
LABEL = "local-platform"  # on every container, to find the containers of an emulator that was killed
DESKTOP = "host.docker.internal"
LOG_LINES = 1000  # of a removed container's log that stay readable


class DockerRuntime:
    """Starts containers in this machine's Docker engine."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def start(self, spec: ContainerSpec, files: Path, name: str, *, several: int | None = None) -> "DockerRunning":
        config = _image_config(spec.image)
        labels = config.get("Labels") or {}
        check_labels(spec.image, labels, multi_model=spec.multi_model, several=several is not None)
        environment = reachable(platform_environment(spec, several))
        port = int(environment.get("SAGEMAKER_BIND_TO_PORT", PORT))
        memory = f"{spec.memory_mb or self._options.memory_mb}m"
        command = [
            *("run", "--detach", "--name", f"{name}-{uuid.uuid4().hex[:8]}".replace("/", "-"), "--label", LABEL),
            *("--memory", memory, "--memory-swap", memory),
            *("--publish", f"127.0.0.1::{port}"),
            *host_options(),
            *("--volume", f"{files.absolute()}:{OPT_ML}:ro"),
            *(part for key, value in environment.items() for part in ("--env", f"{key}={value}")),
            *(spec.image, "serve"),
        ]
        done = _docker(*command)
        if done.returncode:
            raise InternalFailure(f"docker could not start {spec.image}: {done.stderr.strip()}")
        return DockerRunning(done.stdout.strip(), port, files.absolute())


class DockerRunning:
    """A started container of the engine. `stop` also removes it."""

    def __init__(self, container: str, port: int, files: Path) -> None:
        self.id = container
        leftovers.container(container)
        self._files = files
        self._final_log = ""
        self._final_code: int | None = None  # set once the container is removed
        self._work = Path(tempfile.mkdtemp(prefix="log-"))
        with self.log_path.open("ab") as log:
            # Ends with the container. Its own session: Ctrl-C reaches the emulator only.
            follow = ["docker", "logs", "--follow", container]
            self._following = subprocess.Popen(follow, stdout=log, stderr=log, start_new_session=True)
        published = _docker("port", container, f"{port}/tcp").stdout.split("\n")[0]
        # A container that exited immediately has no published port; then the first ping reports the exit.
        self.port = int(published.rpartition(":")[2] or 1)

    def alive(self) -> bool:
        return self._final_code is None and self._state().get("Running", False) is True

    @property
    def exit_code(self) -> int | None:
        if self._final_code is None:
            state = self._state()
            return int(state["ExitCode"]) if state and not state["Running"] else None
        return self._final_code

    @property
    def log_path(self) -> Path:
        return self._work / "log"

    def log_tail(self, lines: int) -> str:
        if self._final_code is not None:
            return "\n".join(self._final_log.splitlines()[-lines:])
        done = subprocess.run(
            ["docker", "logs", "--tail", str(lines), self.id],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        return done.stdout.strip()

    def usage(self) -> Usage | None:
        pid = self._state().get("Pid")  # of this machine, if the engine runs on it
        return usage(pid) if pid else None

    def inside(self, path: Path) -> str:
        return str(OPT_ML / path.absolute().relative_to(self._files))

    def stop(self, limit: float) -> tuple[float, bool]:
        began, killed = time.monotonic(), False
        # Not `docker stop`: that sends the image's STOPSIGNAL. SageMaker always sends SIGTERM.
        _docker("kill", "--signal", "TERM", self.id)
        try:
            subprocess.run(["docker", "wait", self.id], capture_output=True, timeout=limit)
        except subprocess.TimeoutExpired:
            killed = True
            _docker("kill", self.id)
        took = time.monotonic() - began
        code, self._final_log = self.exit_code, self.log_tail(LOG_LINES)
        self._final_code = -1 if code is None else code
        _docker("rm", "--force", "--volumes", self.id)
        leftovers.ended(self.id)
        self._following.wait()
        shutil.rmtree(self._work, ignore_errors=True)
        return took, killed

    def _state(self) -> dict[str, Any]:
        done = _docker("inspect", "--format", "{{json .State}}", self.id)
        return json.loads(done.stdout) if done.returncode == 0 else {}


@cache
def host_address() -> str:
    """The name or address by which containers reach this machine.

    On Linux it is the address of the engine's bridge, which is one of this machine. Engines in a virtual machine, as
    Docker Desktop's, have a name for the machine around it, which leads to its loopback.
    """
    done = _docker("network", "inspect", "bridge", "--format", "{{range .IPAM.Config}}{{.Gateway}} {{end}}")
    for address in done.stdout.split():
        with socket.socket() as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                continue
            return address
    return DESKTOP


def reachable(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a container, where loopback is the container itself: the platform's URL names the machine."""
    return {
        key: value.replace("//127.0.0.1:", f"//{host_address()}:") if key.startswith("AWS_ENDPOINT_URL") else value
        for key, value in environment.items()
    }


def host_options() -> tuple[str, ...]:
    """The options of `docker run` for `host_address`."""
    return ("--add-host", f"{DESKTOP}:host-gateway") if host_address() == DESKTOP else ()


def has_image(name: str) -> bool:
    """Whether an engine of this machine answers and has the image."""
    try:
        return _docker("image", "inspect", name).returncode == 0
    except OSError:  # there is no docker command
        return False


def _image_config(name: str) -> dict[str, Any]:
    """The image's configuration. Raises ValidationError if the image is not on this machine."""
    done = _docker("image", "inspect", "--format", "{{json .Config}}", name)
    if done.returncode:
        raise ValidationError(
            f"Requested image {name} not found. No image is pulled here: docker pull it, or build it with this name."
        )
    config: dict[str, Any] = json.loads(done.stdout)
    return config


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True)
