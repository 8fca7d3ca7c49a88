"""Layers put in a form that computes the same faster: weights laid out once for oneDNN, activations as one kernel.

An original weight in our own memory is dropped as soon as its packed form exists, so at most one layer is held twice.
One that safetensors maps from a float32 file is the page cache's: it is kept, for a single row, where plain is faster.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

# oneDNN chooses the blocking for a batch size; it is right for all. That for 64 rows is the best at 2 to 64 (24 layers
# of GPT-2's sizes, one core: 12.8 ms at 1 row, 13.2 at 4, 19.2 at 16; blocked for 16 rows 13.3, 14.5, 19.9; plain
# 11.8, 20.8, 29.8).
TYPICAL_ROWS = 64


class PackedLinear(nn.Module):
    """A linear layer with a packed weight, and the plain one for a single row where that costs no memory of ours."""

    def __init__(self, weight: Tensor, bias: Tensor | None, plain: nn.Module | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # A transposed weight (GPT-2's) is taken as it lies: a contiguous copy first costs half as much time again.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
        self._bias = bias
        self._plain = plain

    def forward(self, hidden: Tensor) -> Tensor:
        if self._plain is not None and hidden.numel() == self.in_features:
            row: Tensor = self._plain(hidden)
            return row
        product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._packed, self._bias, "none", [], "")
        return product


def pack(model: PreTrainedModel) -> int:
    """Replace every plain linear layer (and GPT-2's transposed one) of a CPU model; how many there were.

    A head tied to the embedding gets a packed copy of its own; the embedding stays as it is.
    """
    count = 0
    files = _mapped_weights()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                weight = child.weight.detach()
            elif type(child) is Conv1D:
                weight = child.weight.detach().t()
            else:
                continue
            bias = None if child.bias is None else child.bias.detach()
            mapped = any(weight.data_ptr() in addresses for addresses in files)
            setattr(parent, name, PackedLinear(weight, bias, child if mapped else None))
            count += 1
    return count


def _mapped_weights() -> list[range]:
    """The addresses at which safetensors files are mapped: weights there are the page cache's, shared and evictable."""
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = line.split(" ", 1)[0].split("-")
            spans.append(range(int(start, 16), int(end, 16)))
    return spans


def fuse_activations(model: PreTrainedModel) -> None:
    """GPT-2's GELU as one kernel: its own formula takes eight, one of them a slow power (136 us for one row)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))


def packable(model: PreTrainedModel) -> bool:
    """Whether oneDNN can hold these weights."""
    supported: bool = torch.backends.mkldnn.is_available()
    if model.dtype is torch.bfloat16:
        supported = supported and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported and model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)
