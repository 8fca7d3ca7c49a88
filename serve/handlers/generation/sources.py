"""What the decoder reads of its sources: keys and values of the cross-attention, once for each source."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serve.handlers.generation import masks
from serve.handlers.generation.cache import RowCache
from serve.handlers.generation.passes.attention import CALL_BYTES, Group, split

BLOCK_TOKENS = 256  # of a layer of the encoder: rows step between two blocks. Larger products are hardly faster.
Keys = list[tuple[Tensor, Tensor]]  # keys and values of each layer of the decoder: [sources, heads, columns, size]


def padding_bias(lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """A bias that hides the columns behind the ends of sources, [sources, 1, 1, longest]; None if there are none."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    ends = torch.tensor(lengths, device=device)[:, None]
    return masks.bias((torch.arange(longest, device=device) < ends)[:, None, None], dtype)


def blocks(rows: int, columns: int) -> list[slice]:
    """Cut the columns of sources, so that a block of all rows has about BLOCK_TOKENS."""
    step = max(1, BLOCK_TOKENS // rows)
    return [slice(start, min(start + step, columns)) for start in range(0, columns, step)]


def attend(query_key_value: Tensor, part: slice, bias: Tensor | None, scale: float) -> Tensor:
    """The attention of some columns of sources to all, [sources * part, heads * size].

    query_key_value: [sources, columns, 3, heads, size].
    """
    queries, keys, values = query_key_value.permute(2, 0, 3, 1, 4)
    mixed = scaled_dot_product_attention(queries[:, :, part], keys, values, attn_mask=bias, scale=scale)
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)


def as_keys(key_value: Tensor) -> tuple[Tensor, Tensor]:
    """[sources, columns, 2, heads, size] in the form of Keys."""
    keys, values = key_value.permute(2, 0, 3, 1, 4).contiguous()
    return keys, values


class Sources:
    """The sources of a batch, each of which is read by one or more rows, its beams."""

    def __init__(self, keys: Keys, lengths: Sequence[int]) -> None:
        """`lengths`: of the sources, in columns. Each source has one row at first."""
        self.cache = RowCache(len(keys))
        self.cache.extent.rows = len(lengths)
        for layer, both in zip(self.cache.rows_of_layers, keys, strict=True):
            layer.both, layer.is_initialized = list(both), True
        self.lengths = list(lengths)
        self.of_rows = list(range(len(lengths)))  # the source of each row
        self._attention: CrossAttention | None = None

    def join(self, other: "Sources") -> None:
        """Append the sources and the rows of another batch."""
        self.cache.adopt(other.cache, other.lengths)
        self.of_rows += [len(self.lengths) + source for source in other.of_rows]
        self.lengths += other.lengths
        self._attention = None

    def fork(self, row: int, copies: int) -> None:
        """Append rows that read the source of a row."""
        self.of_rows += [self.of_rows[row]] * copies
        self._attention = None

    def leave(self, row: int) -> None:
        """Remove a row, whose number the last row takes, and its source if no other row reads it."""
        source, last = self.of_rows[row], len(self.lengths) - 1
        self.of_rows[row] = self.of_rows[-1]
        self.of_rows.pop()
        if source not in self.of_rows:
            self.cache.drop(source, self.lengths[-1])
            self.lengths[source] = self.lengths[-1]
            self.lengths.pop()
            self.of_rows = [source if each == last else each for each in self.of_rows]
        self._attention = None

    @property
    def attention(self) -> "CrossAttention":
        """The cross-attention of the rows as they are."""
        if self._attention is None:
            self._attention = CrossAttention(self)
        return self._attention


class CrossAttention:
    """New tokens of each row attend to the row's source; the keys of a source are read once for all of its rows."""

    def __init__(self, sources: Sources) -> None:
        self._layers = sources.cache.rows_of_layers
        keys = self._layers[0].both[0]
        rows: list[list[int]] = [[] for _ in sources.lengths]
        for row, source in enumerate(sources.of_rows):
            rows[source].append(row)
        self._rows = len(sources.of_rows)
        # All sources have equally many rows: a source of fewer rows repeats one.
        most = max(map(len, rows))
        order = [row for each in rows for row in [*each, *each[:1] * (most - len(each))]]
        self._order: Tensor | None = None  # the row of each place
        if order != list(range(self._rows)):
            self._order = torch.tensor(order, device=keys.device)
            self._places = torch.tensor([order.index(row) for row in range(self._rows)], device=keys.device)
        column_bytes = 2 * keys.shape[1] * keys.shape[3] * keys.dtype.itemsize
        self._lengths = lengths = tuple(sources.lengths)
        shortest = min(lengths)
        self._groups = []
        for first, end in split(tuple(each - shortest for each in lengths), CALL_BYTES // column_bytes):
            mask = padding_bias(lengths[first:end], keys.dtype, keys.device)
            width = max(lengths[first:end])
            self._groups.append(Group(slice(first, end), slice(0, width), mask))

    def __call__(self, layer: int, queries: Tensor, scale: float) -> Tensor:
        """`queries`: [rows * count, heads * size], as the result."""
        keys, values = self._layers[layer].both
        _, heads, _, size = keys.shape
        if self._order is not None:
            queries = queries.view(self._rows, -1).index_select(0, self._order)
        queries = queries.view(len(self._lengths), -1, heads, size).transpose(1, 2)
        parts = [
            scaled_dot_product_attention(
                queries[group.rows],
                keys[group.rows, :, group.columns],
                values[group.rows, :, group.columns],
                attn_mask=group.mask,
                scale=scale,
            )
            for group in self._groups
        ]
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
        mixed = mixed.transpose(1, 2)
        if self._order is not None:
            mixed = mixed.reshape(len(self._order), -1).index_select(0, self._places)
        return mixed.reshape(-1, heads * size)
