"""Which layout multiplies how many rows: measured on pieces of the model's own weights, and remembered.

No rule holds on two processors. For one row of GPT-2, plain float32 takes 11 ms and packed 18 on an Intel with AMX, 27
and 22 on an AMD; from 4 rows on packed wins on both (2 threads, all products of a token).
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from serve.handlers.huggingface.layouts import Half, Layout, Packed, Plain

log = logging.getLogger(__name__)

ROWS = (1, 4, 16)
SURELY_PACKED = 4
CLEAR = 0.05  # the part of the time that plain must save to be called faster: single times are off by as much
# Half takes half of the private memory of Packed. It serves where its mean time over ROWS is at most this many times
# that of Packed: 0.6 to 0.9 for the shapes of SmolLM2 and BART-large, with two threads on an Intel with AMX.
WORTH_HALF = 1.25
MANY = 128  # rows, from which on the plain product of a mapped weight is as fast as any: it is bound by arithmetic
PIECE = 4 << 20  # bytes of a weight that are measured: larger than a second-level cache, so a product reads memory
PIECES = 3
FILE = "layout-times.json"

Name = Literal["plain", "packed", "half"]
Product = Callable[[Tensor], Tensor]


class Times(NamedTuple):
    """Seconds of one product with each number of ROWS, by one thread. `half`: empty where it was not measured."""

    plain: tuple[float, ...]
    packed: tuple[float, ...]
    half: tuple[float, ...] = ()


def fastest_by_rows(times: Times, *, mapped: bool, gain: float) -> list[Name]:
    """The layout that multiplies 1, 2... rows; the last one holds for all larger numbers.

    Args:
        times: with those of `half` if the weight loses nothing in it.
        mapped: whether the weight is in page cache, so that the plain layout may serve beside another one.
        gain: the part of the time, as the mean over ROWS, that a copy of a mapped weight must save; if it does not,
            there is none.
    """
    if times.half and _mean_ratio(times.half, times.packed) <= WORTH_HALF:
        halves: list[Name] = ["half"] * (MANY - 1)
        return [*halves, "plain"] if mapped else ["half"]
    if not mapped:
        return ["packed"]
    least = tuple(map(min, times.plain, times.packed))
    if gain > 0 and _mean_ratio(least, times.plain) > 1 - gain:
        return ["plain"]
    # From 4 rows on, packed was faster on each processor tried. By several threads it is so by more than by one.
    few: list[Name] = [
        "packed" if _at(times.packed, rows) * (1 - CLEAR) < _at(times.plain, rows) else "plain"
        for rows in range(1, SURELY_PACKED)
    ]
    return ["packed"] if few == ["packed"] * len(few) else [*few, "packed"]


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
                self._known = {key: Times(*map(tuple, times)) for key, times in read.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # no times yet; a damaged file is written again

    def times(self, weights: Sequence[Tensor], *, half: bool = False) -> Times:
        """Those of weights of one shape, [out, in] each; they are measured where none are known.

        `half`: with those of Half.
        """
        key = _key(weights[0]) + (" half" if half else "")
        if key not in self._known:
            self._known[key] = measured(weights, half=half)
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


def measured(weights: Sequence[Tensor], *, half: bool = False) -> Times:
    """Times of pieces of these weights. They take turns, so that no product finds its weights in a near cache."""
    kinds: list[Callable[[Tensor], Layout]] = [lambda piece: Plain([(piece, None)]), lambda piece: Packed(piece, None)]
    if half:
        kinds.append(lambda piece: Half(piece, None))
    turns = [[make(piece) for make in kinds] for piece in _pieces(weights)]
    with torch.inference_mode():
        rows = [torch.randn(count, weights[0].shape[1], dtype=weights[0].dtype) for count in ROWS]
        by_count = [_seconds(turns, each) for each in rows]
    return Times(*(tuple(each) for each in zip(*by_count, strict=True)))


def slowness(other: Callable[[Tensor], Product], weight: Tensor, rows: int) -> float:
    """How often the time of a plain float32 product another one takes, over a piece of a weight [out, in].

    other: makes the other product of a piece in float32. Both are given float32 rows.
    """
    pieces = [piece.float() for piece in _pieces([weight])]
    with torch.inference_mode():
        plain, its = _seconds(
            [[Plain([(piece, None)]), other(piece)] for piece in pieces], torch.randn(rows, weight.shape[1])
        )
    return its / plain


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


def _seconds(turns: Sequence[Sequence[Product]], rows: Tensor) -> list[float]:
    """The least time of each product of a turn, over the turns.

    Processor time of one thread: on a busy machine the time of day of a product by several threads says nothing.
    """
    least = [math.inf] * len(turns[0])
    with one_thread():
        for product in turns[0]:
            product(rows)  # prepares the kernel
        for turn in turns:
            for number, product in enumerate(turn):
                began = time.thread_time()
                product(rows)
                least[number] = min(least[number], max(1e-9, time.thread_time() - began))
    return least


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread. Other threads of the process keep their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
