"""Choice of the runtime: a Docker engine, this repository's server as a process, or either by the image."""

import subprocess
from pathlib import Path

from local_test.platform.containers import docker, images
from local_test.platform.containers.docker import DockerRuntime
from local_test.platform.containers.process import ProcessRuntime
from local_test.platform.containers.spec import ContainerSpec, Running, Runtime
from local_test.platform.events import Events
from local_test.platform.options import Options


def runtime(options: Options, events: Events) -> Runtime:
    """The runtime that the options name; `auto`: by the image if an engine answers, else processes."""
    if options.runtime == "docker":
        return DockerRuntime(options)
    if options.runtime == "auto" and engine_answers():
        return ByImage(options, events)
    return ProcessRuntime(options, events)


class ByImage:
    """Docker for the images that the engine has. A process replaces those that this repository's server stands for."""

    def __init__(self, options: Options, events: Events) -> None:
        self._options = options
        self._docker = DockerRuntime(options)
        self._process = ProcessRuntime(options, events)

    def start(self, spec: ContainerSpec, files: Path, name: str, *, several: int | None = None) -> Running:
        replaced = images.is_served(spec.image, self._options.images) and not docker.has_image(spec.image)
        chosen: Runtime = self._process if replaced else self._docker
        return chosen.start(spec, files, name, several=several)


def engine_answers() -> bool:
    """Whether a Docker engine answers `docker info`."""
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
