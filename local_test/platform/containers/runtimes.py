"""What runs an image here: a Docker engine, or where none answers our own server as a process in its place."""

import subprocess

from local_test.platform.containers.docker import DockerRuntime
from local_test.platform.containers.process import ProcessRuntime
from local_test.platform.containers.spec import Runtime
from local_test.platform.events import Events
from local_test.platform.options import Options


def runtime(options: Options, events: Events) -> Runtime:
    """What the options ask for; `auto`: Docker where an engine answers."""
    if options.runtime == "docker" or (options.runtime == "auto" and engine_answers()):
        return DockerRuntime(options)
    return ProcessRuntime(options, events)


def engine_answers() -> bool:
    """Whether there is a Docker engine that we may use."""
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
