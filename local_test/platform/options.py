"""Options of one emulator: its working directory, runtime, time limits and size limits."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times are in seconds. Defaults are SageMaker's published values where there are any; tests use shorter ones."""

    work: Path  # one directory for each instance; an instance removes its own when it stops
    state: Path | None = None  # records of pipelines, which survive a restart; None: in memory
    port: int = 0  # of the URL that boto3 uses; 0: a free port
    runtime: str = "auto"  # docker, process, or auto: docker if an engine answers
    memory_mb: int = 2048  # memory limit of each container
    ping_every: float = 5.0
    ping_limit: float = 2.0
    failed_pings: int = 3  # consecutive failed pings after which a container is replaced
    startup_limit: float = 480.0  # ContainerStartupHealthCheckTimeoutInSeconds overrides it
    invoke_limit: float = 60.0
    stream_limit: float = 480.0
    loads: int = 4  # concurrent model loads in one container; SageMaker's value is not published
    load_limit: float = 360.0  # a load may continue this long, also after the call that caused it has timed out
    stop_limit: float = 30.0  # from SIGTERM to SIGKILL
    payload_bytes: int = 25 << 20
    job_stop_limit: float = 120.0  # from SIGTERM to SIGKILL of a training or processing job
    images: tuple[str, ...] = ("sagemaker-serve",)  # names of this repository's image, without registry and tag
    clock_speed: float = 1.0  # seconds of alarms, scaling and updates' waits that pass in one real second
