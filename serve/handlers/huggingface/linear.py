"""The linear layer of every served network: it has its weight in one or two layouts, and takes the faster one.

A plain weight that is mapped from its file is page cache: it may stay beside a packed one at no cost. A plain weight in
private memory is freed as soon as its packed form exists, so that at most one layer is held twice.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from serve.errors import ModelUnusable
from serve.handlers.huggingface.layout_times import Memory, int8_slowness, packed_by_rows
from serve.handlers.huggingface.layouts import Activation, Int8, Layout, Packed, Plain

# A layer with fewer outputs is the last of a classifier: it is small, and its precision is that of the answer.
MIN_OUTPUTS = 16
SMALL = 1 << 20  # weights of a model that is too small to be measured: it is packed
# Times that of a float32 product, at 16 rows of one layer: a slower product of 8 bits has no kernel and is not served.
# Kernels took 0.6 to 4.3 (nine shapes; AMX, AVX512-VNNI, AVX2), the reference loop 129 to 247. One layer says no more:
# its weights stay in the cache, and the whole of SmolLM2 is 2.2 times faster where its layers alone seem slower.
SLOWEST = 20.0


# Model types whose code computes with the weights of linear layers: they stay as they are.
READ_WEIGHTS = frozenset({"jamba", "layoutlmv3", "neomme"})


class Linear(nn.Module):
    """[..., in] -> [..., out]: `activation(input x weight + bias) + residual`, in the precision of the input.

    The layout that multiplies depends on the number of rows, which is the product of all dimensions but the last.
    """

    def __init__(self, inputs: int, outputs: int, by_rows: list[Layout], weight: Tensor | None) -> None:
        """`by_rows`: the layout for 1, 2... rows; the last one serves all larger numbers.

        `weight`: what code of transformers finds as the weight. It looks at its precision in places.
        """
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = weight
        self._by_rows = by_rows
        self._last = len(by_rows)

    def forward(self, hidden: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        rows = hidden.numel() // self.in_features
        return self._by_rows[min(rows, self._last) - 1](hidden, activation, residual)


class SideBySide(nn.Module):
    """Linear layers over one input, whose outputs are side by side. `pack` and `quantize` make one Linear of them."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([layer(hidden) for layer in self.layers], -1)


class LinearLayer(NamedTuple):
    """A linear layer of a model, and where it is: attribute `name` of the module `parent`."""

    parent: nn.Module
    name: str
    parts: list[tuple[Tensor, Tensor | None]]  # weights [out, in] and biases, side by side

    @property
    def shape(self) -> tuple[int, int]:
        return sum(len(weight) for weight, _ in self.parts), self.parts[0][0].shape[1]

    def weight(self) -> Tensor:
        """[out, in]; a copy where there are several parts."""
        weights = [weight for weight, _ in self.parts]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def bias(self) -> Tensor | None:
        biases = [bias for _, bias in self.parts if bias is not None]
        return None if not biases else biases[0] if len(self.parts) == 1 else torch.cat(biases)

    def replace(self, by_rows: list[Layout], weight: Tensor | None) -> None:
        """`weight`: see Linear."""
        outputs, inputs = self.shape
        setattr(self.parent, self.name, Linear(inputs, outputs, by_rows, weight))


def linear_layers(model: nn.Module) -> Iterator[LinearLayer]:
    """Each linear layer of a model, GPT-2's transposed Conv1D included.

    Layers may be replaced on the way. No reference to a replaced layer is kept, so that the caller holds at most one
    layer twice.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, Conv1D, SideBySide)
    ]
    lists = {id(module.layers) for module in model.modules() if type(module) is SideBySide}  # parts of one layer
    places = [(parent, name) for parent, name in places if id(parent) not in lists]
    for parent, name in places:
        yield LinearLayer(parent, name, _parts(getattr(parent, name)))


def _parts(module: Any) -> list[tuple[Tensor, Tensor | None]]:
    if type(module) is SideBySide:
        return [part for layer in module.layers for part in _parts(layer)]
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    return [(weight.t() if type(module) is Conv1D else weight, bias)]


def packable(model: PreTrainedModel) -> bool:
    """Whether oneDNN supports the model's device and precision, and the model calls its layers."""
    supported: bool = torch.backends.mkldnn.is_available() and model.config.model_type not in READ_WEIGHTS
    if model.dtype is torch.bfloat16:
        supported = supported and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported and model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)


