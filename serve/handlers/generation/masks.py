"""Which columns of a RowCache the queries of a pass attend to."""

import torch
from torch import Tensor

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
KINDS = frozenset({FULL, SLIDING, CHUNKED})  # of layers that a RowCache can hold


def seen(columns: Tensor, width: int, kind: str = FULL, size: int = 0) -> Tensor:
    """Whether a query attends to a column: [rows or 1, 1, count, width].

    Args:
        columns: those of the queries, [rows or 1, count].
        width: the number of columns that attention may use.
        size: of the window or chunk.
    """
    keys = torch.arange(width, device=columns.device)
    at = columns[:, None, :, None]
    found = keys <= at
    if kind == SLIDING:
        found = found & (keys > at - size)
    elif kind == CHUNKED:
        found = found & (keys // size == at // size)
    return found


def bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores."""
    # The lowest number and not -inf, which would give NaN for a padded query that attends to nothing.
    return torch.zeros((), dtype=dtype, device=seen.device).where(seen, torch.finfo(dtype).min)
