"""The forward pass of Llama and of families that differ from it in biases, windows and the form of their weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm
from transformers import LlamaForCausalLM, MistralForCausalLM, Phi3ForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from serve.handlers.generation import masks
from serve.handlers.generation.cache import RowCache
from serve.handlers.generation.passes.attention import Attention
from serve.handlers.generation.passes.modules import windows
from serve.handlers.generation.passes.products import Joined, Product, merge

ROPES = {"default", "linear", "llama3", "yarn"}  # the factors of others depend on the longest text of a batch


def fits(model: PreTrainedModel) -> bool:
    """Whether LlamaPass computes what the modules of a model compute."""
    config = model.config
    kinds = {kind for kind, _ in windows(config)}
    if type(model) is LlamaForCausalLM:
        windows_fit = kinds == {masks.FULL}
    elif type(model) in (MistralForCausalLM, Phi3ForCausalLM):  # one kind for all layers, whatever layer_types says
        windows_fit = kinds == {masks.FULL if config.sliding_window is None else masks.SLIDING}
    else:
        windows_fit = type(model) is Qwen2ForCausalLM and kinds <= {masks.FULL, masks.SLIDING}
    return windows_fit and (config.rope_parameters or {}).get("rope_type") in ROPES


def merge_products(model: Any) -> None:
    """Make one product of queries, keys and values, and one of gate and up."""
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "q_proj"):  # Phi-3 has them merged
            merge(layer.self_attn, ("q_proj", "k_proj", "v_proj"))
            merge(layer.mlp, ("gate_proj", "up_proj"))


class LlamaPass:
    """The Pass of a model that fits."""

    ragged = True

    def __init__(self, model: Any) -> None:
        self.device = model.device
        network, config = model.model, model.config
        self._dtype = model.dtype
        self._heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads
        self._size = network.layers[0].self_attn.head_dim
        self._embedding = network.embed_tokens
        self._rotary = network.rotary_emb
        self._layers = [_Layer(layer) for layer in network.layers]
        self._windows = windows(config)
        self._norm = norm_of(network.norm)
        self._head = Product(model.lm_head)

    def cache(self) -> RowCache:
        return RowCache(len(self._layers))

    def __call__(
        self, tokens: Tensor, columns: Tensor, cache: RowCache, selected: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        rows, count = tokens.shape
        column_bytes = 2 * self._key_heads * self._size * self._dtype.itemsize
        attention = Attention(cache, columns, self._windows, column_bytes, self._dtype)
        hidden = self._embedding(tokens).view(rows * count, -1)
        cos, sin = (table[:, :, None] for table in self._rotary(hidden, columns))  # [rows or 1, count, 1, rotated]
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        turned = self._heads + self._key_heads
        for number, layer in enumerate(self._layers):
            mixed = layer.query_key_value(layer.norm_1(hidden)).view(rows, count, -1, self._size)
            both = rotate(mixed[:, :, :turned], cos, sin)
            queries, keys, values = both[:, :, : self._heads], both[:, :, self._heads :], mixed[:, :, turned:]
            hidden = layer.output(attention(number, queries, keys, values, layer.scale), residual=hidden)
            gate, up = layer.gate_up(layer.norm_2(hidden)).chunk(2, -1)
            hidden = layer.down(layer.activation(gate).mul_(up), residual=hidden)
        if selected is not None:
            hidden = hidden.view(rows, count, -1)[selected]
        logits = self._head(self._norm(hidden))
        return logits if selected is not None else logits.view(rows, count, -1)


class _Layer:
    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm_1, self.norm_2 = norm_of(layer.input_layernorm), norm_of(layer.post_attention_layernorm)
        self.query_key_value: Product | Joined
        self.gate_up: Product | Joined
        if hasattr(attention, "qkv_proj"):
            self.query_key_value, self.gate_up = Product(attention.qkv_proj), Product(mlp.gate_up_proj)
            self.activation = mlp.activation_fn
        else:
            self.query_key_value = Joined([attention.q_proj, attention.k_proj, attention.v_proj])
            self.gate_up = Joined([mlp.gate_proj, mlp.up_proj])
            self.activation = mlp.act_fn
        self.output, self.down = Product(attention.o_proj), Product(mlp.down_proj)
        self.scale = attention.scaling


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of [rows, count, heads, size] by their position; `sin` has the sign of the second factor."""
    size = cos.shape[-1]
    if size == vectors.shape[-1]:
        return torch.addcmul(vectors * cos, vectors.roll(size // 2, -1), sin)
    return torch.cat((rotate(vectors[..., :size], cos, sin), vectors[..., size:]), -1)


def norm_of(norm: Any) -> Callable[[Tensor], Tensor]:
    """The root mean square norm of a module in four kernels, where the module runs eight."""
    if norm.weight.dtype != torch.float32:
        module: Callable[[Tensor], Tensor] = norm  # it rounds between its kernels
        return module
    root: float = norm.weight.numel() ** 0.5
    weight = norm.weight * root
    least = torch.tensor(root * norm.variance_epsilon**0.5, device=weight.device)

    def normed(hidden: Tensor) -> Tensor:
        return (hidden * weight).div_(torch.hypot(vector_norm(hidden, 2, -1, True), least))

    return normed
