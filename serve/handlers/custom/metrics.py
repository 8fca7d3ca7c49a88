"""Metrics of a model's own code: each value becomes one log event `metric`.

The methods are those of `context.metrics` in multi-model-server 1.1.11 and TorchServe 0.12.0.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger(__name__)

TIMES, SIZES = ("ms", "s"), ("MB", "kB", "GB", "B")


class Metric:
    """A metric by name and unit; `dimension_names` name the values that `add_or_update` gets."""

    def __init__(
        self, model_name: str, metric_name: str, unit: str, dimension_names: Sequence[str] = (), metric_type: Any = None
    ) -> None:
        self._model_name = model_name
        self.metric_name = metric_name
        self.unit = unit
        self.dimension_names = list(dimension_names)
        self.metric_type = metric_type

    def add_or_update(self, value: Any, dimension_values: Sequence[Any] = (), request_id: str = "") -> None:
        """Raises ValueError for another number of values than there are names."""
        if len(dimension_values) != len(self.dimension_names):
            raise ValueError(f"{self.metric_name} has the dimensions {self.dimension_names}, not {dimension_values}")
        extra = {
            "model": self._model_name,
            "metric": self.metric_name,
            "value": value,
            "unit": self.unit,
            "dimensions": dict(zip(self.dimension_names, map(str, dimension_values), strict=True)),
            "request_id": request_id,
        }
        log.info("metric", extra=extra)

    def update(self, value: Any, request_id: str = "", dimensions: Sequence[Any] = ()) -> None:
        """`dimensions`: objects with a name and a value; they replace the names."""
        self.dimension_names = [each.name for each in dimensions]
        self.add_or_update(value, [each.value for each in dimensions], request_id)


class Metrics:
    """`idx` is the number of a request in its batch; without it a value belongs to all of them."""

    def __init__(self, request_ids: Mapping[int, str] | None, model_name: str) -> None:
        self.request_ids = request_ids
        self.model_name = model_name
        self.store: list[Metric] = []
        self.cache: dict[str, Metric] = {}

    def set_request_ids(self, request_ids: Mapping[int, str] | None) -> None:
        self.request_ids = request_ids

    def add_counter(self, name: str, value: Any, idx: int | None = None, dimensions: Any = None) -> None:
        self._add(name, value, "count", idx, dimensions)

    def add_time(
        self,
        name: str,
        value: Any,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Any = None,
        metric_type: Any = 0,
    ) -> None:
        """Raises ValueError for a unit that is neither ms nor s."""
        self._add(name, value, _one_of(TIMES, unit), idx, dimensions)

    def add_size(
        self,
        name: str,
        value: Any,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Any = None,
        metric_type: Any = 0,
    ) -> None:
        """Raises ValueError for another unit than MB, kB, GB and B."""
        self._add(name, value, _one_of(SIZES, unit), idx, dimensions)

    def add_percent(
        self, name: str, value: Any, idx: int | None = None, dimensions: Any = None, metric_type: Any = 0
    ) -> None:
        self._add(name, value, "percent", idx, dimensions)

    def add_error(self, name: str, value: Any, dimensions: Any = None) -> None:
        self._add(name, value, "", None, dimensions)

    def add_metric(
        self, name: str, value: Any, unit: Any = None, idx: Any = None, dimensions: Any = None, metric_type: Any = 0
    ) -> None:
        """`unit` and `idx` in either order: multi-model-server has `idx` first, TorchServe `unit`."""
        if isinstance(unit, int) or isinstance(idx, str):
            unit, idx = idx, unit
        self._add(name, value, unit or "", idx, dimensions)

    def add_metric_to_cache(
        self, metric_name: str, unit: str, dimension_names: Sequence[str] = (), metric_type: Any = 0
    ) -> Metric:
        """A metric that the code updates by itself."""
        found = Metric(self.model_name, metric_name, unit, dimension_names, metric_type)
        self.cache[metric_name] = found
        return found

    def get_metric(self, metric_name: str, metric_type: Any = 0) -> Metric:
        """The metric that `add_metric_to_cache` made. Raises KeyError."""
        return self.cache[metric_name]

    def _add(self, name: str, value: Any, unit: str, idx: int | None, dimensions: Any) -> None:
        if dimensions is not None and not isinstance(dimensions, list):
            raise ValueError(f"the dimensions of {name} are no list: {type(dimensions).__name__}")
        found = Metric(self.model_name, name, unit)
        self.store.append(found)
        found.update(value, self._ids(idx), dimensions or [])

    def _ids(self, idx: int | None) -> str:
        ids = self.request_ids or {}
        return ",".join(ids.values()) if idx is None or idx not in ids else ids[idx]


def _one_of(known: Sequence[str], unit: str) -> str:
    if unit not in known:
        raise ValueError(f"the unit is {unit!r}, not one of {', '.join(known)}")
    return unit
