"""The forward pass of GPT-2: fused products, one attention call, and nothing else between them."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers import GPT2LMHeadModel, PreTrainedModel

from serve.handlers.generation import masks
from serve.handlers.generation.cache import RowCache
from serve.handlers.generation.passes.attention import Attention
from serve.handlers.generation.passes.products import Product, fused


def fits(model: PreTrainedModel) -> bool:
    """Whether GPT2Pass computes what the modules of a model compute."""
    return type(model) is GPT2LMHeadModel and not model.config.add_cross_attention


class GPT2Pass:
    """The Pass of a GPT2LMHeadModel that fits."""

    ragged = True

    def __init__(self, model: Any) -> None:
        self.device = model.device
        network, config = model.transformer, model.config
        self._dtype = model.dtype
        self._heads = config.n_head
        self._size = config.n_embd // config.n_head
        self._tokens, self._positions = network.wte.weight, network.wpe.weight
        self._layers = [_Layer(block) for block in network.h]
        self._windows = [(masks.FULL, 0)] * len(self._layers)
        self._norm = _norm(network.ln_f)
        self._head = Product(model.lm_head)

    def cache(self) -> RowCache:
        return RowCache(len(self._layers))

    def __call__(
        self, tokens: Tensor, columns: Tensor, cache: RowCache, selected: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        rows, count = tokens.shape
        width = self._heads * self._size
        column_bytes = 2 * width * self._dtype.itemsize
        attention = Attention(cache, columns, self._windows, column_bytes, self._dtype)
        hidden = (self._tokens[tokens] + self._positions[columns]).view(rows * count, width)
        for number, layer in enumerate(self._layers):
            mixed = layer.query_key_value(layer_norm(hidden, *layer.norm_1))
            queries, keys, values = mixed.view(rows, count, 3, self._heads, self._size).unbind(2)
            hidden = layer.output(attention(number, queries, keys, values, layer.scale), residual=hidden)
            inner = layer.inner(layer_norm(hidden, *layer.norm_2), activation=layer.fused or "none")
            if layer.fused is None:
                inner = layer.activation(inner)
            hidden = layer.outer(inner, residual=hidden)
        if selected is not None:
            hidden = hidden.view(rows, count, width)[selected]
        logits = self._head(layer_norm(hidden, *self._norm))
        return logits if selected is not None else logits.view(rows, count, -1)


class _Layer:
    def __init__(self, block: Any) -> None:
        self.norm_1, self.norm_2 = _norm(block.ln_1), _norm(block.ln_2)
        self.query_key_value, self.output = Product(block.attn.c_attn), Product(block.attn.c_proj)
        self.inner, self.outer = Product(block.mlp.c_fc), Product(block.mlp.c_proj)
        self.activation, self.fused = block.mlp.act, fused(block.mlp.act)
        self.scale = block.attn.scaling


def _norm(norm: nn.LayerNorm) -> tuple[Any, ...]:
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps
