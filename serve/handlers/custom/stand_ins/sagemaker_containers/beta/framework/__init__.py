"""content_types, encoders, errors and worker. Other modules can be imported, as samples do, but have no functions."""

from typing import Any


class _Absent:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        raise AttributeError(
            f"sagemaker_containers.beta.framework.{self._name}.{attribute} is not in this image: "
            "model code can use content_types, encoders, errors and worker"
        )


def __getattr__(name: str) -> Any:
    if name in ("env", "modules", "server", "transformer", "files", "functions", "mapping", "params", "runner"):
        return _Absent(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
