"""Equivalent but faster layers: weights laid out once for oneDNN, activations as one kernel.

An original weight in private memory is freed as soon as its packed form exists, so at most one layer is held twice. An
original weight that safetensors maps from a float32 file is kept: it is page cache, and for a single row it is faster.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from serve.handlers.huggingface.quantization import linear_layers

# oneDNN chooses the blocking for a number of rows; the result is right for every number. 64 is the best choice for 2 to
# 64 rows (24 layers of GPT-2's sizes, one core: 12.8 ms at 1 row, 13.2 at 4, 19.2 at 16; blocked for 16 rows 13.3,
# 14.5, 19.9; plain 11.8, 20.8, 29.8).
TYPICAL_ROWS = 64


class PackedLinear(nn.Module):
    """A linear layer with a packed weight, and optionally the plain layer, which is used for a single row."""

    def __init__(self, weight: Tensor, bias: Tensor | None, plain: nn.Module | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # A transposed weight (GPT-2's) is passed as it is: a contiguous copy first takes half as much time again.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
        self._bias = bias
        self._plain = plain

    @property
    def weight(self) -> Tensor:
        """The packed weight. Modules of the T5 family read its precision."""
        packed: Tensor = self._packed
        return packed

    def forward(self, hidden: Tensor) -> Tensor:
        if self._plain is not None and hidden.numel() == self.in_features:
            row: Tensor = self._plain(hidden)
            return row
        product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._packed, self._bias, "none", [], "")
        return product


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
        plain = layer.module if any(layer.weight.data_ptr() in addresses for addresses in mapped) else None
        layer.replace(PackedLinear(layer.weight, layer.bias, plain))
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


def fuse_activations(model: PreTrainedModel) -> None:
    """Replace GPT-2's GELU by one kernel: the original runs eight, one of them a slow power (136 us for one row)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
