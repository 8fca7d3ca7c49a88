"""The encoder and decoder of BART, and of families that differ from it in norms, scales and positions.

M2M100 is the class of NLLB too.
"""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers import (
    BartForConditionalGeneration,
    BlenderbotForConditionalGeneration,
    M2M100ForConditionalGeneration,
    MarianMTModel,
    MBartForConditionalGeneration,
    PegasusForConditionalGeneration,
    PLBartForConditionalGeneration,
    PreTrainedModel,
)

from serve.handlers.generation import masks
from serve.handlers.generation.cache import RowCache
from serve.handlers.generation.passes.attention import Attention
from serve.handlers.generation.passes.products import Joined, Product, fused, merge
from serve.handlers.generation.sources import Keys, Sources, as_keys, attend, blocks, padding_bias

# The classes whose layers normalize their input; the layers of the others normalize their output.
_PRE_NORM = (
    BlenderbotForConditionalGeneration,
    M2M100ForConditionalGeneration,
    MBartForConditionalGeneration,
    PegasusForConditionalGeneration,
)
_POST_NORM = (BartForConditionalGeneration, MarianMTModel, PLBartForConditionalGeneration)


def fits(model: PreTrainedModel) -> bool:
    """Whether BartPass computes what the modules of a model compute."""
    if type(model) is M2M100ForConditionalGeneration and model.config.pad_token_id > 1:
        return False  # the table of positions may have to grow
    return type(model) in (*_PRE_NORM, *_POST_NORM)


def merge_products(model: Any) -> None:
    """Make one product of queries, keys and values, and one of the keys and values of the cross-attention."""
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        merge(layer.self_attn, ("q_proj", "k_proj", "v_proj"))
    for layer in model.model.decoder.layers:
        merge(layer.encoder_attn, ("k_proj", "v_proj"))


class BartPass:
    """The EncoderDecoderPass of a model that fits."""

    def __init__(self, model: Any) -> None:
        self.device = model.device
        encoder, decoder = model.model.encoder, model.model.decoder
        self._dtype = model.dtype
        self._pre_norm = type(model) in _PRE_NORM
        # The modules keep the encoder's values in the range of float16.
        self._largest = torch.finfo(torch.float16).max - 1000 if model.dtype is torch.float16 else None
        embedding = _CountingEmbedding if type(model) is M2M100ForConditionalGeneration else _Embedding
        self._source_text, self._text = embedding(encoder), embedding(decoder)
        self.parts = len(encoder.layers) + 1
        self._encoder = [_Layer(layer) for layer in encoder.layers]
        self._decoder = [_DecoderLayer(layer) for layer in decoder.layers]
        self._source_norm, self._norm = _optional(encoder, "layer_norm"), _optional(decoder, "layer_norm")
        self._head = Product(model.lm_head)
        bias = getattr(model, "final_logits_bias", None)
        self._bias = bias if bias is not None and bool(bias.any()) else None

    def cache(self) -> RowCache:
        return RowCache(len(self._decoder))

    def encode(self, tokens: Tensor, lengths: list[int]) -> Generator[float, None, Keys]:
        rows, width = tokens.shape
        bias, parts = padding_bias(lengths, self._dtype, self.device), blocks(rows, width)
        hidden = self._source_text.whole(tokens)
        for number, layer in enumerate(self._encoder):
            mixed = layer.mix(self._before(hidden.flatten(0, 1), layer.norm)).view(rows, width, 3, layer.heads, -1)
            computed = []
            for done, part in enumerate(parts):
                yield number + done / len(parts)
                block = hidden[:, part].flatten(0, 1)
                block = self._after(layer.output(attend(mixed, part, bias, layer.scale), residual=block), layer.norm)
                inner = layer.inner(self._before(block, layer.outer_norm))
                block = self._after(layer.outer(inner, residual=block), layer.outer_norm)
                if self._largest is not None:
                    block = block.clamp(-self._largest, self._largest)
                computed.append(block.view(rows, -1, hidden.shape[-1]))
            hidden = torch.cat(computed, 1)
        hidden = hidden.flatten(0, 1)
        if self._source_norm is not None:
            hidden = layer_norm(hidden, *self._source_norm)
        keys: Keys = []
        for number, layer in enumerate(self._decoder):
            yield len(self._encoder) + number / len(self._decoder)
            keys.append(as_keys(layer.source_keys(hidden).view(rows, width, 2, layer.heads, -1)))
        return keys

    def __call__(self, tokens: Tensor, columns: Tensor, cache: RowCache, sources: Sources) -> Tensor:
        (rows, count), width = tokens.shape, self._decoder[0].width
        kinds = [(masks.FULL, 0)] * len(self._decoder)
        own = Attention(cache, columns, kinds, 2 * width * self._dtype.itemsize, self._dtype)
        cross = sources.attention
        hidden = self._text(tokens, columns).view(rows * count, width)
        for number, layer in enumerate(self._decoder):
            mixed = layer.mix(self._before(hidden, layer.norm)).view(rows, count, 3, layer.heads, -1)
            queries, keys, values = mixed.unbind(2)
            hidden = self._after(
                layer.output(own(number, queries, keys, values, layer.scale), residual=hidden), layer.norm
            )
            queries = layer.source_queries(self._before(hidden, layer.source_norm))
            hidden = self._after(
                layer.source_output(cross(number, queries, layer.scale), residual=hidden), layer.source_norm
            )
            inner = layer.inner(self._before(hidden, layer.outer_norm))
            hidden = self._after(layer.outer(inner, residual=hidden), layer.outer_norm)
        if self._norm is not None:
            hidden = layer_norm(hidden, *self._norm)
        logits = self._head(hidden)
        return logits if self._bias is None else logits.add_(self._bias)

    def _before(self, hidden: Tensor, norm: Any) -> Tensor:
        return layer_norm(hidden, *norm) if self._pre_norm else hidden

    def _after(self, hidden: Tensor, norm: Any) -> Tensor:
        return hidden if self._pre_norm else layer_norm(hidden, *norm)


