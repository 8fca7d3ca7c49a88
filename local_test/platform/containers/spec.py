"""A container as the platform sees it: what it is made from, what it is while it runs, and what starts it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from local_test.platform.calls import ValidationError
from local_test.platform.containers.model_data import ModelData

MULTI_MODEL = "com.amazonaws.sagemaker.capabilities.multi-models"
BIND_TO_PORT = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"
PORT = 8080  # where SAGEMAKER_BIND_TO_PORT says nothing
FIRST_PORT, SAFE_PORTS = 8081, "9000-9999"  # of several containers; what they may listen on besides


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A ContainerDefinition, with what its variant adds."""

    image: str
    environment: Mapping[str, str] = field(default_factory=dict)
    hostname: str = ""
    multi_model: bool = False
    caching: bool = True  # ModelCacheSetting
    model: ModelData | None = None  # of a multi-model container, the prefix below which its models lie
    additional: Mapping[str, ModelData] = field(default_factory=dict)  # by channel
    memory_mb: int | None = None  # None: as the options say
    startup_limit: float | None = None  # ContainerStartupHealthCheckTimeoutInSeconds


class Running(Protocol):
    """A container that was started; it may have ended since."""

    port: int  # on 127.0.0.1

    def alive(self) -> bool: ...

    @property
    def exit_code(self) -> int | None: ...

    def log_tail(self, lines: int) -> str: ...

    def inside(self, path: Path) -> str:
        """A path below its files as the container sees it."""
        ...

    def stop(self, limit: float) -> tuple[float, bool]:
        """SIGTERM, and SIGKILL after so many seconds; how long it took, and whether it came to that."""
        ...


class Runtime(Protocol):
    """Starts containers."""

    def start(self, spec: ContainerSpec, files: Path, name: str, *, several: int | None = None) -> Running:
        """A container over `files`, which it sees as /opt/ml; `several` is its place where it is one of several.

        Raises ValidationError for an image that the platform would refuse.
        """
        ...


def platform_environment(spec: ContainerSpec, several: int | None) -> dict[str, str]:
    """The container's environment: its own, and what the platform sets."""
    given = dict(spec.environment)
    if several is not None:
        given["SAGEMAKER_BIND_TO_PORT"] = str(FIRST_PORT + several)
    if several is not None or spec.multi_model:
        given["SAGEMAKER_SAFE_PORT_RANGE"] = SAFE_PORTS
    if spec.multi_model:
        given["SAGEMAKER_MULTI_MODEL"] = "true"
    return given


def check_labels(image: str, labels: Mapping[str, str], *, multi_model: bool, several: bool) -> None:
    """Raises ValidationError where the image does not say that it can do what is asked of it."""
    for wanted, label in ((multi_model, MULTI_MODEL), (several, BIND_TO_PORT)):
        if wanted and labels.get(label, "").lower() != "true":
            raise ValidationError(
                f"Your Ecr Image {image} does not contain required {label}=true Docker label(s). "
                f'Add LABEL {label}="true" to its Dockerfile and build it again.'
            )
