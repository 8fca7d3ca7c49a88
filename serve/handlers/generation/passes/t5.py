"""The encoder and decoder of T5 and mT5: their positions are a bias of the attention, by distance."""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import MT5ForConditionalGeneration, PreTrainedModel, T5ForConditionalGeneration

from serve.handlers.generation.cache import FIRST_COLUMNS, RowCache, doubled
from serve.handlers.generation.passes.products import Joined, Product, merge
from serve.handlers.generation.sources import Keys, Sources, as_keys, attend, blocks, padding_bias


def fits(model: PreTrainedModel) -> bool:
    """Whether T5Pass computes what the modules of a model compute.

    In float16 the modules keep one product of each layer, `wo`, in float32.
    """
    return type(model) in (T5ForConditionalGeneration, MT5ForConditionalGeneration) and model.dtype != torch.float16


def merge_products(model: Any) -> None:
    """Make one product of queries, keys and values, of cross-attention's keys and values, and of gate and up."""
    for block in (*model.encoder.block, *model.decoder.block):
        merge(block.layer[0].SelfAttention, ("q", "k", "v"))
        if hasattr(block.layer[-1].DenseReluDense, "wi_0"):
            merge(block.layer[-1].DenseReluDense, ("wi_0", "wi_1"))
    for block in model.decoder.block:
        merge(block.layer[1].EncDecAttention, ("k", "v"))


class T5Pass:
    """The EncoderDecoderPass of a model that fits."""

    def __init__(self, model: Any) -> None:
        self.device = model.device
        self._dtype = model.dtype
        self._source_embedding, self._embedding = model.encoder.embed_tokens, model.decoder.embed_tokens
        self.parts = len(model.encoder.block) + 1
        self._encoder = [_Layer(block) for block in model.encoder.block]
        self._decoder = [_DecoderLayer(block) for block in model.decoder.block]
        self._source_norm, self._norm = model.encoder.final_layer_norm, model.decoder.final_layer_norm
        # The first layer has the biases, and all use them.
        self._source_bias = model.encoder.block[0].layer[0].SelfAttention.compute_bias
        self._bias = model.decoder.block[0].layer[0].SelfAttention.compute_bias
        self._backwards = torch.empty(0, 0)  # [heads, columns]: the bias of distances columns - 1 to 0
        self._head = Product(model.lm_head)
        scales = getattr(model.config, "scale_decoder_outputs", False)
        self._scale: float | None = model.config.d_model**-0.5 if scales else None

    def cache(self) -> RowCache:
        return RowCache(len(self._decoder))

    def encode(self, tokens: Tensor, lengths: list[int]) -> Generator[float, None, Keys]:
        rows, width = tokens.shape
        parts = blocks(rows, width)
        bias = self._source_bias(width, width, device=self.device)
        if (padding := padding_bias(lengths, self._dtype, self.device)) is not None:
            bias = bias + padding
        hidden = self._source_embedding(tokens)
        for number, layer in enumerate(self._encoder):
            mixed = layer.mix(layer.norm(hidden.flatten(0, 1))).view(rows, width, 3, layer.heads, -1)
            computed = []
            for done, part in enumerate(parts):
                yield number + done / len(parts)
                block = hidden[:, part].flatten(0, 1)
                block = layer.output(attend(mixed, part, bias[:, :, part], 1.0), residual=block)
                block = layer.outer(layer.inner(layer.outer_norm(block)), residual=block)
                computed.append(block.view(rows, -1, hidden.shape[-1]))
            hidden = torch.cat(computed, 1)
        hidden = hidden.flatten(0, 1)
        hidden = self._source_norm(hidden)
        keys: Keys = []
        for number, layer in enumerate(self._decoder):
            yield len(self._encoder) + number / len(self._decoder)
            keys.append(as_keys(layer.source_keys(hidden).view(rows, width, 2, layer.heads, -1)))
        return keys

    def __call__(self, tokens: Tensor, columns: Tensor, cache: RowCache, sources: Sources) -> Tensor:
        (rows, count), cross = tokens.shape, sources.attention
        bias = self._row_bias(columns, cache.extent.width)
        hidden = self._embedding(tokens).view(rows * count, -1)
        for number, layer in enumerate(self._decoder):
            mixed = layer.mix(layer.norm(hidden)).view(rows, count, 3, layer.heads, -1)
            queries, keys, values = mixed.permute(2, 0, 3, 1, 4)
            keys, values = cache.rows_of_layers[number].update(keys, values)
            mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=1.0)
            hidden = layer.output(mixed.transpose(1, 2).reshape(rows * count, -1), residual=hidden)
            queries = layer.source_queries(layer.source_norm(hidden))
            hidden = layer.source_output(cross(number, queries, 1.0), residual=hidden)
            hidden = layer.outer(layer.inner(layer.outer_norm(hidden)), residual=hidden)
        hidden = self._norm(hidden)
        if self._scale is not None:
            hidden = hidden * self._scale
        return self._head(hidden)

    def _row_bias(self, columns: Tensor, width: int) -> Tensor:
        """The bias of the columns that each token attends to, [rows or 1, heads, count, width]."""
        known = self._backwards.shape[1]
        if width > known:
            known = doubled(max(known, FIRST_COLUMNS), width)
            self._backwards = self._bias(1, known, device=self.device, past_seen_tokens=known - 1)[0, :, 0]
        if columns.numel() == 1:
            return self._backwards[None, :, None, known - width :]
        distances = columns[:, :, None] - torch.arange(width, device=self.device)  # [rows, count, width]
        bias = self._backwards[:, known - 1 - distances.clamp(min=0)].transpose(0, 1)
        return bias.masked_fill(distances[:, None] < 0, torch.finfo(self._dtype).min)


class _Layer:
    """The self-attention and the feed-forward part of a layer."""

    def __init__(self, block: Any) -> None:
        own, last = block.layer[0], block.layer[-1]
        attention, feed = own.SelfAttention, last.DenseReluDense
        self.heads = attention.n_heads
        self.norm, self.mix = own.layer_norm, Joined([attention.q, attention.k, attention.v])
        self.output = Product(attention.o)
        self.outer_norm, self.outer = last.layer_norm, Product(feed.wo)
        self._gated = hasattr(feed, "wi_0")
        self._joined = Joined([feed.wi_0, feed.wi_1] if self._gated else [feed.wi])
        self._activation = feed.act

    def inner(self, hidden: Tensor) -> Tensor:
        mixed = self._joined(hidden)
        if not self._gated:
            activated: Tensor = self._activation(mixed)
            return activated
        gate, up = mixed.chunk(2, -1)
        gated: Tensor = self._activation(gate) * up
        return gated


class _DecoderLayer(_Layer):
    """A layer with cross-attention."""

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        attention = block.layer[1].EncDecAttention
        self.source_norm = block.layer[1].layer_norm
        self.source_queries, self.source_output = Product(attention.q), Product(attention.o)
        self.source_keys = Joined([attention.k, attention.v])
