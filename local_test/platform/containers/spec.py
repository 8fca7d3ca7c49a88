"""Specification of a container, and the protocols of a running container and of the runtime that starts it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from local_test.platform.calls import ValidationError
from local_test.platform.containers.model_data import ModelData
from local_test.platform.containers.usage import Usage

MULTI_MODEL = "com.amazonaws.sagemaker.capabilities.multi-models"
BIND_TO_PORT = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"
PORT = 8080  # without SAGEMAKER_BIND_TO_PORT
FIRST_PORT, SAFE_PORTS = 8081, "9000-9999"  # of several containers; the range for their further listeners


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A ContainerDefinition, with the settings of its variant."""

    image: str
    environment: Mapping[str, str] = field(default_factory=dict)
    hostname: str = ""
    multi_model: bool = False
    caching: bool = True  # ModelCacheSetting
    model: ModelData | None = None  # for a multi-model container, the prefix of its models
    additional: Mapping[str, ModelData] = field(default_factory=dict)  # by channel
    memory_mb: int | None = None  # None: Options.memory_mb
    startup_limit: float | None = None  # ContainerStartupHealthCheckTimeoutInSeconds


class Running(Protocol):
    """A started container; it may have exited since."""

    port: int  # on 127.0.0.1

    def alive(self) -> bool: ...

    @property
    def exit_code(self) -> int | None: ...

    @property
    def log_path(self) -> Path:
        """The file that the container's output is written to while it runs."""
        ...

    def log_tail(self, lines: int) -> str: ...

    def usage(self) -> Usage | None:
        """Processor time and memory so far; None if they cannot be read here."""
        ...

    def inside(self, path: Path) -> str:
        """The path inside the container of a path below its files."""
        ...

    def stop(self, limit: float) -> tuple[float, bool]:
        """Sends SIGTERM, and SIGKILL after `limit` seconds. Returns the seconds taken, and whether it was killed."""
        ...


class Runtime(Protocol):
    """Starts containers."""

    def start(self, spec: ContainerSpec, files: Path, name: str, *, several: int | None = None) -> Running:
        """Starts a container with `files` as its /opt/ml; `several` is its position among several containers.

        Raises ValidationError for an image that SageMaker would refuse.
        """
        ...


def platform_environment(spec: ContainerSpec, several: int | None) -> dict[str, str]:
    """The container's environment: its own variables, and those that the platform sets."""
    environment = dict(spec.environment)
    if several is not None:
        environment["SAGEMAKER_BIND_TO_PORT"] = str(FIRST_PORT + several)
    if several is not None or spec.multi_model:
        environment["SAGEMAKER_SAFE_PORT_RANGE"] = SAFE_PORTS
    if spec.multi_model:
        environment["SAGEMAKER_MULTI_MODEL"] = "true"
    return environment


def check_labels(image: str, labels: Mapping[str, str], *, multi_model: bool, several: bool) -> None:
    """Raises ValidationError if the image lacks the label for a capability that the model needs."""
    for needed, label in ((multi_model, MULTI_MODEL), (several, BIND_TO_PORT)):
        if needed and labels.get(label, "").lower() != "true":
            raise ValidationError(
                f"Your Ecr Image {image} does not contain required {label}=true Docker label(s). "
                f'Add LABEL {label}="true" to its Dockerfile and build it again.'
            )
