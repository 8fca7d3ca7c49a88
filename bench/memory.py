"""The limit of memory: a decoding step reads the weights of its layers once, and memory has a speed."""

import time
from typing import Any

READ = 1 << 29  # bytes of the matrix: more than a processor's caches hold
WIDE = 1 << 13  # numbers of a row
PASSES = 8


class Reader:
    """Reads memory with the threads of its process (bench/child.py)."""

    def __init__(self) -> None:
        import torch

        self._matrix = torch.ones(READ // 4 // WIDE, WIDE, dtype=torch.float32)
        self._vector = torch.ones(WIDE, dtype=torch.float32)

    def gigabytes_per_second(self) -> float:
        """The fastest of some products of a large float32 matrix and a vector."""
        took = []
        for _ in range(PASSES):
            began = time.perf_counter()
            self._matrix.mv(self._vector)
            took.append(time.perf_counter() - began)
        return READ / min(took) / 1e9


def limit(weights: int, gigabytes_per_second: float, callers: int, generate: float, ours: float) -> dict[str, float]:
    """Figures beside a row: the least time of a step, and `most`, the largest ratio to `generate` that it allows.

    Callers get a token each in a step; `generate` and `ours` are tokens/s. The time of prompts is not counted, nor that
    products of many rows take longer than the reading of their weights. So the largest ratio lies below `most`.
    """
    step_ms = weights / gigabytes_per_second / 1e6
    return {
        "weights_mb": weights / 1e6,
        "gb_per_s": gigabytes_per_second,
        "step_ms": step_ms,
        "ours_ms": callers / ours * 1e3,
        "most": callers / step_ms * 1e3 / generate,
    }


def bytes_of_a_step(model: Any) -> int:
    """Bytes of the weights that one decoding step with a cache multiplies, of a transformers model.

    These are the two-dimensional weights of the modules that the second step calls. The first step computes keys and
    values of an encoder's outputs, which later steps only read. An embedding is a look-up of a few rows.
    """
    import torch

    called: dict[int, int] = {}

    def note(module: Any, *_: Any) -> None:
        weight = getattr(module, "weight", None)
        if weight is not None and weight.ndim == 2 and not isinstance(module, torch.nn.Embedding):
            called[id(module)] = weight.numel() * weight.element_size()

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    hooks.append(model.register_forward_pre_hook(lambda *_: called.clear()))
    try:
        with torch.inference_mode():
            model.generate(torch.full((1, 8), 7), min_new_tokens=3, max_new_tokens=3, do_sample=False, num_beams=1)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(called.values())
