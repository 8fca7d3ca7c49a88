"""Records of models as the catalog makes them, for tests that build a handler by itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.catalog.kinds import HANDLERS
from serve.catalog.model_config import ModelConfig, checked_options


def config_of(
    handler: str | type, directory: Path, options: Mapping[str, Any] | None = None, *, name: str = "m", **changes: Any
) -> ModelConfig[Any]:
    """The record of a model of this handler (its name or its class); its options are checked as at a scan."""
    if isinstance(handler, type):
        where = f"{handler.__module__}:{handler.__qualname__}"
        handler = next(each for each, place in HANDLERS.items() if place == where)
    checked = checked_options(handler, dict(options or {}))
    return ModelConfig(name=name, handler=handler, directory=directory, options=checked, **changes)
