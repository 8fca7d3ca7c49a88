"""What one run of the platform is given: where it works, and the platform's own times and limits."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Seconds and bytes are SageMaker's where it has published them; tests shorten the waits."""

    work: Path  # model directories of instances, one below the other; emptied of what an instance leaves
    port: int = 0  # of the endpoint to give boto3; 0: one that is free
    runtime: str = "auto"  # docker, process, or auto: Docker where an engine answers
    memory_mb: int = 2048  # each container may use
    ping_every: float = 5.0
    ping_limit: float = 2.0
    red_pings: int = 3  # so many in a row, and a container is replaced
    startup_limit: float = 480.0  # ContainerStartupHealthCheckTimeoutInSeconds overrides it
    invoke_limit: float = 60.0
    stream_limit: float = 480.0
    loads: int = 4  # that a container is asked for at once; SageMaker's figure is not published
    load_limit: float = 360.0  # a load goes on so long after its first caller gave up
    stop_limit: float = 30.0  # between SIGTERM and SIGKILL
    payload_bytes: int = 25 << 20
