"""What ends a `generate` of several texts: each at its own deadline."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria


class Deadlines(StoppingCriteria):
    """`passed` tells which texts were late when it was last asked, after each token."""

    def __init__(self, deadlines: Sequence[float]) -> None:
        self._deadlines = deadlines
        self.passed = [False] * len(deadlines)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        self.passed = [deadline <= now for deadline in self._deadlines]
        rows = input_ids.shape[0] // len(self.passed)  # a row for each beam, or for each candidate, which are more
        return torch.tensor(self.passed, device=input_ids.device).repeat_interleave(rows)