def pack(model: PreTrainedModel, *, always: bool = False, gain: float = 0, memory: Path | None = None) -> int:
    """Give each linear layer of a CPU model its faster layouts, and return how many layers have a packed one.

    A head that shares its weight with the embedding gets a packed copy; the embedding keeps the weight.

    Args:
        always: pack without measuring. A plain weight serves no rows.
        gain: the part of the time that a packed copy of a mapped weight must save, for its private memory.
        memory: the directory that keeps measured times.
    """
    mapped = _mapped_weights()

    def is_mapped(weight: Tensor) -> bool:
        return any(weight.data_ptr() in addresses for addresses in mapped)

    choices = {} if always else _choices(model, is_mapped, gain, memory)
    count = 0
    for layer in linear_layers(model):
        by_rows = choices.get(_kind(layer, is_mapped), [True])
        count += any(by_rows)
        packed = Packed(layer.weight(), layer.bias()) if any(by_rows) else None
        plain = None if all(by_rows) else Plain(layer.parts)
        layouts = [packed if each else plain for each in by_rows]
        weight = layer.parts[0][0]
        stays = len(layer.parts) == 1 and (plain is not None or is_mapped(weight))
        layer.replace([each for each in layouts if each is not None], weight if stays else weight.new_empty(0))
        del weight
    return count


def _kind(layer: LinearLayer, is_mapped: Callable[[Tensor], bool]) -> tuple[Any, ...]:
    """What layers with equal times have in common."""
    weight = layer.parts[0][0]
    return (*layer.shape, len(layer.parts), weight.stride(0) == 1, all(is_mapped(each) for each, _ in layer.parts))


def _choices(
    model: PreTrainedModel, is_mapped: Callable[[Tensor], bool], gain: float, memory: Path | None
) -> dict[tuple[Any, ...], list[bool]]:
    """By the kind of a layer, whether the packed layout multiplies 1, 2... rows.

    Kinds of little weight, and of weights in private memory, are absent: they are packed.
    """
    weights: dict[tuple[Any, ...], list[Tensor]] = {}
    for layer in linear_layers(model):
        weights.setdefault(_kind(layer, is_mapped), []).append(layer.parts[0][0])
    sizes = {kind: kind[0] * kind[1] * len(each) for kind, each in weights.items()}
    total, known = sum(sizes.values()), Memory(memory)
    return {
        kind: packed_by_rows(known.times(each), gain=gain)
        for kind, each in weights.items()
        if kind[-1] and total > SMALL and sizes[kind] > total / 20
    }


def _mapped_weights() -> list[range]:
    """The addresses of mapped safetensors files: weights there are page cache, shared and evictable."""
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = line.split(" ", 1)[0].split("-")
            spans.append(range(int(start, 16), int(end, 16)))
    return spans


def quantize(model: PreTrainedModel) -> int:
    """Replace the linear layers of a model on the CPU by 8-bit ones, and return how many were replaced.

    Embeddings and norms keep their precision. Raises ModelUnusable for a model on a GPU, and where the processor has no
    fast product of 8 bits.
    """
    if model.device.type != "cpu":
        raise ModelUnusable(
            "model.toml: options.quantize is supported on CPUs only, and this model is on a GPU",
            hint="remove the option",
        )
    layers = [layer for layer in linear_layers(model) if layer.shape[0] >= MIN_OUTPUTS]
    if sum(math.prod(layer.shape) for layer in layers) > SMALL:
        largest = max(layers, key=lambda layer: math.prod(layer.shape))
        slowness = int8_slowness(largest.parts[0][0], 16)
        del largest
        if slowness > SLOWEST:
            raise ModelUnusable(
                "model.toml: options.quantize: on this processor, a product of 8 bits takes"
                f" {slowness:.1f} times the time of one of float32",
                hint="remove the option; or use an instance with AVX512-VNNI or AMX (m5, c5 and later)",
            )
    del layers
    count = 0
    for layer in linear_layers(model):
        if layer.shape[0] >= MIN_OUTPUTS:
            layer.replace([Int8(layer.weight(), layer.bias())], None)
            count += 1
    return count


def fuse_activations(model: PreTrainedModel) -> None:
    """Replace GPT-2's GELU by one kernel: the original runs eight, one of them a slow power (136 us for one row)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
