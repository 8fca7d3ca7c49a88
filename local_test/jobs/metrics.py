"""Metrics of a training, found in its log by regular expressions."""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

# The metrics of AWS's built-in XGBoost: docs.aws.amazon.com/sagemaker/latest/dg/xgboost-tuning.html
XGBOOST = (
    *("accuracy", "auc", "balanced_accuracy", "error", "f1", "f1_binary", "f1_macro", "logloss", "mae", "map"),
    *("merror", "mlogloss", "mse", "ndcg", "precision", "r2", "recall", "rmse"),
)
NUMBER = r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"


def of_xgboost() -> list[dict[str, str]]:
    """The metric definitions of AWS's built-in XGBoost, which a request leaves out."""
    return [
        {"Name": f"{channel}:{name}", "Regex": rf".*\[[0-9]+\].*#011{channel}-{name}:({NUMBER}).*"}
        for channel in ("train", "validation")
        for name in XGBOOST
    ]


class Metrics:
    """The values of the defined metrics in the lines of a log; thread-safe, since each host has a log."""

    def __init__(self, definitions: Sequence[Mapping[str, str]], found: Callable[[str, float], None]) -> None:
        self._expressions = [(each["Name"], re.compile(each["Regex"])) for each in definitions]
        self._found = found
        self._lock = threading.Lock()  # guards the last values
        self._last: dict[str, tuple[float, datetime]] = {}

    def read(self, line: str) -> None:
        for name, expression in self._expressions:
            matched = expression.search(line)
            if matched is None:
                continue
            try:
                value = float(matched[1])
            except (ValueError, IndexError, TypeError):
                continue  # an expression that finds no number has no value on AWS either
            with self._lock:
                self._last[name] = value, datetime.now(UTC)
            self._found(name, value)

    def final(self) -> list[dict[str, Any]]:
        """FinalMetricDataList: the last value of each metric."""
        with self._lock:
            last = dict(self._last)
        return [{"MetricName": name, "Value": value, "Timestamp": at} for name, (value, at) in last.items()]
