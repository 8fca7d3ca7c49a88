"""What one rehearsal is given: a request that must work, a model, and the platform's own times and sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Seconds and bytes are SageMaker's where it has published them; tests shorten the waits."""

    payload: bytes | None = None  # must be answered 200; None: `probe` is sent, and any documented status is good
    content_type: str = "application/json"
    target: str = ""  # X-Amzn-SageMaker-Target-Model, for one container with several models
    model: Path | None = None  # with an image, mounted; with a URL, the path as the server there sees it
    env: Mapping[str, str] = field(default_factory=dict)  # of the container, beside what the platform sets
    multi_model: bool = False  # asked for by name; with an image its label is enough
    memory_mb: int = 4096
    scarce_mb: int = 1024  # memory in which loads must at some time end in 507
    scarce_loads: int = 128  # after so many that fit, that is given up
    startup_limit: float = 480.0  # ContainerStartupHealthCheckTimeoutInSeconds overrides the platform's
    slack: float = 20.0  # a further start may take so much longer than twice the first
    ping_limit: float = 2.0
    accept_limit: float = 0.25
    invoke_limit: float = 60.0
    load_limit: float = 360.0
    stop_limit: float = 30.0
    busy_seconds: float = 2.0  # of load from `callers` at once
    callers: int = 16
    connections: int = 128  # that do nothing
    image_bytes: int = 10_000 * MB  # serverless endpoints take no larger image

    @property
    def sent(self) -> bytes:
        return b"{}" if self.payload is None else self.payload
