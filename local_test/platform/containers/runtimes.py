"""Choice of the runtime: a Docker engine, or without one this repository's server as a process."""

import subprocess

from local_test.platform.containers.docker import DockerRuntime
from local_test.platform.containers.process import ProcessRuntime
from local_test.platform.containers.spec import Runtime
from local_test.platform.events import Events
from local_test.platform.options import Options


def runtime(options: Options, events: Events) -> Runtime:
    """The runtime that the options name; `auto`: Docker if an engine answers."""
    if options.runtime == "docker" or (options.runtime == "auto" and engine_answers()):
        return DockerRuntime(options)
    return ProcessRuntime(options, events)


def engine_answers() -> bool:
    """Whether a Docker engine answers `docker info`."""
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
