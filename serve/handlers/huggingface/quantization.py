"""Linear layers with weights of 8 bits: a quarter of float32's bytes, and products on the processor's integer units.

Each output channel of a weight has a scale of its own, and each row of the input, found as it comes. One scale for the
whole input, as torch's own dynamic quantisation has it, would make an answer depend on who else is in the batch. And an
input row is two rows of 8 bits, a coarse one and what it leaves: of models with single large activations (Llama's kind)
8 bits alone would lose the rest (docs/decisions/0009-weights.md).
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from serve.errors import ModelUnusable

HEADS = 16  # outputs below which a layer is a classifier's last: nothing to save there, and what it says is the answer
LEVELS = 127
TYPICAL_ROWS = (
    64  # what oneDNN lays the weights out for; right for all, where no size would have them laid out each time
)


class Int8Linear(nn.Module):
    """[..., in] -> [..., out], in the input's own precision."""

    weight = None  # T5 looks whether there is one, to convert its input

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
        # Of less than 3 rows and 128 outputs oneDNN makes a plain loop: 3.2 ms where 3 rows take 0.03.
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            torch.cat([coarse, fine, fine] if count == 1 else [coarse, fine]).to(torch.int8),
            *(1.0, 0, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""),
        )
        product = product[:count].add_(product[count : 2 * count], alpha=1 / (2 * LEVELS))
        product = product.mul_(scales) if self._bias is None else torch.addcmul(self._bias, product, scales)
        return product.to(hidden.dtype).reshape(*hidden.shape[:-1], self.out_features)


def quantize(model: PreTrainedModel) -> int:
    """Replace every linear layer (GPT-2's transposed one too) of a CPU model, and tell how many there were.

    An original is dropped as soon as its replacement exists; embeddings and norms stay as they are.
    """
    if model.device.type != "cpu":
        raise ModelUnusable(
            "model.toml: options.quantize is for processors, and this model is on a GPU", hint="remove it"
        )
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                weight = child.weight.detach()
            elif type(child) is Conv1D:
                weight = child.weight.detach().t()
            else:
                continue
            if len(weight) >= HEADS:
                setattr(parent, name, Int8Linear(weight, None if child.bias is None else child.bias.detach()))
                count += 1
    return count
