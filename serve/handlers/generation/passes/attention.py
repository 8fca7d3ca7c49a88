"""Attention of new tokens over a RowCache: one call for each layer and group of rows of similar lengths.

A call reads the keys and values of all its rows up to its longest row, at the speed of memory. One call for all rows
would read for 15 short rows what only the long one has.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serve.handlers.generation import masks
from serve.handlers.generation.cache import RowCache

CALL_BYTES = 300_000  # of keys and values, which memory gives in the time that a call costs apart from them, 10 us


class Group(NamedTuple):
    """Rows that share a call, and the columns it reads."""

    rows: slice
    columns: slice
    mask: Tensor | None = None
    causal: bool = False


class Attention:
    """The attention of one pass: its groups are made once for all layers."""

    def __init__(
        self,
        cache: RowCache,
        columns: Tensor,
        windows: Sequence[tuple[str, int]],
        column_bytes: int,
        dtype: torch.dtype,
    ) -> None:
        """`columns`: those of the new tokens, [rows or 1, count]. `windows`: the attention of each layer.

        column_bytes: of the keys and values of one column of a row, in one layer.
        """
        self._layers = cache.rows_of_layers
        groups = {kind: _groups(cache, columns, kind, column_bytes, dtype) for kind in set(windows)}
        self._groups = [groups[kind] for kind in windows]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Write new keys and values [rows, count, key heads, size] to the cache; returns [rows * count, heads * size].

        queries: [rows, count, heads, size].
        """
        rows, count, heads, size = queries.shape
        keys, values = self._layers[layer].write(keys.transpose(1, 2), values.transpose(1, 2))
        shared = heads // keys.shape[1]  # query heads of a key head
        if count == 1:  # they are queries of the key head: a third less time than with enable_gqa
            queries = queries.view(rows, heads // shared, shared, size)
        else:
            queries = queries.transpose(1, 2)
        parts = [
            scaled_dot_product_attention(
                queries[group.rows],
                keys[group.rows, :, group.columns],
                values[group.rows, :, group.columns],
                attn_mask=group.mask,
                is_causal=group.causal,
                scale=scale,
                enable_gqa=count > 1 and shared > 1,
            )
            for group in self._groups[layer]
        ]
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
        if count > 1:
            mixed = mixed.transpose(1, 2)
        return mixed.reshape(rows * count, heads * size)


def _groups(
    cache: RowCache, columns: Tensor, window: tuple[str, int], column_bytes: int, dtype: torch.dtype
) -> list[Group]:
    (kind, size), extent, count = window, cache.extent, columns.shape[1]
    everything = slice(0, extent.rows)
    if extent.columns is None or columns.is_cuda:  # a GPU would have to wait for the lengths
        equal = extent.columns is None
        if equal and kind == masks.FULL and count in (1, extent.width):
            return [Group(everything, slice(0, extent.width), causal=count > 1)]  # without a mask: the fastest kernel
        return [
            Group(everything, slice(0, extent.width), masks.bias(masks.seen(columns, extent.width, *window), dtype))
        ]
    firsts, lasts = columns[:, 0].tolist(), columns[:, -1].tolist()
    shortest = min(lasts)
    groups = []
    for first, end in split(tuple(last - shortest for last in lasts), CALL_BYTES // column_bytes):
        rows, width = slice(first, end), max(lasts[first:end]) + 1
        begin = max(0, min(firsts[first:end]) + 1 - size) if kind == masks.SLIDING else 0
        mask = None
        if begin or count > 1 or kind != masks.FULL or min(lasts[first:end]) + 1 < width:
            mask = masks.bias(masks.seen(columns[rows], width, kind, size)[..., begin:], dtype)
        groups.append(Group(rows, slice(begin, width), mask))
    return groups


@lru_cache(maxsize=64)  # rows grow together, so their differences change only when a row joins or leaves
def split(widths: tuple[int, ...], call: int) -> list[tuple[int, int]]:
    """Cut rows into groups of neighbours at least cost: a group costs its rows times its widest row, plus `call`."""
    best: list[tuple[int, int]] = [(0, 0)]  # of the first n rows: the cost, and the first row of their last group
    for end in range(1, len(widths) + 1):
        widest, options = 0, []
        for first in range(end - 1, -1, -1):
            widest = max(widest, widths[first])
            options.append((best[first][0] + (end - first) * widest + call, first))
        best.append(min(options))
    groups, end = [], len(widths)
    while end:
        groups.append((best[end][1], end))
        end = best[end][1]
    return groups[::-1]
