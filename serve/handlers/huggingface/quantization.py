"""Linear layers with 8-bit weights: a quarter of float32's bytes, multiplied on the processor's integer units.

Each output channel of a weight has its own scale, and so has each row of the input, computed for each pass. One scale
for the whole input, as in torch's own dynamic quantization, would make an answer depend on the other requests of the
batch. An input row becomes two 8-bit rows, the rounded row and its rounding error: for models with a few very large
activations (Llama and its like) one row alone would lose the small ones (docs/decisions/0009-weights.md).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from serve.errors import ModelUnusable

# A layer with fewer outputs is the last of a classifier: it is small, and its precision is that of the answer.
MIN_OUTPUTS = 16
LEVELS = 127
# The number of rows for which oneDNN blocks the weights. The result is right for every number; without one, oneDNN
# would block them again in each pass.
TYPICAL_ROWS = 64


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


class Int8Linear(nn.Module):
    """[..., in] -> [..., out], in the precision of the input."""

    weight = None  # T5 reads the attribute, and converts its input if there is a weight

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        weight = weight.float()
        self._scales = weight.abs().amax(1).clamp_min(1e-12) / LEVELS
        rounded = (weight / self._scales[:, None]).round_().to(torch.int8).contiguous()
        self._packed = torch.ops.onednn.qlinear_prepack(rounded, [TYPICAL_ROWS, self.in_features])
        self._zeros = torch.zeros(self.out_features, dtype=torch.long)
        self._bias = None if bias is None else bias.float()

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, self.in_features).float()
        count = len(rows)
        scales = rows.abs().amax(1, keepdim=True).clamp_min_(1e-12).div_(LEVELS)
        rows = rows / scales
        coarse = rows.round()
        fine = (rows - coarse).mul_(2 * LEVELS).round_()
        # With fewer than 3 rows and 128 outputs oneDNN runs a plain loop: 3.2 ms, where 3 rows take 0.03.
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            torch.cat([coarse, fine, fine] if count == 1 else [coarse, fine]).to(torch.int8),
            *(1.0, 0, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""),
        )
        product = product[:count].add_(product[count : 2 * count], alpha=1 / (2 * LEVELS))
        product = product.mul_(scales) if self._bias is None else torch.addcmul(self._bias, product, scales)
        return product.to(hidden.dtype).reshape(*hidden.shape[:-1], self.out_features)


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
            layer.replace(Int8Linear(layer.weight, layer.bias))
            count += 1
    return count
