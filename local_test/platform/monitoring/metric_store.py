"""Metrics of one account and region, as CloudWatch stores and answers them: series of aggregated datapoints.

docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/cloudwatch_concepts.html
moto's own store keeps every value in one list without a limit, aligns no period, and has no percentiles.
"""

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from local_test.platform.calls import ValidationError

SIMPLE = ("SampleCount", "Sum", "Average", "Minimum", "Maximum")
FINE = 3 * 3600  # seconds of the platform in which datapoints keep their resolution, as CloudWatch's of one second
MINUTE = 60.0
RETENTION = 15 * 24 * 3600.0  # real seconds, as CloudWatch keeps datapoints of one minute
DIGITS = 3  # significant digits of the values from which percentiles are computed

Dimensions = tuple[tuple[str, str], ...]  # sorted


def dimensions(given: Mapping[str, str]) -> Dimensions:
    """Dimensions in the form that identifies a series."""
    return tuple(sorted(given.items()))


@dataclass(slots=True)
class Distribution:
    """The values of one metric in one period. Its size is bounded: values are kept with three digits."""

    count: float = 0.0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    values: dict[float, float] = field(default_factory=dict)  # rounded value -> how often
    complete: bool = True  # false once a statistic set was added, whose values are not known

    def add(self, value: float, count: float = 1.0) -> None:
        """Adds one value, `count` times."""
        self.count += count
        self.total += value * count
        self.least, self.most = min(self.least, value), max(self.most, value)
        short = -(10**DIGITS) < value < 10**DIGITS and value == int(value)  # the usual 0 and 1, without formatting
        rounded = value if short else float(f"{value:.{DIGITS}g}")
        self.values[rounded] = self.values.get(rounded, 0.0) + count

    def add_set(self, count: float, total: float, least: float, most: float) -> None:
        """Adds a statistic set, as in PutMetricData. Percentiles are then not known, unless all values are equal."""
        if least == most:
            self.add(least, count)
            return
        self.merge(Distribution(count, total, least, most, complete=False))

    def merge(self, other: "Distribution") -> None:
        self.count += other.count
        self.total += other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.complete = self.complete and other.complete
        for value, count in other.values.items():
            self.values[value] = self.values.get(value, 0.0) + count

    def statistic(self, name: str) -> float | None:
        """A statistic by CloudWatch's name; None if it is not known. Raises ValidationError for another name."""
        if name == "SampleCount":
            return self.count
        if name == "Sum":
            return self.total
        if name == "Average":
            return self.total / self.count
        if name == "Minimum":
            return self.least
        if name == "Maximum":
            return self.most
        return self._percentile(percentile(name))

    def _percentile(self, share: float) -> float | None:
        if not self.complete:
            return None
        left = share * self.count
        for value in sorted(self.values):
            left -= self.values[value]
            if left <= 1e-9:
                return min(max(value, self.least), self.most)
        return self.most


def percentile(name: str) -> float:
    """The share of a percentile's name: 0.99 for p99. Raises ValidationError for any other statistic."""
    text = name.removeprefix("p")
    if name.startswith("p") and text.replace(".", "", 1).isdigit() and 0 <= float(text) <= 100:
        return float(text) / 100
    raise ValidationError(
        f"The statistic {name} is not supported here: use one of {', '.join(SIMPLE)}, or a percentile such as p99."
    )


@dataclass(frozen=True, slots=True)
class SeriesName:
    """The identity of a metric."""

    namespace: str
    name: str
    dimensions: Dimensions


@dataclass(slots=True)
class _Series:
    unit: str
    buckets: dict[int, Distribution] = field(default_factory=dict)  # by second of the platform


@dataclass(frozen=True, slots=True)
class Datapoint:
    """The values of one period, which starts at `start`, in seconds since the epoch."""

    start: float
    unit: str
    values: Distribution


class Metrics:
    """Thread-safe. Datapoints are kept by second of the platform, and by real minute once they are old."""

    def __init__(self, speed: float = 1.0) -> None:
        self._speed = speed
        self._lock = threading.Lock()  # guards all series
        self._series: dict[SeriesName, _Series] = {}

    def put(self, name: SeriesName, unit: str, at: float, values: Distribution) -> None:
        """Adds values that were measured at a time, in seconds since the epoch."""
        second = math.floor(at * self._speed + 1e-3)  # times such as 1.7e9 / 60 are rounded
        with self._lock:
            series = self._series.setdefault(name, _Series(unit))
            series.unit = unit
            series.buckets.setdefault(second, Distribution()).merge(values)

    def names(self) -> list[SeriesName]:
        """All series, in order of namespace, name and dimensions."""
        with self._lock:
            found = list(self._series)
        return sorted(found, key=lambda each: (each.namespace, each.name, each.dimensions))

    def datapoints(
        self, name: SeriesName, start: float, end: float, period: float, unit: str | None = None
    ) -> list[Datapoint]:
        """The datapoints of [start, end) in time order; periods are multiples of `period` since the epoch.

        Times and the period are in real seconds. Periods without a value have no datapoint.
        """
        with self._lock:
            series = self._series.get(name)
            if series is None or unit not in (None, series.unit):
                return []
            # The half second of the platform absorbs the rounding of times such as 1.7e9 / 60.
            least, most = math.ceil(start * self._speed - 0.5), math.ceil(end * self._speed - 0.5)
            found: dict[int, Distribution] = {}
            for second, values in series.buckets.items():
                if least <= second < most:
                    number = math.floor((second + 0.5) / self._speed / period)
                    found.setdefault(number, Distribution()).merge(values)
            return [Datapoint(number * period, series.unit, found[number]) for number in sorted(found)]

    def prune(self, now: float) -> None:
        """Merges old datapoints into minutes, and drops the oldest, then series without any."""
        fine, oldest = now * self._speed - FINE, (now - RETENTION) * self._speed
        with self._lock:
            for name, series in list(self._series.items()):
                for second in [each for each in series.buckets if each < fine]:
                    minute = math.ceil((second + 0.5) // (MINUTE * self._speed) * MINUTE * self._speed)
                    if second < oldest:
                        del series.buckets[second]
                    elif minute < second:
                        series.buckets.setdefault(minute, Distribution()).merge(series.buckets.pop(second))
                if not series.buckets:
                    del self._series[name]


def matching(names: Iterable[SeriesName], filters: Sequence[tuple[str, str | None]]) -> Iterator[SeriesName]:
    """The series that have all dimensions of `filters`; a value of None matches every value."""
    for each in names:
        given = dict(each.dimensions)
        if all(name in given and value in (None, given[name]) for name, value in filters):
            yield each