class _Embedding:
    """The tokens and positions of an encoder or decoder."""

    def __init__(self, part: Any) -> None:
        self._tokens, self._positions = part.embed_tokens.weight, self._table(part.embed_positions)
        self._scale = getattr(part.embed_tokens, "embed_scale", None) or getattr(part, "embed_scale", 1.0)
        self._offset = getattr(part.embed_positions, "offset", 0)
        self._norm = _optional(part, "layernorm_embedding")

    def whole(self, tokens: Tensor) -> Tensor:
        """Texts from their first token on, [rows, columns]."""
        return self(tokens, torch.arange(tokens.shape[1], device=tokens.device))

    def __call__(self, tokens: Tensor, columns: Tensor) -> Tensor:
        return self._sum(tokens, columns + self._offset)

    def _table(self, positions: Any) -> Tensor:
        table: Tensor = positions.weight
        return table

    def _sum(self, tokens: Tensor, positions: Tensor) -> Tensor:
        hidden = self._tokens[tokens]
        if self._scale != 1:
            hidden = hidden * self._scale
        hidden = hidden + self._positions[positions]
        return hidden if self._norm is None else layer_norm(hidden, *self._norm)


class _CountingEmbedding(_Embedding):
    """M2M100's: padding within a text has no position."""

    def whole(self, tokens: Tensor) -> Tensor:
        counted = tokens != self._padding
        return self._sum(tokens, counted.cumsum(1) * counted + self._padding)

    def __call__(self, tokens: Tensor, columns: Tensor) -> Tensor:
        return self._sum(tokens, (columns + 1) * (tokens != self._padding) + self._padding)

    def _table(self, positions: Any) -> Tensor:
        self._padding: int = positions.padding_idx
        table: Tensor = positions.weights
        return table


class _Layer:
    """The self-attention and the feed-forward part of a layer."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        self.heads, self.scale, self.width = attention.num_heads, attention.scaling, attention.embed_dim
        self.mix = Joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = Product(attention.out_proj)
        self.norm = _norm(layer.self_attn_layer_norm)
        self._product, self.outer = Product(layer.fc1), Product(layer.fc2)
        self._activation, self._fused = layer.activation_fn, fused(layer.activation_fn)
        self.outer_norm = _norm(layer.final_layer_norm)

    def inner(self, hidden: Tensor) -> Tensor:
        if self._fused is not None:
            return self._product(hidden, activation=self._fused)
        activated: Tensor = self._activation(self._product(hidden))
        return activated


class _DecoderLayer(_Layer):
    """A layer with cross-attention."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        attention = layer.encoder_attn
        self.source_queries, self.source_output = Product(attention.q_proj), Product(attention.out_proj)
        self.source_keys = Joined([attention.k_proj, attention.v_proj])
        self.source_norm = _norm(layer.encoder_attn_layer_norm)


def _norm(norm: nn.LayerNorm) -> tuple[Any, ...]:
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps


def _optional(part: Any, name: str) -> tuple[Any, ...] | None:
    norm = getattr(part, name, None)
    return None if norm is None else _norm(norm)
