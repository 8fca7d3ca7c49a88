"""Which layout multiplies how many rows: measured on pieces of the model's own weights, and remembered.

No rule holds on two processors. For one row of GPT-2, plain float32 takes 11 ms and packed 18 on an Intel with AMX, 27
and 22 on an AMD; from 4 rows on packed wins on both (2 threads, all products of a token).
"""

import json
import logging
import math
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from serve.handlers.huggingface.layouts import Int8, Layout, Packed, Plain

log = logging.getLogger(__name__)

ROWS = (1, 4, 16)
SURELY_PACKED = 4
CLEAR = 0.05  # the part of the time that plain must save to be called faster: single times are off by as much
PIECE = 4 << 20  # bytes of a weight that are measured: larger than a second-level cache, so a product reads memory
PIECES = 3
FILE = "layout-times.json"


class Times(NamedTuple):
    """Seconds of one product with each number of ROWS, by one thread."""

    plain: tuple[float, ...]
    packed: tuple[float, ...]


def packed_by_rows(times: Times, *, gain: float) -> list[bool]:
    """Whether the packed layout multiplies 1, 2... rows; the last one holds for all larger numbers.

    `gain`: the part of the time, as the mean over ROWS, that packing must save; if it does not, nothing is packed:
    [False].
    """
    least = tuple(map(min, times.plain, times.packed))
    if gain > 0 and _mean_ratio(least, times.plain) > 1 - gain:
        return [False]
    # From 4 rows on, packed was faster on each processor tried. By several threads it is so by more than by one.
    few = [_at(times.packed, rows) * (1 - CLEAR) < _at(times.plain, rows) for rows in range(1, SURELY_PACKED)]
    return [True] if all(few) else [*few, True]


def _mean_ratio(these: Sequence[float], those: Sequence[float]) -> float:
    return math.exp(sum(math.log(one / other) for one, other in zip(these, those, strict=True)) / len(these))


def _at(seconds: Sequence[float], rows: int) -> float:
    """Between two measured numbers of rows, the power law through both."""
    for index in range(len(ROWS) - 1):
        low, high = ROWS[index], ROWS[index + 1]
        if rows <= high:
            part = math.log(rows / low) / math.log(high / low)
            return math.exp((1 - part) * math.log(seconds[index]) + part * math.log(seconds[index + 1]))
    raise ValueError(rows)


class Memory:
    """Times that were measured before: by this process, or by another one that shares the directory."""

    def __init__(self, directory: Path | None) -> None:
        self._path = directory / FILE if directory else None
        self._known: dict[str, Times] = {}
        try:
            if self._path is not None:
                read = json.loads(self._path.read_bytes())
                self._known = {key: Times(tuple(plain), tuple(packed)) for key, (plain, packed) in read.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # no times yet; a damaged file is written again

    def times(self, weights: Sequence[Tensor]) -> Times:
        """Those of weights of one shape, [out, in] each; they are measured where none are known."""
        key = _key(weights[0])
        if key not in self._known:
            self._known[key] = measured(weights)
            self._write()
        return self._known[key]

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            scratch = self._path.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps(self._known))
            scratch.replace(self._path)
        except OSError as error:
            log.warning("the times of layouts cannot be kept", extra={"error": str(error)})


def measured(weights: Sequence[Tensor]) -> Times:
    """Times of pieces of these weights. They take turns, so that no product finds its weights in a near cache."""
    pieces = _pieces(weights)
    plain: list[Layout] = [Plain([(piece, None)]) for piece in pieces]
    packed: list[Layout] = [Packed(piece, None) for piece in pieces]
    with torch.inference_mode():
        rows = [torch.randn(count, pieces[0].shape[1], dtype=pieces[0].dtype) for count in ROWS]
        both = [_seconds(list(zip(plain, packed, strict=True)), each) for each in rows]
    return Times(tuple(each[0] for each in both), tuple(each[1] for each in both))


def int8_slowness(weight: Tensor, rows: int) -> float:
    """How often the time of a plain float32 product an 8-bit product takes, over a piece of a weight."""
    pieces = [piece.float() for piece in _pieces([weight])]
    with torch.inference_mode():
        given = torch.randn(rows, weight.shape[1])
        plain, int8 = _seconds([(Plain([(piece, None)]), Int8(piece, None)) for piece in pieces], given)
        return int8 / plain


def _pieces(weights: Sequence[Tensor]) -> list[Tensor]:
    """PIECES parts of some weights, of one shape, up to PIECE bytes each."""
    outputs, inputs = weights[0].shape
    count = max(1, min(outputs, PIECE // (inputs * weights[0].element_size())))
    starts = range(0, outputs - count + 1, count)
    chosen = []
    for number in range(PIECES):
        turn, index = divmod(number, len(weights))
        start = starts[turn % len(starts)]
        chosen.append(weights[index][start : start + count])
    return chosen


def _seconds(pairs: Sequence[tuple[Layout, Layout]], rows: Tensor) -> tuple[float, float]:
    """The least times of the first layouts and of the second ones, which take turns.

    Processor time of one thread: on a busy machine the time of day of a product by several threads says nothing.
    """
    least = [math.inf, math.inf]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for layout in pairs[0]:
            layout(rows)  # prepares the kernel
        for pair in pairs:
            for number, layout in enumerate(pair):
                began = time.thread_time()
                layout(rows)
                least[number] = min(least[number], max(1e-9, time.thread_time() - began))
    finally:
        torch.set_num_threads(threads)
    return least[0], least[1]


def _key(weight: Tensor) -> str:
    order = "t" if weight.stride(0) == 1 else "n"
    shape = "x".join(map(str, weight.shape))
    return f"{_processor()} {torch.__version__} {weight.dtype} {shape}{order}"


@cache
def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    parts = ("model name", "CPU implementer", "CPU part")
    found = [line.partition(":")[2].strip() for line in lines if line.startswith(parts)]
    return " ".join(dict.fromkeys(found)) + f" {torch.backends.cpu.get_cpu_capability()}"
