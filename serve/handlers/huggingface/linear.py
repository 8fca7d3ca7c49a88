"""The linear layer of every served network: it has its weight in one or two layouts, and takes the faster one.

A plain weight that is mapped from its file is page cache: it may stay beside a packed one at no cost. A plain weight in
private memory is freed as soon as its packed form exists, so that at most one layer is held twice.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from serve.errors import ModelUnusable
from serve.handlers.huggingface.layouts import Activation, Int8, Layout, Packed, Plain

# A layer with fewer outputs is the last of a classifier: it is small, and its precision is that of the answer.
MIN_OUTPUTS = 16


class Linear(nn.Module):
    """[..., in] -> [..., out]: `activation(input x weight + bias) + residual`, in the precision of the input.

    The layout that multiplies depends on the number of rows, which is the product of all dimensions but the last.
    """

    def __init__(self, inputs: int, outputs: int, by_rows: list[Layout], weight: Tensor | None) -> None:
        """`by_rows`: the layout for 1, 2... rows; the last one serves all larger numbers. `weight`: the plain one."""
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = weight  # transformers reads its precision in places
        self._by_rows = by_rows
        self._last = len(by_rows)

    def forward(self, hidden: Tensor, activation: Activation = "none", residual: Tensor | None = None) -> Tensor:
        rows = hidden.numel() // self.in_features
        return self._by_rows[min(rows, self._last) - 1](hidden, activation, residual)


class LinearLayer(NamedTuple):
    """A linear layer of a model, and where it is: attribute `name` of the module `parent`."""

    parent: nn.Module
    name: str
    module: nn.Module
    weight: Tensor  # [out, in]
    bias: Tensor | None

    def replace(self, module: nn.Module) -> None:
        setattr(self.parent, self.name, module)


def linear_layers(model: nn.Module) -> Iterator[LinearLayer]:
    """Each linear layer of a model, GPT-2's transposed Conv1D included.

    Layers may be replaced on the way. No reference to a replaced layer is kept, so that the caller holds at most one
    layer twice.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, Conv1D)
    ]
    for parent, name in places:
        module = getattr(parent, name)
        weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        yield LinearLayer(parent, name, module, weight.t() if type(module) is Conv1D else weight, bias)


def packable(model: PreTrainedModel) -> bool:
    """Whether oneDNN supports the model's device and precision."""
    supported: bool = torch.backends.mkldnn.is_available()
    if model.dtype is torch.bfloat16:
        supported = supported and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported and model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)


def pack(model: PreTrainedModel) -> int:
    """Replace the linear layers of a CPU model by packed ones, and return how many were replaced.

    A head that shares its weight with the embedding gets a packed copy; the embedding keeps the weight.
    """
    count = 0
    mapped = _mapped_weights()
    for layer in linear_layers(model):
        outputs, inputs = layer.weight.shape
        packed = Packed(layer.weight, layer.bias)
        if any(layer.weight.data_ptr() in addresses for addresses in mapped):
            layer.replace(Linear(inputs, outputs, [Plain(layer.weight, layer.bias), packed], layer.weight))
        else:
            layer.replace(Linear(inputs, outputs, [packed], None))
        count += 1
    return count


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

    Embeddings and norms keep their precision. Raises ModelUnusable for a model on a GPU.
    """
    if model.device.type != "cpu":
        raise ModelUnusable(
            "model.toml: options.quantize is supported on CPUs only, and this model is on a GPU",
            hint="remove the option",
        )
    count = 0
    for layer in linear_layers(model):
        if len(layer.weight) >= MIN_OUTPUTS:
            outputs, inputs = layer.weight.shape
            layer.replace(Linear(inputs, outputs, [Int8(layer.weight, layer.bias)], None))
            count += 1
    return count


def fuse_activations(model: PreTrainedModel) -> None:
    """Replace GPT-2's GELU by one kernel: the original runs eight, one of them a slow power (136 us for one row)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
