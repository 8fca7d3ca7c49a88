"""Layers put in a form that computes the same faster: weights laid out once for oneDNN, activations as one kernel.

The original weight is dropped as soon as its packed form exists, so at most one layer is held twice. A weight that
safetensors maps from a float32 file costs no private memory until it is packed; packed it does.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

# oneDNN chooses the blocking for a batch size; it is right for all, and fastest near this one.
TYPICAL_ROWS = 64


class PackedLinear(nn.Module):
    """`nn.Linear` with a packed weight, which can be multiplied but not read back."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
        # A copy: the original may be a view into the mapped file, which would then stay mapped.
        self._bias = None if bias is None else bias.detach().clone()

    def forward(self, hidden: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._packed, self._bias, "none", [], "")
        return product


def pack(model: PreTrainedModel) -> int:
    """Replace every plain linear layer (and GPT-2's transposed one) of a CPU model; how many there were.

    A head tied to the embedding gets a packed copy of its own; the embedding stays as it is.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                weight = child.weight.detach()
            elif type(child) is Conv1D:
                weight = child.weight.detach().t()
            else:
                continue
            setattr(parent, name, PackedLinear(weight, child.bias))
            count += 1
    return count


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
